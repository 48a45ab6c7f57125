"""Accuracies of the rows of a study: by seed with their means and differences, in words, in tables and in a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lambdanets.experiments.compare.cell import Done
from lambdanets.experiments.compare.outcome import Axis, Plot, Point, Series, four_digits, quoted
from lambdanets.experiments.compare.statistics import Mean, Paired, mean_of, paired_difference

__all__ = [
    "SMALL_SAMPLES",
    "Scores",
    "accuracies",
    "accuracy_cells",
    "accuracy_columns",
    "accuracy_note",
    "accuracy_plot",
    "marked",
    "scores_of",
    "signed",
    "told_accuracy",
    "told_p",
    "unfinished_warning",
    "with_interval",
]

SMALL_SAMPLES = (
    "Of few seeds such an interval is too narrow: with normal errors it covers the true mean in about 70 of 100 cases "
    "with 3 seeds, in 85 with 5, in 91 with 10. So marks and verdicts need Student's t interval too, which allows for "
    "few."
)

SHARED_EXAMPLES = (
    "Folds share most of the examples that they are trained on, so that their accuracies depend on each other: for "
    "marks and verdicts Student's t interval is widened for it (Nadeau and Bengio 2003)."
)


@dataclass(frozen=True)
class Scores:
    """Accuracies of a row.

    Args:
        accuracies: of the images or examples to test on by seed, or another unit, in percent.
        accuracy: their mean; None without any.
        difference: to those of the row that it is compared with, paired by seed, in points of percent; None for a row
            that is compared with none.
        diverged: seeds whose training diverged.
        overlap: of folds, which share examples to train on, those tested over those trained on; 0 of seeds.
    """

    accuracies: Mapping[int, float]
    accuracy: Mean | None
    difference: Paired | None
    diverged: Sequence[int]
    overlap: float


def accuracies(cells: Sequence[Done], name: str) -> dict[int, float]:
    """Return the accuracies of a row's trainings on the test images in percent, by seed."""
    found = {
        done.config["seed"]: 100 * done.result["test_top1"]
        for done in cells
        if done.row == name and done.kind == "train" and "test_top1" in done.result
    }
    return dict(sorted(found.items()))


def scores_of(cells: Sequence[Done], name: str, baseline: str, overlap: float = 0.0) -> Scores:
    """Return the accuracies of a row beside those of the first row; ``overlap`` as of ``Scores``."""
    found = accuracies(cells, name)
    trained = [done for done in cells if done.row == name and done.kind == "train"]
    return Scores(
        found,
        mean_of(list(found.values())) if found else None,
        None if name == baseline else paired_difference(found, accuracies(cells, baseline), overlap),
        sorted(done.config["seed"] for done in trained if done.result.get("diverged")),
        overlap,
    )


def with_interval(mean: Mean | None, digits: int = 2) -> str:
    """A mean with its interval: "71.30 (70.9 to 71.7)"."""
    if mean is None:
        return ""
    interval = "" if mean.low is None else f" ({mean.low:.{digits}f} to {mean.high:.{digits}f})"
    return f"{mean.mean:.{digits}f}{interval}"


def signed(difference: Paired | None) -> str:
    """A difference with its interval: "+0.31 (−0.10 to 0.70)"."""
    if difference is None:
        return ""
    text = with_interval(difference.difference)
    return ("+" if difference.difference.mean >= 0 else "") + text


def told_p(difference: Paired | None) -> str:
    """The p-value of a difference, "" for none."""
    p = None if difference is None else difference.p
    return "" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def marked(rows: Sequence[Scores]) -> frozenset[int]:
    """Return the numbers of the rows that lost: a training diverged, or a verdict's bounds are below 0."""
    return frozenset(number for number, row in enumerate(rows) if row.diverged or _is_below(row.difference))


def _is_below(difference: Paired | None) -> bool:
    return difference is not None and difference.bounds is not None and difference.bounds[1] < 0


def told_accuracy(row: Scores, unit: str = "seed") -> str:
    """A row's accuracy with its interval, and the seeds, or other units, whose training diverged."""
    text = with_interval(row.accuracy)
    return f"{text} diverged with {unit} {', '.join(map(str, row.diverged))}".strip() if row.diverged else text


def accuracy_columns(baseline: str, unit: str = "seed") -> list[str]:
    """Return the headings of :func:`accuracy_cells`."""
    return ["test accuracy, % (95 %)", f"difference to {baseline} (95 %)", "p", f"{unit}s"]


def accuracy_cells(row: Scores, unit: str = "seed") -> list[str]:
    """Return a row's cells of a table: accuracy, difference to the first row, p, number of seeds or other units."""
    return [told_accuracy(row, unit), signed(row.difference), told_p(row.difference), str(len(row.accuracies))]


def accuracy_note(unit: str = "seed") -> str:
    """Return what these cells mean."""
    return (
        f"Means over {unit}s with BCa bootstrap intervals; differences are paired by {unit}; p is a permutation "
        f"test's, of n {unit}s at least 2^(1 − n), and not corrected for the number of rows. Marked rows diverged, or "
        "are below the one they are compared with, by the whole interval that is shown and by Student's t interval."
        f"{' ' + SHARED_EXAMPLES if unit == 'fold' else ''}"
    )


def unfinished_warning(rows: Mapping[str, Scores], unit: str = "seed") -> list[str]:
    """Return a warning of the rows of which trainings are missing, that others have."""
    numbers = {name: len(row.accuracies) + len(row.diverged) for name, row in rows.items()}
    most = max(numbers.values(), default=0)
    none = [name for name, number in numbers.items() if number == 0]
    few = [f"{name} ({number} of {most} {unit}s)" for name, number in numbers.items() if 0 < number < most]
    warnings = [f"Not finished: there are no trainings yet of {quoted(none)}."] if none else []
    return [*warnings, *([f"Not finished: trainings are missing of {quoted(few)}."] if few else [])]


def accuracy_plot(
    name: str, title: str, label: str, costs: Mapping[str, float | None], rows: Mapping[str, Scores]
) -> Plot:
    """Return the plot of accuracy against a cost, of which little is good.

    Args:
        name: of its files.
        title: above it.
        label: of the cost.
        costs: by row, None where it was not measured.
        rows: by name; rows without an accuracy are left out.
    """
    series = []
    for row, scores in rows.items():
        x, mean = costs[row], scores.accuracy
        if x is not None and mean is not None:
            series.append(Series(row, [Point(x, mean.mean, mean.low, mean.high, f"{label}: {four_digits(x)}")]))
    return Plot(name, title, Axis(label, log=True), Axis("test accuracy, %"), series, front="low")
