"""Names of kernels, as ``kernel=`` takes them: those of the planner's table, and two that serve every call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from lambdanets.kernels.grid.contract import GridProblem
from lambdanets.kernels.grid.planner import GRID_KERNELS
from lambdanets.names import nearest_names

__all__ = ["PLAIN", "PORTABLE", "REFERENCE", "require", "require_on_any", "require_without_grid"]

REFERENCE, PORTABLE = "reference", "portable"
# In plain operations and for every call: they are chosen by name only, and have no costs.
PLAIN = (REFERENCE, PORTABLE)


def require(name: str, problem: GridProblem | None = None) -> None:
    """Raise unless ``kernel=name`` exists and, where a problem is given, can run on it.

    Raises:
        ValueError: with the nearest names, or the reason why the kernel cannot run.
    """
    names = [*PLAIN, *GRID_KERNELS]
    if name not in names:
        near = nearest_names(name, names)
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise ValueError(f"kernel must be None or one of {names}, got {name!r}; {hint}None picks the fastest")
    if problem is not None and not problem.is_empty and name not in PLAIN:
        reason = GRID_KERNELS[name].check(problem)
        if reason is not None:
            raise ValueError(f"kernel={name!r} cannot run here: {reason}; kernel=None picks one that can")


def require_on_any(name: str, problems: Sequence[GridProblem]) -> None:
    """Raise unless ``kernel=name`` exists and can run on one of some problems, on its device and in its precisions.

    Raises:
        ValueError: with the nearest names, or the reason why the kernel cannot run on the last problem.
    """
    require(name)
    if name in PLAIN:
        return
    kernel = GRID_KERNELS[name]
    device, dtypes = kernel.device or "cpu", (torch.bfloat16, torch.float32) if kernel.half else (torch.float32,)
    reasons = [kernel.check(replace(each, device=device, dtype=dtype)) for each in problems for dtype in dtypes]
    if all(reasons):
        raise ValueError(f"kernel={name!r} can run on no input: {reasons[-1]}; kernel=None picks one that can")


def require_without_grid(name: str, given: str) -> None:
    """Raise unless ``kernel=name`` exists and serves positions that are not on a grid.

    Args:
        name: of the kernel.
        given: the positions in its place, for the message.
    """
    require(name)
    if name not in PLAIN:
        raise ValueError(
            f"kernel={name!r} cannot run here: it is for GridPositions, got {given}; kernel=None, {REFERENCE!r} and "
            f"{PORTABLE!r} serve every call"
        )
