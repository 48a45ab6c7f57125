"""How cost grows with the number of positions: ours, other implementations, attention; fitted exponents."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from lambdanets.experiments.bench.bench import Row, environment
from lambdanets.experiments.bench.cases import Case
from lambdanets.experiments.bench.contenders import contenders
from lambdanets.experiments.bench.measure import interleaved, passes

__all__ = ["SIZES", "exponents", "run"]

# Side of a square image: n from 49 to 16,384.
SIZES = (7, 10, 14, 20, 28, 40, 56, 80, 112, 128)
DIM = 64


def run(
    sizes: Sequence[int] = SIZES,
    *,
    seconds: float = 0.5,
    report: Callable[[Case, list[Row]], None] | None = None,
) -> list[Row]:
    """Time against n: global contexts, one example, 64 channels.

    Args:
        sizes: sides of the image.
        seconds: about how long each contender is timed in each pass.
        report: called with the rows of each size as it ends.

    Returns:
        A row for each size, contender and pass; a contender that would not fit in memory has none.
    """
    where, rows = environment(), []
    for size in sizes:
        case = Case(1, (size, size), DIM)
        group = [
            contender
            for contender in _contenders(case)
            if contender.name in ("lambdanets", "lucidrains", "timm", "attention")
        ]
        calls = [passes(contender.module, contender.x) for contender in group]
        measured: list[Row] = []
        for way in ("forward", "forward+backward"):
            timings = interleaved([call[way] for call in calls], seconds=seconds, least=2)
            measured += [
                {
                    "positions": case.positions,
                    "dim": DIM,
                    "batch": 1,
                    "contender": contender.name,
                    "pass": way,
                    "median_ms": round(timing.median * 1e3, 4),
                    "repeats": timing.repeats,
                    "note": contender.note,
                    **where,
                }
                for contender, timing in zip(group, timings, strict=True)
            ]
        rows += measured
        if report is not None:
            report(case, measured)
    return rows


def _contenders(case: Case) -> list:
    with torch.no_grad():
        return list(contenders(case, kernels=False))


def exponents(rows: Sequence[Row], least_positions: int = 700) -> dict[tuple[str, str], float]:
    """Slope of log time against log n from ``least_positions`` on, by contender and pass."""
    points: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in rows:
        if int(row["positions"]) >= least_positions:
            key = (str(row["contender"]), str(row["pass"]))
            points.setdefault(key, []).append((math.log(int(row["positions"])), math.log(float(row["median_ms"]))))
    return {key: _slope(pairs) for key, pairs in points.items() if len(pairs) > 1}


def _slope(pairs: Sequence[tuple[float, float]]) -> float:
    x, y = np.array(pairs).T
    return float(np.polyfit(x, y, 1)[0])
