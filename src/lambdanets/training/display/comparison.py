"""Several runs side by side: a table of what they have reached, and their curves in one picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.cells import cell_len, set_cell_size
from rich.console import Console

from lambdanets.console import one_line, print_whole
from lambdanets.figure_text import as_drawn
from lambdanets.files import check_folder, make_folder
from lambdanets.training.display.plots import save_figure, scale_by_factors
from lambdanets.training.display.progress import format_seconds
from lambdanets.training.runs.folder import Run
from lambdanets.training.runs.overview import Summary, finished_epochs

# Runs that can be told apart by their colours.
MOST_RUNS = 20
_FORMATS = (".png", ".svg", ".pdf")
_NAME = 60
# The columns of the table that are aligned to the right.
_NUMBERS = range(2, 6)


def print_runs(console: Console, runs: Sequence[Summary]) -> None:
    """A line for each run; names are whole, whatever the width."""
    lines = [("data", "model", "epochs", "validation", "test", "time", "status", "run"), *map(_cells, runs)]
    widths = [max(cell_len(line[column]) for line in lines) for column in range(len(lines[0]) - 1)]
    for *cells, run_folder in lines:
        padded = [
            cell.rjust(width - cell_len(cell) + len(cell)) if column in _NUMBERS else set_cell_size(cell, width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        print_whole(console, "  ".join([*padded, run_folder]))
    for run in runs:
        if run.problem:
            print_whole(console, f"damaged: {one_line(run.problem)}")


def _cells(run: Summary) -> tuple[str, ...]:
    return (
        one_line(run.data),
        one_line(run.model),
        f"{run.epochs}/{run.all_epochs}" if run.all_epochs else "",
        _percent(run.validation_top1),
        _percent(run.test_top1),
        format_seconds(run.seconds) if run.epochs else "",
        run.status,
        one_line(run.run),
    )


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.2%}"


def plot_runs(path: Path, runs: Sequence[Path]) -> None:
    """Draw the curves of runs together: training and validation loss, and the validation images' error.

    Args:
        path: the picture to write; its ending says the format (.png, .svg, .pdf).
        runs: the run folders.

    Raises:
        FileNotFoundError: there is no such run.
        ValueError: a run has no finished epoch or is damaged, there are too many runs, or the format is another.
    """
    if path.suffix.lower() not in _FORMATS:
        raise ValueError(f"the picture {path} ends in none of {', '.join(_FORMATS)}; give it one of these endings")
    check_folder(path.parent)
    if len(runs) > MOST_RUNS:
        raise ValueError(f"{len(runs)} runs cannot be told apart in one picture; give at most {MOST_RUNS}")
    curves = []
    for run in runs:
        rows = finished_epochs(Run.open(run).path)
        if not rows:
            raise ValueError(f"the run {run} has no finished epoch to draw; leave it out")
        curves.append(rows)
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    panels = figure.subplots(1, 3)
    drawn = (
        ("training loss (augmented, labels smoothed)", lambda row: row["train_loss"]),
        ("validation loss", lambda row: row["validation_loss"]),
        ("validation error (%)", lambda row: 100 * (1 - row["validation_top1"])),
    )
    colours = [f"C{index}" for index in range(10)]
    for axes, (title, value) in zip(panels, drawn, strict=True):
        for index, rows in enumerate(curves):
            style: dict[str, Any] = {"color": colours[index % 10], "linestyle": "-" if index < 10 else "--"}
            marker = "o" if len(rows) < 3 else None
            axes.plot([row["epoch"] for row in rows], [value(row) for row in rows], marker=marker, **style)
        axes.set(title=title, xlabel="epoch")
        axes.grid(alpha=0.3, which="both")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    scale_by_factors(panels[2], [drawn[2][1](row) for rows in curves for row in rows])
    labels, style = as_drawn(_labels(runs, curves))
    lines = panels[0].get_lines()
    legend = figure.legend(lines, labels, loc="outside lower center", ncols=1 if len(runs) < 5 else 2, frameon=False)
    for text in legend.get_texts():
        text.set(**style)
    make_folder(path.parent)
    save_figure(figure, path)


def _labels(runs: Sequence[Path], curves: Sequence[Sequence[dict[str, Any]]]) -> list[str]:
    """The runs' names, as short as they tell them apart, with the least error of each."""
    whole = [os.path.normpath(run) for run in runs]
    above = [os.path.dirname(os.path.abspath(name)) for name in whole]
    # Two drives of Windows have nothing in common.
    one_drive = len({os.path.splitdrive(folder)[0] for folder in above}) == 1
    labels = []
    for name, rows in zip(whole, curves, strict=True):
        short = os.path.relpath(name, os.path.commonpath(above)) if one_drive else os.path.abspath(name)
        short = short if len(short) <= _NAME else f"…{short[1 - _NAME :]}"
        best = min(100 * (1 - row["validation_top1"]) for row in rows)
        labels.append(f"{short} (least validation error {best:.2f} %)")
    return labels
