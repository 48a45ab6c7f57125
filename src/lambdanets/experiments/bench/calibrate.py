"""Fit of the planner's constants to a machine: seconds a multiply-add, moved element and call of each kernel."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from lambdanets.experiments.bench.cases import CASES, Case
from lambdanets.experiments.bench.contenders import grid_inputs
from lambdanets.experiments.bench.timing import Turns, wall_clock
from lambdanets.kernels.autograd.memory import Workspace
from lambdanets.kernels.grid.contract import GridInputs, GridKernel
from lambdanets.kernels.grid.planner import GRID_KERNELS
from lambdanets.provenance import environment

__all__ = ["CALIBRATION_CASES", "KernelTime", "calibrate", "fit", "time_kernels"]

# Beside the benchmark's: few and many heads, shallow and deep, so that the constants do not fit one ratio only.
CALIBRATION_CASES: tuple[Case, ...] = (
    *CASES,
    Case(32, (14, 14), 64),
    Case(2, (14, 14), 512, num_heads=8),
    Case(4, (20, 20), 64, num_heads=16, dim_key=8),
    Case(4, (28, 28), 64, num_heads=8, dim_key=8),
    Case(1, (40, 40), 128),
    Case(2, (256,), 64),
    Case(4, (512,), 128, 15),
    Case(1, (2048,), 64, 31),
    Case(2, (28, 28), 64, 15),
    Case(2, (56, 56), 64, 3),
    Case(1, (8, 8, 8), 64),
    Case(1, (12, 12, 12), 32, 3),
)

# A kernel that takes longer than this on a problem is never chosen for it: it is timed once there, and its constants
# are fitted without, unless it takes so long on every problem.
LONGEST_SECONDS = 0.5


@dataclass(frozen=True)
class KernelTime:
    """Time of one pass of a kernel.

    Args:
        kernel: its name.
        direction: "forward" or "backward".
        work: multiply-adds, moved elements, calls.
        seconds: median of the turns.
        slow: True if it takes longer than ``LONGEST_SECONDS``: then it was one call.
    """

    kernel: str
    direction: str
    work: tuple[float, float, float]
    seconds: float
    slow: bool


def fit(works: Sequence[Sequence[float]], seconds: Sequence[float]) -> list[float]:
    """Return the non-negative constants that explain the times with the least relative error.

    Args:
        works: (multiply-adds, moved elements, calls) of each measurement.
        seconds: its time.

    Returns:
        Seconds for one of each.
    """
    # Columns differ by ten orders of magnitude: each is scaled to one, which the solver needs.
    relative = np.asarray(works, dtype=np.float64) / np.asarray(seconds, dtype=np.float64)[:, None]
    scale = relative.max(axis=0)
    scale[scale == 0] = 1
    constants, _ = nnls(relative / scale, np.ones(len(seconds)))
    return [float(f"{constant:.4g}") for constant in constants / scale]


def calibrate(
    cases: Sequence[Case] = CALIBRATION_CASES,
    *,
    seconds: float = 1.0,
    max_seconds: float = 5.0,
    report: Callable[[Case], None] | None = None,
) -> dict[str, Any]:
    """Time every kernel on every case and fit its constants.

    Args:
        cases: the problems.
        seconds: least time for the turns of a case.
        max_seconds: most time for them.
        report: called as a case ends.

    Returns:
        The content of ``costs.json``: the machine, and for each kernel and direction the three constants.
    """
    samples: dict[tuple[str, str], list[KernelTime]] = {}
    for case in cases:
        for time in time_kernels(case, seconds, max_seconds):
            samples.setdefault((time.kernel, time.direction), []).append(time)
        if report is not None:
            report(case)
    kernels: dict[str, dict[str, list[float]]] = {}
    for (name, direction), times in samples.items():
        fitted = [time for time in times if not time.slow] or times
        kernels.setdefault(name, {})[direction] = fit([time.work for time in fitted], [time.seconds for time in fitted])
    return {"measured_on": environment(), "devices": {"cpu": kernels}}


def time_kernels(case: Case, seconds: float, max_seconds: float) -> list[KernelTime]:
    """Time both passes of every kernel that can run a case, turn by turn.

    Inputs and outputs have the layout of a layer's projection, depth in front of the positions: the times include the
    transpositions that a kernel needs.

    Args:
        case: the problem.
        seconds: least time for the turns.
        max_seconds: most time for them.
    """
    inputs = grid_inputs(case)
    inputs = replace(inputs, query=_depth_first(inputs.query), value=_depth_first(inputs.value))
    problem = inputs.problem
    grad = _depth_first(torch.randn(*inputs.query.shape[:3], problem.dim_value))
    found, entries, calls = [], [], []
    for name, kernel in GRID_KERNELS.items():
        if kernel.check(problem) is not None:
            continue
        for direction, call in (
            ("forward", functools.partial(_forward, kernel, inputs)),
            ("backward", functools.partial(_backward, kernel, grad, inputs)),
        ):
            call()
            once = wall_clock(call)
            work = kernel.work(problem, direction == "backward")
            entry = name, direction, (work.multiply_adds, work.moved, work.calls)
            if once < LONGEST_SECONDS:
                entries.append(entry)
                calls.append(call)
            else:
                found.append(KernelTime(*entry, once, slow=True))
    turns = Turns(calls)
    turns.take(seconds, max_seconds)
    timings = zip(entries, turns.timings(), strict=True)
    return [*found, *(KernelTime(*entry, timing.seconds.median, slow=False) for entry, timing in timings)]


def _forward(kernel: GridKernel, inputs: GridInputs) -> Tensor:
    with Workspace.for_thread() as workspace:
        return _depth_first(kernel.forward(inputs, workspace))


def _backward(kernel: GridKernel, grad: Tensor, inputs: GridInputs) -> list[Tensor]:
    with Workspace.for_thread() as workspace:
        return list(map(_depth_first, kernel.backward(grad, inputs, workspace)[:2]))


def _depth_first(tensor: Tensor) -> Tensor:
    """Return the same numbers with the last two axes swapped in memory."""
    return tensor.transpose(2, 3).contiguous().transpose(2, 3)
