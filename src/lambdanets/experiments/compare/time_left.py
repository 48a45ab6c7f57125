"""An estimate of how long the cells of a study that are left will take, by those that are done."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping

from lambdanets.experiments.compare.cell import Cell, Done
from lambdanets.experiments.compare.study import Study

__all__ = ["seconds_left"]


def seconds_left(study: Study, done: Mapping[Cell, Done], left: Mapping[Cell, float], jobs: int) -> float:
    """Estimate how long the cells that are left will take.

    Each takes as long as the cells of its row and kind that are done. Where there are none, it takes what the study
    expects by what was measured, in proportion to the cells that are done of which it expects something, too; else as
    long as cells of its kind, or as any, in proportion to their weights.

    Args:
        study: the study.
        done: the cells that are done, at least one.
        left: the others, with the seconds that each has been running.
        jobs: cells that run at the same time, but those that run alone.

    Returns:
        Seconds.
    """
    results = list(done.values())
    rates: dict[tuple[str, ...], list[float]] = {}
    for cell, result in done.items():
        for group in _groups(cell):
            rates.setdefault(group, []).append(result.seconds / cell.weight)
    expected = {cell: study.expected_seconds(cell.config, results) for cell in (*done, *left)}
    # Of resumed cells that earlier versions ran, the last part alone was counted: the higher median passes by it.
    factor = statistics.median_high([done[cell].seconds / time for cell in done if (time := expected[cell])] or [1.0])

    def whole(cell: Cell) -> float:
        own, *others = _groups(cell)
        time = expected[cell]
        if own not in rates and time is not None:
            return factor * time
        group = next(group for group in (own, *others) if group in rates)
        return cell.weight * statistics.median_high(rates[group])

    def rest(chosen: Callable[[Cell], bool]) -> list[float]:
        return [max(0.0, whole(cell) - ran) for cell, ran in left.items() if chosen(cell)]

    beside = rest(lambda cell: not cell.alone)
    return sum(rest(lambda cell: cell.alone)) + max(sum(beside) / jobs, max(beside, default=0.0))


def _groups(cell: Cell) -> list[tuple[str, ...]]:
    """Cells that take about as long by weight, the nearest first: of a row and kind, of a kind, all."""
    kind, row = cell.config["kind"], cell.config["row"]
    return [(kind, row), (kind,), ()]
