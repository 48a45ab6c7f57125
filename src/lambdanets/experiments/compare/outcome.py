"""The findings of a study, as data: sentences, tables and plots, from which the report makes its files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from lambdanets.experiments.compare.cell import Done
from lambdanets.names import count

__all__ = [
    "Axis",
    "Claim",
    "Outcome",
    "Plot",
    "Point",
    "Series",
    "Table",
    "code_warning",
    "effort_line",
    "four_digits",
    "machine_line",
    "quoted",
    "size_warning",
]


@dataclass(frozen=True)
class Claim:
    """A sentence on what was expected.

    Args:
        text: what was found, in words, with figures.
        held: True if it was as expected, False if not, None if there is no answer.
    """

    text: str
    held: bool | None


@dataclass(frozen=True)
class Table:
    """A table.

    Args:
        name: of its files.
        title: above it.
        columns: headings; the first column is text.
        rows: the cells as they are shown; "" for none.
        notes: sentences below it.
        bad: numbers of the rows that lost, which are shown as such.
        text: numbers of the further columns that are text; the others are numbers.
        marked: cells that lost in a row that did not as a whole, as numbers of their row and column.
    """

    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    bad: frozenset[int] = frozenset()
    text: frozenset[int] = frozenset()
    marked: frozenset[tuple[int, int]] = frozenset()


@dataclass(frozen=True)
class Axis:
    """An axis of a plot: what it shows, with its unit, and True for a logarithmic scale."""

    label: str
    log: bool = False


@dataclass(frozen=True)
class Point:
    """A point of a plot.

    Args:
        x: its place.
        y: its place.
        low: lower end of the interval of y, if there is one.
        high: upper end.
        text: shown when one points at it, beside the series' name.
    """

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    text: str = ""


@dataclass(frozen=True)
class Series:
    """Points of one name."""

    name: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Plot:
    """A plot.

    Args:
        name: of its files.
        title: above it.
        x: the horizontal axis.
        y: the vertical axis.
        series: what it shows.
        lines: True connects the points of a series.
        front: draws the Pareto front of the points, of those with a high y and a "low" or a "high" x.
    """

    name: str
    title: str
    x: Axis
    y: Axis
    series: Sequence[Series]
    lines: bool = False
    front: Literal["low", "high"] | None = None


@dataclass(frozen=True)
class Outcome:
    """The findings of a study.

    Args:
        name: of the study.
        title: of the report.
        question: that the study asks.
        claims: what was expected of it and what was found.
        tables: the tables.
        plots: the plots.
        notes: how it was done, in sentences.
        environment: machine and versions, in one line.
        warnings: what one must know before one reads it, as what is missing; at the top of the page.
    """

    name: str
    title: str
    question: str
    claims: Sequence[Claim]
    tables: Sequence[Table]
    plots: Sequence[Plot]
    notes: Sequence[str] = field(default=())
    environment: str = ""
    warnings: Sequence[str] = field(default=())


def machine_line(cells: Sequence[Done]) -> str:
    """Machine and versions of the cells in one line."""
    if not cells:
        return ""

    def each(name: str) -> str:
        return ", ".join(dict.fromkeys(str(done.environment.get(name, "")) for done in cells))

    where: dict[str, None] = {}
    for done in cells:
        kind, device = "trainings" if "seed" in done.config else "measurements", done.result.get("device", "cpu")
        threads = done.environment.get("threads", "")
        on_cpu = f"with {threads} {'thread' if threads == 1 else 'threads'}"
        where[f"{kind} {on_cpu if device == 'cpu' else f'on {device}'}"] = None
    told = ", ".join(where)
    return (
        f"{each('machine')}, {each('cores')} cores, {each('precision')}; {told}; PyTorch {each('torch')}, timm "
        f"{each('timm')}, lambdanets {each('lambdanets')} ({each('commit')}); {each('date')}"
    )


def four_digits(value: float) -> str:
    """Return a number with four digits, and all before the point: "0.3482", "12.35", "35,078"."""
    digits = 3 - math.floor(math.log10(abs(value))) if value else 0
    return f"{round(value, max(0, digits)):,.10g}"


def quoted(names: Sequence[str]) -> str:
    """Return names in a sentence: a row's may have commas."""
    return ", ".join(f"“{name}”" for name in names)


def size_warning(cells: Sequence[Done]) -> list[str]:
    """Return a warning that the cells are of the quick size, if they are."""
    if not cells or cells[0].config["scale"] != "quick":
        return []
    trained = next((done for done in cells if done.kind == "train" and "epochs" in done.config), None)
    how = ""
    if trained and trained.data:
        how = f": {count(trained.config['epochs'], 'epoch', 'epochs')} on {trained.data['spec']}"
    return [f"Quick size{how}. Rows of full trainings may differ in other ways."]


def code_warning(cells: Sequence[Done]) -> list[str]:
    """Return a warning for each kind of measurement that was not made with one version of the code."""
    found = []
    kinds = {
        "search": "Learning rates",
        "train": "Accuracies",
        "memory": "Memory and multiply-adds",
        "speed": "Times",
        "sizes": "Times and memory",
    }
    for kind, what in kinds.items():
        commits = {str(done.environment.get("commit", "")) for done in cells if done.kind == kind}
        if len(commits) > 1:
            shown = ", ".join(sorted(commits))
            found.append(f"{what} were measured with several versions of the code ({shown}), in which rows may differ.")
    return found


def effort_line(cells: Sequence[Done]) -> str:
    """Number of the cells, hours that they took, and their size."""
    hours = sum(done.seconds for done in cells) / 3600
    number = count(len(cells), "cell", "cells")
    return f"{number}, {hours:.2f} hours of computing in all ({cells[0].config['scale']} size)."
