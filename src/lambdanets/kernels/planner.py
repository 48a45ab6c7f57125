"""One table of kernels for positions on a grid: name, functions, a check with its reason, a cost.

The table serves the automatic choice, a choice by name, and the explanation of both; there is no other list.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

from torch import Tensor

from lambdanets.kernels import banded, lambda_first, query_first, row_spectral, spectral
from lambdanets.kernels.problem import GridProblem, Work

__all__ = ["GRID_KERNELS", "GridKernel", "Verdict", "choose", "explain", "require"]

REFERENCE = "reference"


@dataclass(frozen=True)
class GridKernel:
    """A way through the position term of a grid.

    Args:
        name: what ``kernel=`` takes.
        forward: (query, value, table, grid, origin) -> output.
        backward: (grad, query, value, table, grid, origin) -> gradients of query, value, table.
        check: the reason it cannot run on a problem, or None.
        seconds: estimated time of (problem, backward), for one call.
    """

    name: str
    forward: Callable[..., Tensor]
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]]
    check: Callable[[GridProblem], str | None]
    seconds: Callable[[GridProblem, bool], float]


# Seconds for one multiply-add, one moved element and one call, as fitted on a 2-core CPU in float32.
SECONDS_PER_MULTIPLY_ADD = 1 / 40e9
SECONDS_PER_MOVED = 1 / 1e9
SECONDS_PER_CALL = 4e-6


def _seconds(work: Work) -> float:
    return (
        work.multiply_adds * SECONDS_PER_MULTIPLY_ADD + work.moved * SECONDS_PER_MOVED + work.calls * SECONDS_PER_CALL
    )


def _kernel(name: str, module: ModuleType) -> GridKernel:
    return GridKernel(
        name,
        module.forward,
        module.backward,
        module.check,
        lambda problem, backward: _seconds(module.work(problem, backward)),
    )


GRID_KERNELS: dict[str, GridKernel] = {
    name: _kernel(name, module)
    for name, module in {
        "query_first": query_first,
        "lambda_first": lambda_first,
        "banded": banded,
        "row_spectral": row_spectral,
        "spectral": spectral,
    }.items()
}


@dataclass(frozen=True)
class Verdict:
    """What the planner thinks of one kernel for one problem."""

    name: str
    reason: str | None
    forward_seconds: float
    backward_seconds: float


def explain(problem: GridProblem) -> list[Verdict]:
    """Every kernel with the reason it cannot run (or None) and its estimated times."""
    return [
        Verdict(k.name, k.check(problem), k.seconds(problem, False), k.seconds(problem, True))
        for k in GRID_KERNELS.values()
    ]


def choose(problem: GridProblem, backward: bool) -> GridKernel:
    """The cheapest kernel that can run, for the forward or the backward pass."""
    able = [kernel for kernel in GRID_KERNELS.values() if kernel.check(problem) is None]
    return min(able, key=lambda kernel: kernel.seconds(problem, backward))


def require(name: str, problem: GridProblem | None = None) -> None:
    """Raise unless ``kernel=name`` exists and, where a problem is given, can run on it.

    Raises:
        ValueError: with the nearest names, or the reason why the kernel cannot run.
    """
    names = [REFERENCE, *GRID_KERNELS]
    if name not in names:
        near = difflib.get_close_matches(str(name), names)
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise ValueError(f"kernel must be None or one of {names}, got {name!r}; {hint}None picks the fastest")
    if problem is not None and name != REFERENCE:
        reason = GRID_KERNELS[name].check(problem)
        if reason is not None:
            raise ValueError(f"kernel={name!r} cannot run here: {reason}; kernel=None picks one that can")
