"""Tables and plots of studies of trained models: what the cells say of each row, and of all rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lambdanets.experiments.bench.measure import INFERENCE, PASSES, TRAINING
from lambdanets.experiments.bench.timing import Estimate, ratio_of_turns
from lambdanets.experiments.compare.cell import Done
from lambdanets.experiments.compare.outcome import Axis, Outcome, Plot, Point, Series, Table
from lambdanets.experiments.compare.statistics import Mean, Paired, mean_of, paired_difference

if TYPE_CHECKING:
    from lambdanets.experiments.compare.trained import TrainedStudy

__all__ = [
    "INFERENCE",
    "SMALL_SAMPLES",
    "TRAINING",
    "Summary",
    "accuracies",
    "is_marked",
    "machine_line",
    "signed",
    "summaries",
    "summarise",
    "times_as_fast",
    "told_accuracy",
    "told_p",
    "with_interval",
]

SMALL_SAMPLES = (
    "Of few seeds such an interval is too narrow: with normal errors it covers the true mean in about 70 of 100 cases "
    "with 3 seeds, in 85 with 5, in 91 with 10. What 3 seeds tell is a hint."
)


@dataclass(frozen=True)
class Summary:
    """Findings of the cells on a row; None for what no cell says.

    Args:
        name: of the row.
        trains: False if only its costs are measured.
        parameters: their number.
        multiply_adds: of one image.
        saved_bytes: kept between the forward and the backward pass, an image.
        peak_bytes: allocated at once in a training step, an image.
        accuracies: of the test images by seed, in percent.
        accuracy: their mean.
        difference: to the baseline's, paired by seed, in points of percent.
        rate: images a second (median, low, high) by pass.
        ratio: how many times as many as the baseline (median, low, high) by pass.
        speed: the run in which that was measured, together with other rows.
        lr: the learning rate that was chosen.
        diverged: seeds whose training diverged.
        paper: the paper's figures.
    """

    name: str
    trains: bool
    parameters: int | None
    multiply_adds: int | None
    saved_bytes: int | None
    peak_bytes: int | None
    accuracies: Mapping[int, float]
    accuracy: Mean | None
    difference: Paired | None
    rate: Mapping[str, Sequence[float]]
    ratio: Mapping[str, Sequence[float]]
    speed: Done | None
    lr: float | None
    diverged: Sequence[int]
    paper: Mapping[str, float]


def summaries(study: TrainedStudy, cells: Sequence[Done]) -> dict[str, Summary]:
    """Return what the cells say of each row that has a cell, in the study's order."""
    base = accuracies(cells, study.baseline)
    runs = sorted((done for done in cells if done.kind == "speed"), key=lambda done: done.environment.get("date", ""))
    found = {}
    for name, row in study.rows.items():
        own = [done for done in cells if done.row == name]
        if not own:
            continue
        trained = [done for done in own if done.kind == "train"]
        memory: Mapping[str, Any] = next((done.result for done in own if done.kind == "memory"), {})
        speed = next((done for done in reversed(runs) if name in done.result[TRAINING]), None)
        times = {way: speed.result[way][name] for way in PASSES} if speed else {}
        scores = accuracies(cells, name)
        found[name] = Summary(
            name=name,
            trains=row.trains,
            parameters=memory.get("parameters"),
            multiply_adds=memory.get("multiply_adds"),
            saved_bytes=memory.get("saved_bytes"),
            peak_bytes=memory.get("peak_bytes"),
            accuracies=scores,
            accuracy=mean_of(list(scores.values())) if scores else None,
            difference=None if name == study.baseline else paired_difference(scores, base),
            rate={way: time["images_per_second"] for way, time in times.items()},
            ratio={way: time["ratio"] for way, time in times.items()},
            speed=speed,
            lr=trained[0].config["lr"] if trained else None,
            diverged=[done.config["seed"] for done in trained if done.result.get("diverged")],
            paper=row.paper,
        )
    return found


def accuracies(cells: Sequence[Done], name: str) -> dict[int, float]:
    """Return the accuracies of a row's trainings on the test images in percent, by seed."""
    found = {
        done.config["seed"]: 100 * done.result["test_top1"]
        for done in cells
        if done.row == name and done.kind == "train" and "test_top1" in done.result
    }
    return dict(sorted(found.items()))


