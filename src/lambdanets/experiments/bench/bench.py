"""The benchmark of the layer: time and memory beside other implementations, attention and convolution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from lambdanets.experiments.bench.cases import Case
from lambdanets.experiments.bench.contenders import OP, Contender, contenders, grid_problem
from lambdanets.experiments.bench.measure import INFERENCE, PASSES, check_results, passes, peak_bytes, saved_bytes
from lambdanets.experiments.bench.timing import Call, Estimate, Timing, Turns, ratio_of_turns
from lambdanets.kernels.grid.planner import GRID_KERNELS
from lambdanets.provenance import environment

__all__ = ["PEERS", "Row", "matrix_product", "measure_case", "run", "time_columns"]

Row = dict[str, Any]

PEERS = ("lucidrains", "timm")
PRODUCT = 512  # rows and columns of the matrices of the floors' product


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


def matrix_product() -> Call:
    """Return a call that multiplies two large matrices in float32, whose rate is that of the floors.

    512 rows and columns: larger ones are not faster on two cores, and would leave colder caches to the others.
    """
    a, b = torch.randn(PRODUCT, PRODUCT), torch.randn(PRODUCT, PRODUCT)
    return lambda: a @ b


def _floor_operations(case: Case, contender: Contender, way: str) -> float | None:
    """Return the multiply-adds of a pass: content, positions in the cheapest order and, of a layer, the projection.

    None for a contender that computes another function.
    """
    if contender.name != OP and not contender.checked:
        return None
    n, value = case.positions, case.dim // case.num_heads
    projected = 0 if contender.name == OP else case.batch * n * case.dim * case.projected
    content = case.batch * n * case.dim_key * value * (case.num_heads + case.intra_depth)
    problem = grid_problem(case)
    able = [kernel for kernel in GRID_KERNELS.values() if kernel.check(problem) is None]
    passes_done = (False,) if way == INFERENCE else (False, True)
    least = (min(kernel.work(problem, backward).multiply_adds for kernel in able) for backward in passes_done)
    return (1 if way == INFERENCE else 3) * (content + projected) + sum(least)


def _floor_columns(operations: float | None, ratio: Estimate, product_seconds: float) -> Row:
    """Return the columns that compare a call with its floor: its multiply-adds at the rate of the matrix product.

    Args:
        operations: multiply-adds of the floor; None for a call without one, whose columns are empty.
        ratio: of the call's time to the product's, by turns.
        product_seconds: of the product.
    """
    names = ("floor_ms", "over_floor_median", "over_floor_low", "over_floor_high")
    if operations is None:
        return dict.fromkeys(names, "")
    share = operations / PRODUCT**3
    values = (1e3 * share * product_seconds, *(value / share for value in (ratio.median, ratio.low, ratio.high)))
    return {name: round(value, 4) for name, value in zip(names, values, strict=True)}


def measure_case(case: Case, *, seconds: float, max_seconds: float, kernels: bool) -> list[Row]:
    """Measure all contenders of a case in both passes; outputs and gradients are compared before anything is timed.

    Args:
        case: the shape.
        seconds: least time for the turns of each pass.
        max_seconds: most time for the turns of each pass.
        kernels: each of our kernels is a contender too.

    Returns:
        A row for each contender and pass: times in milliseconds, ratios to our layer's time and, of lambda layers and
        the op, to their floor; memory in bytes; the rate of :func:`matrix_product` in gigaflops, measured in the same
        turns.
    """
    group = list(contenders(case, kernels))
    check_results(group)
    saved = {contender.name: saved_bytes(contender.module, contender.x) for contender in group}
    calls = [passes(contender.module, contender.x) for contender in group]
    product = len(group)  # its place among the calls that take turns
    rows = []
    for way in PASSES:
        turns = Turns([*(call[way] for call in calls), matrix_product()])
        turns.take(seconds, max_seconds)
        timings = turns.timings()
        product_seconds = timings[product].seconds.median
        for index, (contender, call) in enumerate(zip(group, calls, strict=True)):
            ratio = ratio_of_turns(turns.seconds(index), turns.seconds(product))
            rows.append(
                {
                    "case": case.name,
                    "positions": case.positions,
                    "contender": contender.name,
                    "pass": way,
                    **time_columns(timings[index]),
                    **_floor_columns(_floor_operations(case, contender, way), ratio, product_seconds),
                    "saved_bytes": saved[contender.name],
                    "peak_bytes": peak_bytes(call[way]),
                    "note": contender.note,
                    "gigaflops": round(2 * PRODUCT**3 / product_seconds / 1e9, 1),
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
    rows: list[Row] = []
    for case in cases:
        measured = measure_case(case, seconds=seconds, max_seconds=max_seconds, kernels=kernels)
        rows += [{**row, **where} for row in measured]
        if report is not None:
            report(case, rows[-len(measured) :])
    return rows
