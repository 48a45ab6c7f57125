"""One table of kernels for positions on a grid: name, functions, a check with its reason, a cost.

The table serves the automatic choice, a choice by name, and the explanation of both; there is no other list.
"""

from __future__ import annotations

import difflib
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from lambdanets.kernels.autograd.memory import in_workspace
from lambdanets.kernels.grid import banded, convolution, lambda_first, query_first, row_spectral, spectral
from lambdanets.kernels.grid.costs import calibration, cost_of
from lambdanets.kernels.grid.problem import GridProblem, Work
from lambdanets.kernels.grid.triton import lambda_first as lambda_first_triton
from lambdanets.kernels.grid.triton import query_first as query_first_triton

__all__ = [
    "GRID_KERNELS",
    "GridKernel",
    "Verdict",
    "choose",
    "explain",
    "kernels_for",
    "require",
    "seconds",
    "takes_half",
]

REFERENCE, PORTABLE = "reference", "portable"
# In plain operations and for every call: they are chosen by name only, and have no costs.
PLAIN = (REFERENCE, PORTABLE)


@dataclass(frozen=True)
class GridKernel:
    """A way through the position term of a grid.

    Args:
        name: what ``kernel=`` takes.
        forward: (query, value, table, problem) -> output.
        backward: (grad, query, value, table, problem) -> gradients of query, value, table.
        check: the reason it cannot run on a problem, or None.
        work: what it has to do on (problem, backward), counted.
        joint_forward: (query, value, table, problem, λc) -> output with the content term; None where that is added
            behind it.
        joint_backward: (grad, query, value, table, problem, λc) -> gradients of query, value, table, λc; or None.
        device: the only type of device that it runs on; None for all.
        half: whether it takes half precision as it is; to others it is given as float32.
    """

    name: str
    forward: Callable[..., Tensor]
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]]
    check: Callable[[GridProblem], str | None]
    work: Callable[[GridProblem, bool], Work]
    joint_forward: Callable[..., Tensor] | None = None
    joint_backward: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]] | None = None
    device: str | None = None
    half: bool = False


def _kernel(name: str, module: ModuleType, device: str | None = None, half: bool = False) -> GridKernel:
    return GridKernel(
        name,
        in_workspace(module.forward),
        in_workspace(module.backward),
        module.check,
        module.work,
        in_workspace(module.joint_forward) if hasattr(module, "joint_forward") else None,
        in_workspace(module.joint_backward) if hasattr(module, "joint_backward") else None,
        device,
        half,
    )


GRID_KERNELS: dict[str, GridKernel] = {
    kernel.name: kernel
    for kernel in (
        _kernel("query_first", query_first),
        _kernel("lambda_first", lambda_first),
        _kernel("banded", banded),
        _kernel("convolution", convolution),
        _kernel("row_spectral", row_spectral),
        _kernel("spectral", spectral),
        _kernel("query_first_triton", query_first_triton, device="cuda", half=True),
        _kernel("lambda_first_triton", lambda_first_triton, device="cuda", half=True),
    )
}


def kernels_for(device: str) -> list[str]:
    """Names of the kernels that run on a type of device, whatever the problem."""
    return [name for name, kernel in GRID_KERNELS.items() if kernel.device in (None, device)]


def takes_half(name: str | None, device: str) -> bool:
    """Whether tensors in half precision should reach a kernel as they are, for tensor cores, which sum in float32.

    Args:
        name: of the kernel; None for the planner's choice.
        device: the type of device.
    """
    if name is not None:
        return name in GRID_KERNELS and GRID_KERNELS[name].half
    return any(kernel.half and kernel.device == device for kernel in GRID_KERNELS.values())


def seconds(kernel: GridKernel, problem: GridProblem, backward: bool) -> float:
    """Estimated time of one call: the counted work times the machine's cost of each kind.

    A kernel that has no form for both terms is followed by a pass over the output, which adds the content term.
    """
    work = kernel.work(problem, backward)
    cost = cost_of(problem.device, kernel.name, backward)
    size = 2 if problem.dtype == torch.float64 else 1
    joint = kernel.joint_backward if backward else kernel.joint_forward
    passed = 0 if joint else problem.batch * problem.heads * problem.num_positions * problem.dim_value
    return size * (cost[0] * work.multiply_adds + cost[1] * (work.moved + passed)) + cost[2] * work.calls


@dataclass(frozen=True)
class Verdict:
    """What the planner thinks of one kernel for one problem."""

    name: str
    reason: str | None
    forward_seconds: float
    backward_seconds: float


def explain(problem: GridProblem) -> list[Verdict]:
    """Every kernel with the reason it cannot run (or None) and its estimated times, infinite if it cannot."""
    verdicts = []
    for kernel in GRID_KERNELS.values():
        reason = kernel.check(problem)
        times = [math.inf if reason else seconds(kernel, problem, backward) for backward in (False, True)]
        verdicts.append(Verdict(kernel.name, reason, *times))
    return verdicts


def choose(problem: GridProblem, backward: bool) -> GridKernel:
    """The cheapest kernel that can run, for the forward or the backward pass."""
    return _cheapest(problem, backward, calibration())


@functools.lru_cache(maxsize=4096)
def _cheapest(problem: GridProblem, backward: bool, calibration: int) -> GridKernel:
    able = [kernel for kernel in GRID_KERNELS.values() if kernel.check(problem) is None]
    return min(able, key=lambda kernel: seconds(kernel, problem, backward))


def require(name: str, problem: GridProblem | None = None) -> None:
    """Raise unless ``kernel=name`` exists and, where a problem is given, can run on it.

    Raises:
        ValueError: with the nearest names, or the reason why the kernel cannot run.
    """
    names = [*PLAIN, *GRID_KERNELS]
    if name not in names:
        near = difflib.get_close_matches(str(name), names)
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise ValueError(f"kernel must be None or one of {names}, got {name!r}; {hint}None picks the fastest")
    if problem is not None and name not in PLAIN:
        reason = GRID_KERNELS[name].check(problem)
        if reason is not None:
            raise ValueError(f"kernel={name!r} cannot run here: {reason}; kernel=None picks one that can")