def summarise(study: TrainedStudy, cells: Sequence[Done]) -> Outcome:
    """Return the outcome of a study of trained models."""
    rows = summaries(study, cells)
    return Outcome(
        name=study.name,
        title=study.title,
        question=study.question,
        claims=study.judge(rows),
        tables=_tables(study.baseline, rows),
        plots=_plots(rows),
        notes=_notes(rows, cells),
        environment=machine_line(cells),
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


def times_as_fast(row: Summary | None, other: Summary | None, way: str) -> Estimate | None:
    """Return how many times as many images a second a row computes as another, from the ratios of their turns.

    Args:
        row: a row.
        other: another.
        way: the pass.

    Returns:
        The median ratio with its interval; None if the two were not timed in one run.
    """
    if row is None or other is None or row.speed is None or row.speed is not other.speed:
        return None
    own, theirs = (row.speed.result[way][one.name]["seconds"] for one in (row, other))
    return ratio_of_turns(theirs, own)


def _times(rate: Sequence[float] | None, ratio: Sequence[float] | None) -> str:
    return "" if not rate or not ratio else f"{rate[0]:,.0f} ({ratio[0]:.2f}x)"


def _tables(baseline: str, rows: Mapping[str, Summary]) -> list[Table]:
    accuracy_columns = [
        "row",
        "parameters, M",
        f"of those of {baseline}",
        "test accuracy, % (95 %)",
        f"difference to {baseline} (95 %)",
        "p",
        "seeds",
        "learning rate",
        "paper: parameters, M",
        "paper: ImageNet top-1, %",
    ]
    cost_columns = [
        "row",
        "multiply-adds, M",
        f"training, images/s (of {baseline})",
        f"inference, images/s (of {baseline})",
        "kept for backward, MB an image",
        "peak, MB an image",
    ]
    accuracy_notes = [
        "Means over seeds with BCa bootstrap intervals; differences are paired by seed, p is a permutation test's and "
        "of n seeds at least 2^(1 − n). Marked rows are below the first one with their whole interval, or diverged.",
        SMALL_SAMPLES,
    ]
    cost_notes = [
        "Medians over turns of all models in one process; in brackets the median ratio of a turn. Training is a "
        "forward and a backward pass. Measured on the CPU, whatever the trainings ran on. Costs above the first row's "
        "are marked."
    ]
    trained = [row for row in rows.values() if row.trains]
    base = rows.get(baseline)
    lines = [_accuracy_line(row, base) for row in trained]
    bad = frozenset(number for number, row in enumerate(trained) if is_marked(row.difference, row.diverged))
    costs = [_cost_line(row) for row in rows.values()]
    dearer = [(number, column) for number, row in enumerate(rows.values()) for column in _dearer(row, base)]
    if any("rate" in row.paper for row in rows.values()):
        cost_columns.append("paper: ResNet-50, images/s")
        for line, row in zip(costs, rows.values(), strict=True):
            line.append(f"{row.paper['rate']:,}" if "rate" in row.paper else "")
    return [
        Table("accuracy", "Parameters and accuracy", accuracy_columns, lines, accuracy_notes, bad),
        Table("costs", "Time and memory", cost_columns, costs, cost_notes, marked=frozenset(dearer)),
    ]


def is_marked(difference: Paired | None, diverged: Sequence[int]) -> bool:
    """Return True if a training diverged or the row is below the first one with its whole interval."""
    high = None if difference is None else difference.difference.high
    return bool(diverged) or (high is not None and high < 0)


def told_accuracy(accuracy: Mean | None, diverged: Sequence[int], unit: str = "seed") -> str:
    """A row's accuracy with its interval, and the seeds, or other units, whose training diverged."""
    text = with_interval(accuracy)
    return f"{text} diverged with {unit} {', '.join(map(str, diverged))}".strip() if diverged else text


def _accuracy_line(row: Summary, base: Summary | None) -> list[str]:
    share = row.parameters / base.parameters if base and base.parameters and row.parameters else None
    return [
        row.name,
        "" if row.parameters is None else f"{row.parameters / 1e6:.3f}",
        "" if share is None else f"{share:.2f}",
        told_accuracy(row.accuracy, row.diverged),
        signed(row.difference),
        told_p(row.difference),
        str(len(row.accuracies)),
        "" if row.lr is None else f"{row.lr:g}",
        *(f"{row.paper[name]:g}" if name in row.paper else "" for name in ("params", "top1")),
    ]


def _cost_line(row: Summary) -> list[str]:
    return [
        row.name,
        "" if row.multiply_adds is None else f"{row.multiply_adds / 1e6:.1f}",
        *(_times(row.rate.get(way), row.ratio.get(way)) for way in (TRAINING, INFERENCE)),
        *("" if value is None else f"{value / 1e6:.2f}" for value in (row.saved_bytes, row.peak_bytes)),
    ]


def _dearer(row: Summary, base: Summary | None) -> list[int]:
    """The columns of the table of costs in which a row is above the first one; a time by its whole interval."""

    def above(name: str) -> bool:
        value, first = getattr(row, name), getattr(base, name, None)
        return value is not None and first is not None and value > first

    def slower(way: str) -> bool:
        return way in row.ratio and row.ratio[way][2] < 1

    columns = (
        above("multiply_adds"),
        slower(TRAINING),
        slower(INFERENCE),
        above("saved_bytes"),
        above("peak_bytes"),
    )
    return [number for number, is_dearer in enumerate(columns, start=1) if is_dearer]


def _plots(rows: Mapping[str, Summary]) -> list[Plot]:
    accuracy = Axis("test accuracy, %")

    def plot(name: str, title: str, label: str, value: Mapping[str, float | None]) -> Plot:
        series = []
        for row in rows.values():
            x = value[row.name]
            if x is not None and row.accuracy is not None:
                mean = row.accuracy
                series.append(Series(row.name, [Point(x, mean.mean, mean.low, mean.high, f"{label}: {x:.3g}")]))
        return Plot(name, title, Axis(label, log=True), accuracy, series, front="low")

    saved = {name: None if row.saved_bytes is None else row.saved_bytes / 1e6 for name, row in rows.items()}
    parameters = {name: None if row.parameters is None else row.parameters / 1e6 for name, row in rows.items()}
    times = {name: 1e3 / row.rate[TRAINING][0] if TRAINING in row.rate else None for name, row in rows.items()}
    return [
        plot("parameters", "Parameters and accuracy", "parameters, M", parameters),
        plot("memory", "Memory and accuracy", "kept for backward, MB an image", saved),
        plot("time", "Training time and accuracy", "forward and backward pass, ms an image", times),
    ]


def _notes(rows: Mapping[str, Summary], cells: Sequence[Done]) -> list[str]:
    waiting = [name for name, row in rows.items() if row.trains and not row.accuracies and not row.diverged]
    missing = [f"Not trained yet: {', '.join(waiting)}."] if waiting else []
    trained = [done for done in cells if done.kind == "train"]
    if not trained:
        return missing
    done, data = trained[0], trained[0].data
    config = done.config
    rates = sorted({cell.config["lr"] for cell in cells if cell.kind == "search"})
    hours = sum(cell.seconds for cell in cells) / 3600
    training, validation, test = data["images"]
    return [
        *missing,
        f"Data: {data['spec']}, {training:,} training, {validation:,} validation and {test:,} test images in "
        f"{data['classes']} classes, {data['image_size']}x{data['image_size']} pixels.",
        f"All rows: {config['model']} with blocks {config['model_kwargs']['layers']}, {config['epochs']} epochs in "
        f"batches of {config['batch']}, AdamW with cosine decay, the same order of images, augmentation and seeds. The "
        f"learning rate of each row is chosen among {', '.join(f'{rate:g}' for rate in rates)} by the mean validation "
        "accuracy of trainings with other seeds: of those within one standard error of the best, the middle one. "
        "Tested are the weights of the epoch with the highest validation accuracy.",
        f"{len(cells)} cells, {hours:.2f} hours of computing in all ({config['scale']} size).",
    ]


def machine_line(cells: Sequence[Done]) -> str:
    """Machine and versions of the cells in one line."""
    if not cells:
        return ""

    def each(name: str) -> str:
        return ", ".join(dict.fromkeys(str(done.environment.get(name, "")) for done in cells))

    threads: dict[str, dict[str, None]] = {}
    for done in cells:
        kind = "trainings" if "seed" in done.config else "measurements"
        threads.setdefault(kind, {})[str(done.environment.get("threads", ""))] = None
    told = ", ".join(
        f"{kind} with {' and '.join(counts)} {'thread' if list(counts) == ['1'] else 'threads'}"
        for kind, counts in threads.items()
    )
    return (
        f"{each('machine')}, {each('cores')} cores, {each('precision')}; {told}; PyTorch {each('torch')}, timm "
        f"{each('timm')}, lambdanets {each('lambdanets')} ({each('commit')}); {each('date')}"
    )
