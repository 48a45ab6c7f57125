"""The benchmark of the layer: time and memory beside other implementations, attention and convolution."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from typing import Any

import torch

from lambdanets.experiments.bench.cases import Case
from lambdanets.experiments.bench.contenders import contenders, grid_problem
from lambdanets.experiments.bench.measure import (
    check_results,
    interleaved,
    passes,
    peak_bytes,
    saved_bytes,
)
from lambdanets.kernels.grid.planner import GRID_KERNELS
from lambdanets.provenance import package_version, processor, source_commit

__all__ = ["Row", "environment", "matrix_rate", "measure_case", "run"]

Row = dict[str, Any]

PEERS = ("lucidrains", "timm")


def environment() -> Row:
    """What a result has to name: machine, versions, threads, precision, the commit of this package's clone or ""."""
    return {
        "machine": processor(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "precision": "float32",
        "python": platform.python_version(),
        "torch": package_version("torch"),
        "timm": package_version("timm"),
        "lambda-networks": package_version("lambda-networks"),
        "lambdanets": package_version("lambdanets"),
        "commit": source_commit(),
    }


def matrix_rate(seconds: float = 0.3) -> float:
    """Multiply-adds a second of a large matrix product in float32: the machine's own floor is made of it."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    (timing,) = interleaved([lambda: a @ b], seconds=seconds)
    return 2048**3 / timing.low


def _floor_operations(case: Case, backward: bool) -> float:
    """Multiply-adds of a layer's pass: projections, content term, and the order that needs the fewest for positions."""
    n, value = case.positions, case.dim // case.num_heads
    widths = case.num_heads * case.dim_key + case.intra_depth * (case.dim_key + value)
    both = case.batch * n * (case.dim * widths + case.dim_key * value * (case.num_heads + case.intra_depth))
    problem = grid_problem(case)
    able = [kernel for kernel in GRID_KERNELS.values() if kernel.check(problem) is None]
    passes_done = (False, True) if backward else (False,)
    least = (min(kernel.work(problem, way).multiply_adds for kernel in able) for way in passes_done)
    return (3 if backward else 1) * both + sum(least)


def measure_case(case: Case, *, seconds: float, kernels: bool, rate: float) -> list[Row]:
    """All contenders of a case in both passes; outputs and gradients are compared before anything is timed.

    Args:
        case: the shape.
        seconds: about how long each contender is timed, in each pass.
        kernels: whether each of our kernels is a contender too.
        rate: multiply-adds a second of :func:`matrix_rate`.

    Returns:
        A row for each contender and pass: times in milliseconds, memory in bytes.
    """
    group = list(contenders(case, kernels))
    check_results(group)
    saved = {contender.name: saved_bytes(contender.module, contender.x) for contender in group}
    calls = [passes(contender.module, contender.x) for contender in group]
    rows = []
    for way in ("forward", "forward+backward"):
        floor = _floor_operations(case, way != "forward") / rate
        timings = interleaved([call[way] for call in calls], seconds=seconds)
        for contender, call, timing in zip(group, calls, timings, strict=True):
            rows.append(
                {
                    "case": case.name,
                    "positions": case.positions,
                    "contender": contender.name,
                    "pass": way,
                    "median_ms": round(timing.median * 1e3, 4),
                    "q1_ms": round(timing.low * 1e3, 4),
                    "q3_ms": round(timing.high * 1e3, 4),
                    "repeats": timing.repeats,
                    "floor_ms": round(floor * 1e3, 4),
                    "saved_bytes": saved[contender.name],
                    "peak_bytes": peak_bytes(call[way]),
                    "note": contender.note,
                }
            )
    return rows


def run(
    cases: Sequence[Case],
    *,
    seconds: float = 1.0,
    kernels: bool = True,
    report: Callable[[Case, list[Row]], None] | None = None,
) -> list[Row]:
    """Measure cases one after the other.

    Args:
        cases: what to measure.
        seconds: about how long each contender is timed in each pass.
        kernels: whether each of our kernels is a contender too.
        report: called with the rows of each case as it ends.

    Returns:
        The rows, each with the environment.
    """
    where = environment()
    rate = matrix_rate()
    where["gigaflops"] = round(2 * rate / 1e9, 1)
    rows: list[Row] = []
    for case in cases:
        measured = measure_case(case, seconds=seconds, kernels=kernels, rate=rate)
        rows += [{**row, **where} for row in measured]
        if report is not None:
            report(case, rows[-len(measured) :])
    return rows
