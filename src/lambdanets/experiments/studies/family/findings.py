"""Findings of the study of whole networks: what the cells say of each, claims, tables, plots."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from lambdanets.experiments import paper
from lambdanets.experiments.bench.measure import INFERENCE, PASSES, TRAINING
from lambdanets.experiments.compare.accuracy import Scores, scores_of, told_accuracy, with_interval
from lambdanets.experiments.compare.cell import Done
from lambdanets.experiments.compare.claims import verdict
from lambdanets.experiments.compare.outcome import Axis, Claim, Plot, Point, Series, Table
from lambdanets.experiments.compare.statistics import Mean
from lambdanets.experiments.studies.family.rows import GROUPS, REFERENCE, ROWS, Network

__all__ = ["Summary", "claims_of", "is_measured", "plots_of", "summaries", "tables_of"]


@dataclass(frozen=True)
class Summary:
    """Findings on a row.

    Args:
        network: what the study has of it.
        result: of its speed cell, {} without one.
        rate: images a second by pass.
        ratio: how many times as many as the reference (median, low, high) by pass.
        accuracy: in percent, measured, or published where no network was trained; None without any.
        scores: what its trainings gave.
    """

    network: Network
    result: Mapping[str, Any]
    rate: Mapping[str, float]
    ratio: Mapping[str, Sequence[float]]
    accuracy: Mean | None
    scores: Scores


def summaries(cells: Sequence[Done]) -> dict[str, Summary]:
    """Return what the cells say of each row; published accuracies only where none was measured."""
    speed = {done.row: done.result for done in cells if done.kind == "speed"}
    reference = {way: median(result["speed"][way]["reference"] for result in speed.values()) for way in PASSES if speed}
    measured = is_measured(cells)
    found = {}
    for name, network in ROWS.items():
        scores = scores_of(cells, name, REFERENCE)
        if name not in speed and not scores.accuracies and not scores.diverged:
            continue
        accuracy = scores.accuracy
        if not measured and network.top1 is not None:
            accuracy = Mean(network.top1, None, None)
        result = speed.get(name, {})
        ratio = {way: result["speed"][way]["ratio"] for way in PASSES if result}
        rate = {way: reference[way] * times[0] for way, times in ratio.items()}
        found[name] = Summary(network, result, rate, ratio, accuracy, scores)
    return found


def is_measured(cells: Sequence[Done]) -> bool:
    """Return True if networks were trained, so that their accuracies stand in place of the published ones."""
    return any(done.kind == "train" for done in cells)


def claims_of(rows: Mapping[str, Summary]) -> list[Claim]:
    """Compare each lambda network with the fastest network of another family that is at least as accurate."""
    claims = []
    for name, row in rows.items():
        if row.network.group not in GROUPS or row.accuracy is None or TRAINING not in row.rate:
            continue
        for group in ("EfficientNet", "SE-ResNet", "ResNet"):
            others = {
                other: summary
                for other, summary in rows.items()
                if summary.network.group == group and summary.accuracy and TRAINING in summary.rate
            }
            equal = [other for other in others if others[other].accuracy.mean >= row.accuracy.mean]  # type: ignore[union-attr]
            if not equal:
                continue
            rival = max(equal, key=lambda other: others[other].rate[TRAINING])
            times, low, high = _faster(row, others[rival], TRAINING)
            accuracy = others[rival].accuracy
            large = f"; the paper's, of large networks, are {paper.TIMES_AS_FAST}"
            published = large if group == "EfficientNet" else ""
            text = (
                f"{name} ({row.accuracy.mean:.1f} %) trains {times:.2f} ({low:.2f} to {high:.2f}) times as many images "
                f"a second as {rival} ({accuracy.mean if accuracy else 0:.1f} %), the fastest {group} here that is at "
                f"least as accurate; expected: more than 1{published}."
            )
            # Accuracies without the seeds that diverged give no answer.
            diverged = row.scores.diverged or others[rival].scores.diverged
            claims.append(Claim(text, None if diverged else verdict(low - 1, high - 1, "more than 0")))
    return claims


def _faster(row: Summary, other: Summary, way: str) -> tuple[float, float, float]:
    """Return a row's images a second over another's (median, low, high), by the ratios of both to the reference."""
    (own, own_low, own_high), (theirs, low, high) = row.ratio[way], other.ratio[way]
    return own / theirs, own_low / high, own_high / low


def _lost(name: str, rows: Mapping[str, Summary]) -> list[str]:
    """Return where a lambda network needs more than a network of another family that is at least as accurate.

    Returns:
        Names of passes, and "peak_bytes".
    """
    row = rows[name]
    if row.network.group not in GROUPS or row.accuracy is None:
        return []
    rivals = [
        other
        for other in rows.values()
        if other.network.group not in GROUPS and other.accuracy and other.accuracy.mean >= row.accuracy.mean
    ]
    lost = [
        way
        for way in PASSES
        if any(way in row.ratio and way in other.ratio and _faster(row, other, way)[2] < 1 for other in rivals)
    ]
    peak = row.result.get("peak_bytes", 0)
    return lost + ["peak_bytes"] * any(other.result.get("peak_bytes", peak) < peak for other in rivals)


def _three_digits(value: float) -> str:
    return f"{value:,.{max(0, 2 - math.floor(math.log10(value)))}f}"


def tables_of(rows: Mapping[str, Summary], measured: bool) -> list[Table]:
    """Return the table of the networks and, where accuracies are published ones, that of their sources."""
    return [_networks_table(rows, measured), *([] if measured else [_sources_table(rows)])]


def _networks_table(rows: Mapping[str, Summary], measured: bool) -> Table:
    columns = ["network", "image size", "parameters, M", "multiply-adds, G", "peak of a training step, MB an image"]
    columns.append(_accuracy_label(measured))
    columns += [f"{way}, images/s (of {REFERENCE})" for way in ("training", "inference")]
    columns += ["paper: parameters, M", f"paper: training, images/s (of {REFERENCE})"]
    places = {"peak_bytes": 4, TRAINING: 6, INFERENCE: 7}
    marked = frozenset((number, places[what]) for number, name in enumerate(rows) for what in _lost(name, rows))
    notes = ["The paper's images a second are at 224x224 pixels on its accelerator."]
    if marked:
        notes.append(
            "Marked where a lambda network needs more memory, or is slower by its whole interval, than a network of "
            "another family here that is at least as accurate."
        )
    lines = [_network_line(name, row) for name, row in rows.items()]
    bad = frozenset(number for number, row in enumerate(rows.values()) if row.scores.diverged)
    return Table("networks", "Networks at their own resolutions", columns, lines, notes, bad, marked=marked)


def _network_line(name: str, row: Summary) -> list[str]:
    def figure(name: str, unit: float, digits: int) -> str:
        return f"{row.result[name] / unit:,.{digits}f}" if name in row.result else ""

    def rate(way: str) -> str:
        return f"{_three_digits(row.rate[way])} ({row.ratio[way][0]:.2f}x)" if way in row.rate else ""

    published, reference = paper.FAMILY.get(row.network.model, {}), paper.FAMILY[ROWS[REFERENCE].model]
    times = published["rate"] / reference["rate"] if "rate" in published else None
    return [
        name,
        str(row.network.image_size),
        figure("parameters", 1e6, 1),
        figure("multiply_adds", 1e9, 2),
        figure("peak_bytes", 1e6, 0),
        told_accuracy(row.scores) if row.scores.accuracies or row.scores.diverged else with_interval(row.accuracy),
        rate(TRAINING),
        rate(INFERENCE),
        f"{published['params']:g}" if published else "",
        "" if times is None else f"{published['rate']:,} ({times:.2f}x)",
    ]


def _sources_table(rows: Mapping[str, Summary]) -> Table:
    lines = [[name, with_interval(row.accuracy), row.network.source] for name, row in rows.items() if row.accuracy]
    columns = ["network", "top-1, %", "source"]
    return Table("sources", "Sources of the accuracies", columns, lines, text=frozenset({2}))


def _accuracy_label(measured: bool) -> str:
    return f"{'test' if measured else 'published ImageNet'} top-1, %"


def plots_of(rows: Mapping[str, Summary], measured: bool) -> list[Plot]:
    """Return the plots of accuracy against speed, of which a family's networks are a line."""
    groups = list(dict.fromkeys(row.network.group for row in rows.values()))

    def plot(name: str, title: str, way: str) -> Plot:
        series = []
        for group in groups:
            points = [
                Point(
                    row.rate[way],
                    row.accuracy.mean,
                    row.accuracy.low,
                    row.accuracy.high,
                    f"{row_name}, {row.rate[way]:.3g} images/s",
                )
                for row_name, row in rows.items()
                if row.network.group == group and row.accuracy and way in row.rate
            ]
            if points:
                series.append(Series(group, sorted(points, key=lambda point: point.x)))
        y = Axis(_accuracy_label(measured))
        return Plot(name, title, Axis("images/s", log=True), y, series, lines=True, front="high")

    return [
        plot("training", "Training speed and accuracy", TRAINING),
        plot("inference", "Inference speed and accuracy", INFERENCE),
    ]
