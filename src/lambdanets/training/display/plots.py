"""Pictures of a training and of its mistakes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lambdanets.figure_text import as_drawn
from lambdanets.files import replacing

# Up to here a confusion matrix has room for a number in every cell, and for a name on every row.
_CLASSES_WITH_NUMBERS = 20
_CLASSES_WITH_NAMES = 60
_MISTAKES_LISTED = 20
# Errors that differ by less are on an even scale.
_LEAST_FACTOR = 4


def save_figure(figure: Figure, path: Path) -> None:
    """Write a picture in the format that the path's ending names."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)


def _set_title(figure: Figure, title: str) -> None:
    (drawn,), style = as_drawn([title])
    figure.suptitle(drawn, **style)


def plot_curves(path: Path, rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """Draw loss, error and learning rate against the epoch.

    Args:
        path: the picture to write.
        rows: the lines of ``metrics.csv``.
        title: stands above.
    """
    figure = Figure(figsize=(12, 4), layout="constrained")
    loss, error, rate = figure.subplots(1, 3)
    epochs = [row["epoch"] for row in rows]
    marker = "o" if len(rows) < 3 else None
    for part, colour in (("train", "tab:blue"), ("validation", "tab:orange")):
        loss.plot(epochs, [row[f"{part}_loss"] for row in rows], marker=marker, color=colour, label=part)
        errors = [100 * (1 - row[f"{part}_top1"]) for row in rows]
        error.plot(epochs, errors, marker=marker, color=colour, label=part)
    rate.plot(epochs, [row["learning_rate"] for row in rows], marker=marker, color="tab:green")
    loss.set(title="loss (training: augmented, labels smoothed)", xlabel="epoch")
    error.set(title="top-1 error (%)", xlabel="epoch")
    rate.set(title="learning rate", xlabel="epoch")
    scale_by_factors(error, [100 * (1 - row[f"{part}_top1"]) for row in rows for part in ("train", "validation")])
    for axes in (loss, error, rate):
        axes.grid(alpha=0.3, which="both")
        axes.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    loss.legend()
    error.legend()
    _set_title(figure, title)
    save_figure(figure, path)


def scale_by_factors(axes: Any, errors: Sequence[float]) -> None:
    """Give errors, which shrink by factors, a logarithmic scale; below the smallest it is even, so that it has a 0."""
    above_zero = [error for error in errors if error > 0]
    if not above_zero or max(above_zero) < _LEAST_FACTOR * min(above_zero):
        return
    if len(above_zero) == len(errors):
        axes.set_yscale("log")
    else:
        axes.set_yscale("symlog", linthresh=min(above_zero), linscale=0.2)
        axes.set_ylim(bottom=0)
    low, high = min(above_zero), max(above_zero)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    axes.set_yticks([*([0] if len(above_zero) < len(errors) else []), *(tick for tick in ticks if low <= tick <= high)])
    axes.set_yticks([], minor=True)
    axes.yaxis.set_major_formatter("{x:g}")


def frequent_mistakes(confusion: np.ndarray, names: Sequence[str], count: int) -> list[tuple[str, str, int]]:
    """The most frequent mistakes as (true class, predicted class, images), most frequent first."""
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    pairs = [divmod(int(flat), len(names)) for flat in order]
    return [(names[true], names[guess], int(wrong[true, guess])) for true, guess in pairs if wrong[true, guess]]


def plot_confusion(path: Path, confusion: np.ndarray, names: Sequence[str], title: str) -> None:
    """Draw a confusion matrix so that it can be read for ten classes and for a thousand.

    Few classes get a number in every cell, some get their names on the axes, many get a dot for each cell and
    the list of the most frequent mistakes beside it.

    Args:
        path: the picture to write.
        confusion: counts (true class, predicted class).
        names: the classes.
        title: stands above.
    """
    classes = len(names)
    listed = classes > _CLASSES_WITH_NUMBERS
    side = min(max(5.0, 2.5 + 0.45 * classes), 14.0)
    figure = Figure(figsize=(side + (4.5 if listed else 1), side), layout="constrained")
    if listed:
        axes, beside = figure.subplots(1, 2, width_ratios=(side, 3.5))
        _list_mistakes(beside, confusion, names)
    else:
        axes = figure.subplots()
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    # A scale of factors, since what there is to see are the few mistakes, not the diagonal.
    image = axes.imshow(np.ma.masked_equal(shares, 0), cmap="viridis_r", norm=LogNorm(1e-3, 1), interpolation="nearest")
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    axes.set(xlabel="predicted class", ylabel="true class")
    if classes <= _CLASSES_WITH_NAMES:
        drawn, style = as_drawn(names)
        axes.set_xticks(range(classes), drawn, rotation=90, **style)
        axes.set_yticks(range(classes), drawn, **style)
    if classes <= _CLASSES_WITH_NUMBERS:
        for true, guess in zip(*np.nonzero(confusion), strict=True):
            colour = "white" if shares[true, guess] > 0.1 else "black"
            axes.text(guess, true, confusion[true, guess], ha="center", va="center", color=colour, fontsize=9)
    _set_title(figure, title)
    save_figure(figure, path)


def _list_mistakes(axes: Any, confusion: np.ndarray, names: Sequence[str]) -> None:
    mistakes = frequent_mistakes(confusion, names, _MISTAKES_LISTED)
    lines = [f"{count:4d}  {_short(true)} → {_short(guess)}" for true, guess, count in mistakes]
    lines, style = as_drawn(lines, family="monospace")
    text = "most frequent mistakes\n(images, true → predicted)\n\n" + ("\n".join(lines) or "none")
    axes.text(0, 1, text, va="top", fontsize=9, transform=axes.transAxes, **style)
    axes.axis("off")


def _short(name: str) -> str:
    return name if len(name) <= 16 else f"{name[:15]}…"
