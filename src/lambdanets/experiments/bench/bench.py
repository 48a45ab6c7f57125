"""The benchmark of the layer: time and memory beside other implementations, attention and convolution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from lambdanets.experiments.bench.cases import Case
from lambdanets.experiments.bench.contenders import OP, Contender, contenders, grid_problem
from lambdanets.experiments.bench.measure import PASSES, check_results, passes, peak_bytes, saved_bytes
from lambdanets.experiments.bench.timing import Estimate, Timing, Turns
from lambdanets.kernels.grid.planner import GRID_KERNELS
from lambdanets.provenance import environment

__all__ = ["PEERS", "Row", "matrix_rate", "measure_case", "run", "time_columns"]

Row = dict[str, Any]

PEERS = ("lucidrains", "timm")


def time_columns(timing: Timing) -> Row:
    """Return the columns of a timing: milliseconds and the ratio to our time, each with its 95 % interval."""

    def columns(name: str, estimate: Estimate, unit: str = "") -> Row:
        values = {f"median{unit}": estimate.median, f"low{unit}": estimate.low, f"high{unit}": estimate.high}
        return {f"{name}{key}": round(value, 4) for key, value in values.items()}

    seconds = timing.seconds
    milliseconds = Estimate(*(1e3 * value for value in (seconds.median, seconds.low, seconds.high)))
    return {
        **columns("", milliseconds, "_ms"),
        **columns("ratio_", timing.ratio),
        "turns": timing.turns,
        "noisy": "yes" if timing.noisy else "",
    }


def matrix_rate(seconds: float = 0.3) -> float:
    """Return the multiply-adds a second of a large matrix product in float32, for the floor of a layer's time."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    turns = Turns([lambda: a @ b])
    turns.take(seconds)
    return 2048**3 / turns.timings()[0].seconds.low


def _floor_operations(case: Case, backward: bool, projected: bool) -> float:
    """Return the multiply-adds of a pass: content, positions in the cheapest order and, of a layer, the projection."""
    n, value = case.positions, case.dim // case.num_heads
    content = case.batch * n * case.dim_key * value * (case.num_heads + case.intra_depth)
    both = content + (case.batch * n * case.dim * case.projected if projected else 0)
    problem = grid_problem(case)
    able = [kernel for kernel in GRID_KERNELS.values() if kernel.check(problem) is None]
    passes_done = (False, True) if backward else (False,)
    least = (min(kernel.work(problem, way).multiply_adds for kernel in able) for way in passes_done)
    return (3 if backward else 1) * both + sum(least)


def _floor_ms(case: Case, contender: Contender, way: str, rate: float) -> float | str:
    """The floor of a lambda layer or of the op; "" of what computes another function."""
    if contender.name != OP and not contender.checked:
        return ""
    return round(1e3 * _floor_operations(case, way != "forward", projected=contender.name != OP) / rate, 4)


def measure_case(case: Case, *, seconds: float, max_seconds: float, kernels: bool, rate: float) -> list[Row]:
    """Measure all contenders of a case in both passes; outputs and gradients are compared before anything is timed.

    Args:
        case: the shape.
        seconds: least time for the turns of each pass.
        max_seconds: most time for the turns of each pass.
        kernels: each of our kernels is a contender too.
        rate: multiply-adds a second of :func:`matrix_rate`.

    Returns:
        A row for each contender and pass: times in milliseconds, ratios to our layer's time, memory in bytes.
    """
    group = list(contenders(case, kernels))
    check_results(group)
    saved = {contender.name: saved_bytes(contender.module, contender.x) for contender in group}
    calls = [passes(contender.module, contender.x) for contender in group]
    rows = []
    for way in PASSES:
        turns = Turns([call[way] for call in calls])
        turns.take(seconds, max_seconds)
        for contender, call, timing in zip(group, calls, turns.timings(), strict=True):
            rows.append(
                {
                    "case": case.name,
                    "positions": case.positions,
                    "contender": contender.name,
                    "pass": way,
                    **time_columns(timing),
                    "floor_ms": _floor_ms(case, contender, way, rate),
                    "saved_bytes": saved[contender.name],
                    "peak_bytes": peak_bytes(call[way]),
                    "note": contender.note,
                }
            )
    return rows


def run(
    cases: Sequence[Case],
    *,
    seconds: float = 2.0,
    max_seconds: float = 15.0,
    kernels: bool = True,
    report: Callable[[Case, list[Row]], None] | None = None,
) -> list[Row]:
    """Measure cases one after the other.

    Args:
        cases: what to measure.
        seconds: least time for the turns of a case and pass.
        max_seconds: most time for them; what is not known well enough by then is marked as noisy.
        kernels: each of our kernels is a contender too.
        report: called with the rows of each case as it ends.

    Returns:
        The rows, each with the environment.
    """
    where = environment()
    rate = matrix_rate()
    where["gigaflops"] = round(2 * rate / 1e9, 1)
    rows: list[Row] = []
    for case in cases:
        measured = measure_case(case, seconds=seconds, max_seconds=max_seconds, kernels=kernels, rate=rate)
        rows += [{**row, **where} for row in measured]
        if report is not None:
            report(case, rows[-len(measured) :])
    return rows
