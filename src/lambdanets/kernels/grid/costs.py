"""Costs of a multiply-add, a moved element and a call on a machine, for each kernel and direction.

The package brings constants that were measured once (``costs.json``, with the machine they are from);
``lambdanets bench --calibrate`` measures this machine's and keeps them in the user's cache folder, where they are
preferred. They decide which kernel is chosen, never what it computes.
"""

from __future__ import annotations

import functools
import json
import math
import warnings
from pathlib import Path
from typing import Any

import platformdirs

__all__ = ["Cost", "cache_file", "calibrated", "cost_of", "generation", "reload", "shipped", "shipped_file"]

_generation = 0

Cost = tuple[float, float, float]

# Kernels for devices without measurements: products at half of an H100's published rate, each score's shift
# and each element of E at what docs/gpu.md derives for it. Constants of the device in a file of costs replace them.
_DERIVED: dict[str, dict[str, Cost]] = {
    "query_first_triton": {"forward": (4.5e-15, 5.4e-13, 5e-6), "backward": (4.5e-15, 5.4e-13, 5e-6)},
    "lambda_first_triton": {"forward": (4.5e-15, 3.4e-13, 5e-6), "backward": (4.5e-15, 3.4e-13, 5e-6)},
}


def cache_file() -> Path:
    """File of this machine's calibration."""
    return Path(platformdirs.user_cache_dir("lambdanets")) / "costs.json"


def shipped_file() -> Path:
    """File of the constants that come with the package."""
    return Path(__file__).with_name("costs.json")


def shipped() -> dict[str, Any]:
    """The constants that come with the package."""
    return json.loads(shipped_file().read_text(encoding="utf-8"))


def calibrated() -> dict[str, Any]:
    """This machine's calibration, ``{}`` where there is none that can be used."""
    try:
        return _read_calibration()
    except _DAMAGED:
        return {}


# Raised by content that is no calibration.
_DAMAGED = (OSError, ValueError, KeyError, AttributeError, TypeError)


def _read_calibration() -> dict[str, Any]:
    """The content of the cache folder's file, ``{}`` if there is none; raises one of ``_DAMAGED`` if it is no good."""
    path = cache_file()
    if not path.is_file():
        return {}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    _check(found["devices"])
    return found


@functools.cache
def _costs() -> dict[str, dict[str, dict[str, Cost]]]:
    """Device -> kernel -> direction -> seconds for one multiply-add, one moved element, one call."""
    costs = shipped()["devices"]
    try:
        own = _read_calibration().get("devices", {})
    except _DAMAGED as error:
        warnings.warn(
            f"{cache_file()} is not a calibration of lambdanets ({error}); using the constants of the package. "
            "Delete it or run 'lambdanets bench --calibrate'.",
            stacklevel=2,
        )
        return costs
    for device, kernels in own.items():
        costs.setdefault(device, {}).update(kernels)
    return costs


def _check(devices: dict[str, dict[str, dict[str, Cost]]]) -> None:
    """Raise unless a calibration has three finite constants for both directions of each kernel."""
    for kernels in devices.values():
        for name, directions in kernels.items():
            for direction in ("forward", "backward"):
                cost = directions[direction]
                if len(cost) != 3 or not all(math.isfinite(constant) and constant >= 0 for constant in cost):
                    raise ValueError(f"{name} has {cost} for {direction}, where three constants belong")


def reload() -> None:
    """Read the constants again, after a calibration."""
    global _generation
    _costs.cache_clear()
    _generation += 1


def generation() -> int:
    """Number that changes with every :func:`reload`, so that earlier decisions are made again."""
    return _generation


def cost_of(device: str, kernel: str, backward: bool) -> Cost:
    """Seconds for one multiply-add, one moved element and one call of a kernel in float32.

    A device without measurements of its own is treated as a CPU: the order of the kernels by work still holds. Kernels
    that are for one device only have derived constants unless the file has that device's.

    Raises:
        RuntimeError: if there are none for the kernel.
    """
    costs = _costs()
    for table in (costs.get(device, {}), costs["cpu"], _DERIVED):
        if kernel in table:
            return table[kernel]["backward" if backward else "forward"]
    raise RuntimeError(
        f"the kernel {kernel!r} has no constants in {shipped_file()}, nor in {cache_file()}: measure every kernel with "
        f"'lambdanets bench --calibrate --output {shipped_file()}'"
    )
