"""Growth of the cost with the number of positions: ours, other implementations, attention; fitted exponents."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from lambdanets.experiments.bench.bench import Row, time_columns
from lambdanets.experiments.bench.cases import Case
from lambdanets.experiments.bench.contenders import contenders
from lambdanets.experiments.bench.measure import PASSES, passes
from lambdanets.experiments.bench.timing import LEAST_TURNS, Turns
from lambdanets.provenance import environment

__all__ = ["LEAST_POSITIONS", "SIZES", "exponents", "fitted", "run"]

# Side of a square image: n from 49 to 16,384.
SIZES = (7, 10, 14, 20, 28, 40, 56, 80, 112, 128)
DIM = 64
LEAST_POSITIONS = 700  # of a fit: below, a call's fixed cost counts more than its growth
# A disturbance of some seconds would meet all turns of one size; it meets a third of them where each has three visits.
VISITS = 3


def run(
    sizes: Sequence[int] = SIZES,
    *,
    seconds: float = 2.0,
    max_seconds: float = 15.0,
    report: Callable[[Case, list[Row]], None] | None = None,
) -> list[Row]:
    """Time against n: global contexts, one example, 64 channels.

    All sizes are visited one after the other, three times; the last visit goes on until the medians are known.

    Args:
        sizes: sides of the image.
        seconds: least time for the turns of a size and pass, over all visits.
        max_seconds: most time for them; what is not known well enough by then is marked as noisy.
        report: called with the rows of each size as its last visit ends.

    Returns:
        A row for each size, contender and pass; a contender that would not fit in memory has none.
    """
    where, rows = environment(), []
    group = {size: _Size(size) for size in sizes}
    least = math.ceil(LEAST_TURNS / VISITS)
    for visit in range(VISITS):
        last = visit == VISITS - 1
        for size in group.values():
            for turns in size.turns.values():
                turns.take(seconds / VISITS, max_seconds if last else 0, least)
            if last:
                measured = [{**row, **where} for row in size.rows()]
                rows += measured
                if report is not None:
                    report(size.case, measured)
    return rows


class _Size:
    """The contenders at one size, and their turns in both passes."""

    def __init__(self, size: int):
        self.case = Case(1, (size, size), DIM)
        with torch.no_grad():
            everything = list(contenders(self.case, kernels=False))
        names = ("lambdanets", "lucidrains", "timm", "attention")
        self.group = [contender for contender in everything if contender.name in names]
        calls = [passes(contender.module, contender.x) for contender in self.group]
        self.turns = {way: Turns([call[way] for call in calls]) for way in PASSES}

    def rows(self) -> list[Row]:
        """Return a row for each pass and contender."""
        return [
            {
                "positions": self.case.positions,
                "dim": DIM,
                "batch": 1,
                "contender": contender.name,
                "pass": way,
                **time_columns(timing),
                "note": contender.note,
            }
            for way, turns in self.turns.items()
            for contender, timing in zip(self.group, turns.timings(), strict=True)
        ]


def fitted(row: Row) -> bool:
    """Return True if a row takes part in the fit of its contender and pass: it is not noisy, and n is large enough."""
    return int(row["positions"]) >= LEAST_POSITIONS and not row.get("noisy")


def exponents(rows: Sequence[Row]) -> dict[tuple[str, str], float]:
    """Return the slope of log time against log n by contender and pass, over the rows that :func:`fitted` accepts."""
    points: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in filter(fitted, rows):
        key = (str(row["contender"]), str(row["pass"]))
        points.setdefault(key, []).append((math.log(int(row["positions"])), math.log(float(row["median_ms"]))))
    return {key: _slope(pairs) for key, pairs in points.items() if len(pairs) > 1}


def _slope(pairs: Sequence[tuple[float, float]]) -> float:
    x, y = np.array(pairs).T
    return float(np.polyfit(x, y, 1)[0])
