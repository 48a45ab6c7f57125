"""What a multiply-add, a moved element and a call cost on a machine, for each kernel and direction.

The package brings constants that were measured once (``costs.json``, with the machine they are from);
``lambdanets bench --calibrate`` measures this machine's and keeps them in the user's cache folder, where they are
preferred. They decide which kernel is chosen, never what it computes.
"""

from __future__ import annotations

import functools
import json
import math
import warnings
from importlib import resources
from pathlib import Path
from typing import Any

import platformdirs

__all__ = ["Cost", "cache_file", "calibration", "cost_of", "reload", "shipped"]

_calibration = 0

Cost = tuple[float, float, float]

# Of kernels for devices that nobody has measured yet: products at half of an H100's published rate, each score's shift
# and each element of E at what docs/gpu.md derives for it. A calibration on the device replaces them.
_DERIVED: dict[str, dict[str, dict[str, Cost]]] = {
    "cuda": {
        "query_first_triton": {"forward": (4.5e-15, 5.4e-13, 5e-6), "backward": (4.5e-15, 5.4e-13, 5e-6)},
        "lambda_first_triton": {"forward": (4.5e-15, 3.4e-13, 5e-6), "backward": (4.5e-15, 3.4e-13, 5e-6)},
    }
}


def cache_file() -> Path:
    """Where the calibration of this machine is kept."""
    return Path(platformdirs.user_cache_dir("lambdanets")) / "costs.json"


def shipped() -> dict[str, Any]:
    """The constants that come with the package."""
    return json.loads(resources.files("lambdanets.kernels.grid").joinpath("costs.json").read_text())


@functools.cache
def _costs() -> dict[str, dict[str, dict[str, Cost]]]:
    """Device -> kernel -> direction -> seconds for one multiply-add, one moved element, one call."""
    costs = shipped()["devices"]
    path = cache_file()
    if path.is_file():
        try:
            for device, kernels in _valid(json.loads(path.read_text())["devices"]).items():
                costs.setdefault(device, {}).update(kernels)
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            warnings.warn(
                f"{path} is not a calibration of lambdanets ({error}); using the constants of the package. "
                "Delete it or run 'lambdanets bench --calibrate'.",
                stacklevel=2,
            )
    return costs


def _valid(devices: dict[str, dict[str, dict[str, Cost]]]) -> dict[str, dict[str, dict[str, Cost]]]:
    """What a calibration says, if it has three finite constants for both directions of each kernel."""
    for kernels in devices.values():
        for name, directions in kernels.items():
            for direction in ("forward", "backward"):
                cost = directions[direction]
                if len(cost) != 3 or not all(math.isfinite(constant) and constant >= 0 for constant in cost):
                    raise ValueError(f"{name} has {cost} for {direction}, where three constants belong")
    return devices


def reload() -> None:
    """Read the constants again, after a calibration."""
    global _calibration
    _costs.cache_clear()
    _calibration += 1


def calibration() -> int:
    """Changes with every :func:`reload`, so that what was decided before it can be told."""
    return _calibration


def cost_of(device: str, kernel: str, backward: bool) -> Cost:
    """Seconds for one multiply-add, one moved element and one call of a kernel in float32.

    A device without measurements of its own is treated as a CPU: the order of the kernels by work still holds. Kernels
    that are for one device only have derived constants until they are measured there.
    """
    costs = _costs()
    tables = (costs.get(device, {}), costs["cpu"], *_DERIVED.values())
    directions = next(table[kernel] for table in tables if kernel in table)
    return directions["backward" if backward else "forward"]
