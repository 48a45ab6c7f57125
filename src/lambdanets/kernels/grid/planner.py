"""The table of kernels for positions on a grid, and the choice among them.

The table serves the automatic choice, a choice by name (``kernels/names.py``), and the explanation of both. A new
kernel is a file that ends with its ``KERNEL``, one row here, and its constants in ``costs.json``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from lambdanets.kernels.grid import banded, query_first, row_spectral, spectral
from lambdanets.kernels.grid.compiled import query_first as query_first_compiled
from lambdanets.kernels.grid.compiled import spectral as spectral_compiled
from lambdanets.kernels.grid.contract import GridKernel, GridProblem
from lambdanets.kernels.grid.costs import cost_of, generation
from lambdanets.kernels.grid.triton import lambda_first as lambda_first_triton
from lambdanets.kernels.grid.triton import query_first as query_first_triton

__all__ = [
    "GRID_KERNELS",
    "Verdict",
    "choose",
    "choose_by_sizes",
    "explain",
    "seconds",
    "takes_half",
]

_EMPTY = "there is nothing to compute for the grid {problem.grid} with batch {problem.batch}"


GRID_KERNELS: dict[str, GridKernel] = {
    kernel.name: kernel
    for kernel in (
        query_first.KERNEL,
        banded.KERNEL,
        row_spectral.KERNEL,
        spectral.KERNEL,
        query_first_compiled.KERNEL,
        spectral_compiled.KERNEL,
        query_first_triton.KERNEL,
        lambda_first_triton.KERNEL,
    )
}


def takes_half(name: str | None, device: str) -> bool:
    """True if half precision should reach a kernel as it is, for tensor cores, which sum in float32.

    Args:
        name: of the kernel; None for the planner's choice.
        device: the type of device.
    """
    if name is not None:
        return name in GRID_KERNELS and GRID_KERNELS[name].half
    return any(kernel.half and kernel.device == device for kernel in GRID_KERNELS.values())


def seconds(kernel: GridKernel, problem: GridProblem, backward: bool) -> float:
    """Estimated time of one call: the counted work times the machine's cost of each kind.

    A kernel that does not add the content term is followed by a pass over the output, which does.
    """
    work = kernel.work(problem, backward)
    cost = cost_of(problem.device, kernel.name, backward)
    dtype_factor = 2 if problem.dtype == torch.float64 else 1
    content = 0 if kernel.adds_content else problem.batch * problem.heads * problem.num_positions * problem.dim_value
    return dtype_factor * (cost[0] * work.multiply_adds + cost[1] * (work.moved + content)) + cost[2] * work.calls


@dataclass(frozen=True)
class Verdict:
    """Estimate of one kernel for one problem, or the reason why it cannot run."""

    name: str
    reason: str | None
    forward_seconds: float
    backward_seconds: float


def explain(problem: GridProblem) -> list[Verdict]:
    """Every kernel with the reason it cannot run (or None) and its estimated times, infinite if it cannot."""
    verdicts = []
    for kernel in GRID_KERNELS.values():
        reason = _EMPTY.format(problem=problem) if problem.is_empty else kernel.check(problem)
        times = [math.inf if reason else seconds(kernel, problem, backward) for backward in (False, True)]
        verdicts.append(Verdict(kernel.name, reason, *times))
    return verdicts


def choose(problem: GridProblem, backward: bool, may_spread: bool = True, may_mix: bool = True) -> GridKernel:
    """The cheapest kernel that can run.

    Args:
        problem: the shape of the call.
        backward: True for the backward pass.
        may_spread: False leaves out the kernels that spread rounding errors over the grid, while there are others.
            Default True.
        may_mix: False leaves out the kernels that mix channels. Default True.

    Raises:
        ValueError: if there is nothing to compute.
        RuntimeError: if a kernel has no constants.
    """
    if problem.is_empty:
        raise ValueError(f"no kernel can run: {_EMPTY.format(problem=problem)}")
    return _cheapest(problem, backward, may_spread, may_mix, generation())


def choose_by_sizes(problem: GridProblem, backward: bool, differ: Callable[[bool], bool]) -> GridKernel:
    """The cheapest kernel whose rounding errors do not show in outputs that do not see what they come from.

    Args:
        problem: the shape of the call.
        backward: True for the backward pass.
        differ: tells whether the numbers of the call differ in size so that such errors would show, those of different
            channels included (True) or not (False). It is asked only where the choice depends on it.
    """
    chosen = choose(problem, backward)
    if chosen.mixes_channels and differ(True):
        chosen = choose(problem, backward, may_mix=False)
    if chosen.spreads_errors and not chosen.mixes_channels and differ(False):
        chosen = choose(problem, backward, may_spread=False, may_mix=False)
    return chosen


@functools.lru_cache(maxsize=4096)
def _cheapest(problem: GridProblem, backward: bool, may_spread: bool, may_mix: bool, generation: int) -> GridKernel:
    """The choice; ``generation`` is a part of the cache's key alone, so that new constants make it anew."""
    # Never empty: "spectral" runs everywhere and mixes no channels.
    able = [
        kernel
        for kernel in GRID_KERNELS.values()
        if (may_mix or not kernel.mixes_channels) and kernel.check(problem) is None
    ]
    # Where there is no other, as for a causal sequence of 100,000, one that spreads errors it is.
    steady = [kernel for kernel in able if may_spread or not kernel.spreads_errors]
    return min(steady or able, key=lambda kernel: seconds(kernel, problem, backward))
