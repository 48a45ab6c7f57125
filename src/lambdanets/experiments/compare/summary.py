"""Tables and plots of studies of trained models: what the cells say of each row, and of all rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lambdanets.experiments.bench.measure import INFERENCE, PASSES, TRAINING
from lambdanets.experiments.bench.timing import Estimate, ratio_of_turns
from lambdanets.experiments.compare.accuracy import (
    SMALL_SAMPLES,
    Scores,
    accuracy_cells,
    accuracy_columns,
    accuracy_note,
    accuracy_plot,
    marked,
    scores_of,
    unfinished_warning,
)
from lambdanets.experiments.compare.cell import Done
from lambdanets.experiments.compare.outcome import Plot, Table, code_warning, effort_line, quoted, size_warning
from lambdanets.experiments.compare.rows import Row, compared_with
from lambdanets.names import count

__all__ = [
    "Summary",
    "common_run",
    "notes_of",
    "plots_of",
    "summaries",
    "tables_of",
    "timed_runs",
    "times_as_fast",
    "warnings_of",
]


@dataclass(frozen=True)
class Summary(Scores):
    """Findings of the cells on a row, its accuracies included; None for what no cell says.

    Args:
        name: of the row.
        spec: what the study has of it.
        parameters: their number.
        multiply_adds: of one image.
        saved_bytes: kept between the forward and the backward pass, an image.
        peak_bytes: allocated at once in a training step, an image.
        rate: images a second (median, low, high) by pass.
        ratio: how many times as many as the baseline (median, low, high) by pass.
        runs: in which it was timed together with other rows, that of ``rate`` and ``ratio`` first.
        lr: the learning rate that was chosen.
    """

    name: str
    spec: Row
    parameters: int | None
    multiply_adds: int | None
    saved_bytes: int | None
    peak_bytes: int | None
    rate: Mapping[str, Sequence[float]]
    ratio: Mapping[str, Sequence[float]]
    runs: Sequence[Done]
    lr: float | None


def summaries(rows: Mapping[str, Row], cells: Sequence[Done]) -> dict[str, Summary]:
    """Return what the cells say of each row that has a cell, in the order of the rows."""
    runs = timed_runs(cells, TRAINING)
    found = {}
    for name, row in rows.items():
        own = [done for done in cells if done.row == name]
        if not own:
            continue
        trained = [done for done in own if done.kind == "train"]
        memory: Mapping[str, Any] = next((done.result for done in own if done.kind == "memory"), {})
        timed = [done for done in runs if name in done.result[TRAINING]]
        times = {way: timed[0].result[way][name] for way in PASSES} if timed else {}
        found[name] = Summary(
            **vars(scores_of(cells, name, compared_with(rows, name))),
            name=name,
            spec=row,
            parameters=memory.get("parameters"),
            multiply_adds=memory.get("multiply_adds"),
            saved_bytes=memory.get("saved_bytes"),
            peak_bytes=memory.get("peak_bytes"),
            rate={way: time["images_per_second"] for way, time in times.items()},
            ratio={way: time["ratio"] for way, time in times.items()},
            runs=timed,
            lr=trained[0].config["lr"] if trained else None,
        )
    return found


def timed_runs(cells: Sequence[Done], rows: str) -> list[Done]:
    """Return the cells in which rows were timed together, the latest first, and of one day that of most rows.

    Args:
        cells: of a study.
        rows: what holds the rows in the result of such a cell.
    """
    runs = [done for done in cells if done.kind == "speed"]
    return sorted(runs, key=lambda run: (run.environment.get("date", ""), len(run.result[rows])), reverse=True)


def common_run(runs: Sequence[Done], others: Sequence[Done]) -> Done | None:
    """Return the first of a row's runs in which another one was timed too: ratios hold within one run."""
    return next((run for run in runs if run in others), None)


def times_as_fast(row: Summary | None, other: Summary | None, way: str) -> Estimate | None:
    """Return how many times as many images a second a row computes as another, from the ratios of their turns.

    Args:
        row: a row.
        other: another.
        way: the pass.

    Returns:
        The median ratio with its interval; None if the two were not timed in one run.
    """
    if row is None or other is None:
        return None
    run = common_run(row.runs, other.runs)
    if run is None:
        return None
    own, theirs = (run.result[way][one.name]["seconds"] for one in (row, other))
    return ratio_of_turns(theirs, own)


def _times(rate: Sequence[float] | None, ratio: Sequence[float] | None) -> str:
    return "" if not rate or not ratio else f"{rate[0]:,.0f} ({ratio[0]:.2f}x)"


def tables_of(specs: Mapping[str, Row], rows: Mapping[str, Summary]) -> list[Table]:
    """Return the tables of accuracies and of costs, and of what the rows are where their names do not say it.

    Args:
        specs: of all rows of the study, the first one the baseline.
        rows: those that have a cell.
    """
    about = [[row.name, row.spec.about] for row in rows.values() if row.spec.about]
    explained = [Table("rows", "What the rows are", ["row", "what it is"], about, text=frozenset({1}))] if about else []
    return [_accuracy_table(specs, rows), _cost_table(next(iter(specs)), rows), *explained]


def _accuracy_table(specs: Mapping[str, Row], rows: Mapping[str, Summary]) -> Table:
    others = {compared_with(specs, name) for name in specs}
    several = len(others) > 1
    base = "the other" if several else next(iter(specs))
    columns = ["row", "parameters, M", f"of those of {base}", *accuracy_columns(base), "learning rate"]
    trained = [row for row in rows.values() if row.spec.trains]
    lines = [_accuracy_line(row, rows.get(compared_with(specs, row.name))) for row in trained]
    if several:
        columns.insert(1, base)
        for line, row in zip(lines, trained, strict=True):
            line.insert(1, "" if (other := compared_with(specs, row.name)) == row.name else other)
    for name, heading in (("params", "paper: parameters, M"), ("top1", "paper: ImageNet top-1, %")):
        _add_paper(columns, lines, trained, name, heading)
    notes = [accuracy_note(), SMALL_SAMPLES]
    return Table(
        "accuracy",
        "Parameters and accuracy",
        columns,
        lines,
        notes,
        marked(trained),
        frozenset({1} if several else ()),
    )


def _add_paper(
    columns: list[str], lines: Sequence[list[str]], rows: Sequence[Summary], name: str, heading: str
) -> None:
    """Add a column of the paper's figures of a name, if a row has one; 0 where the paper's memory did not suffice."""
    if any(name in row.spec.paper for row in rows):
        columns.append(heading)
        for line, row in zip(lines, rows, strict=True):
            figure = row.spec.paper.get(name)
            line.append("" if figure is None else f"{figure:,g}" if figure else "out of memory")


def _accuracy_line(row: Summary, base: Summary | None) -> list[str]:
    share = row.parameters / base.parameters if base and base.parameters and row.parameters else None
    return [
        row.name,
        "" if row.parameters is None else f"{row.parameters / 1e6:.3f}",
        "" if share is None else f"{share:.2f}",
        *accuracy_cells(row),
        "" if row.lr is None else f"{row.lr:g}",
    ]


def _cost_table(baseline: str, rows: Mapping[str, Summary]) -> Table:
    columns = ["row", "multiply-adds, M"]
    columns += [f"{way}, images/s (of {baseline})" for way in ("training", "inference")]
    columns += ["kept for backward, MB an image", "peak, MB an image"]
    lines = [_cost_line(row) for row in rows.values()]
    _add_paper(columns, lines, list(rows.values()), "rate", "paper: ResNet-50, images/s")
    _add_paper(columns, lines, list(rows.values()), "gigabytes", "paper: memory (batch 128), GB")
    base = rows.get(baseline)
    dearer = [(number, column) for number, row in enumerate(rows.values()) for column in _dearer(row, base)]
    notes = [
        "Medians over turns of all models in one process; in brackets the median ratio of a turn, which need not be "
        "that of the medians. Training is a forward and a backward pass. Measured on the CPU, whatever the trainings "
        "ran on. Costs above the first row's are marked."
    ]
    apart = [row.name for row in rows.values() if base and row.runs and row.runs[0] not in base.runs[:1]]
    if apart:
        notes.append(
            f"Timed in other runs than the first row's figures: {quoted(apart)}. Compare their ratios, not their rates."
        )
    return Table("costs", "Time and memory", columns, lines, notes, marked=frozenset(dearer))


def _cost_line(row: Summary) -> list[str]:
    return [
        row.name,
        "" if row.multiply_adds is None else f"{row.multiply_adds / 1e6:.1f}",
        *(_times(row.rate.get(way), row.ratio.get(way)) for way in (TRAINING, INFERENCE)),
        *("" if value is None else f"{value / 1e6:.2f}" for value in (row.saved_bytes, row.peak_bytes)),
    ]


def _dearer(row: Summary, base: Summary | None) -> list[int]:
    """The columns of the table of costs in which a row is above the first one; a time by its whole interval."""

    def above(name: str, digits: int) -> bool:
        """True if it is as the table has it, in millions with so many digits."""
        value, first = getattr(row, name), getattr(base, name, None)
        return value is not None and first is not None and round(value / 1e6, digits) > round(first / 1e6, digits)

    def slower(way: str) -> bool:
        return way in row.ratio and row.ratio[way][2] < 1

    columns = (
        above("multiply_adds", 1),
        slower(TRAINING),
        slower(INFERENCE),
        above("saved_bytes", 2),
        above("peak_bytes", 2),
    )
    return [number for number, is_dearer in enumerate(columns, start=1) if is_dearer]


def plots_of(rows: Mapping[str, Summary]) -> list[Plot]:
    """Return the plots of accuracy against parameters, memory and time."""
    saved = {name: None if row.saved_bytes is None else row.saved_bytes / 1e6 for name, row in rows.items()}
    parameters = {name: None if row.parameters is None else row.parameters / 1e6 for name, row in rows.items()}
    # By the ratios to the first row, as the table has them: rates may be of different runs, and its own may be missing.
    timed = next((row for row in rows.values() if TRAINING in row.rate), None)
    first = timed.rate[TRAINING][0] / timed.ratio[TRAINING][0] if timed else None
    times = {
        name: 1e3 / (first * row.ratio[TRAINING][0]) if first and TRAINING in row.ratio else None
        for name, row in rows.items()
    }
    passes = "forward and backward pass, ms an image"
    return [
        accuracy_plot("parameters", "Parameters and accuracy", "parameters, M", parameters, rows),
        accuracy_plot("memory", "Memory and accuracy", "kept for backward, MB an image", saved, rows),
        accuracy_plot("time", "Training time and accuracy", passes, times, rows),
    ]


def warnings_of(rows: Mapping[str, Summary], cells: Sequence[Done]) -> list[str]:
    """Return what is missing, and what else one must know before one reads the findings."""
    trained = {name: row for name, row in rows.items() if row.spec.trains}
    return [*unfinished_warning(trained), *size_warning(cells), *code_warning(cells)]


def notes_of(rows: Mapping[str, Summary], cells: Sequence[Done]) -> list[str]:
    """Return how the trainings were done, in sentences."""
    trained = [done for done in cells if done.kind == "train"]
    if not trained:
        return []
    done, data = trained[0], trained[0].data
    config = done.config
    blocks = dict.fromkeys(str(cell.config["model_kwargs"]["layers"]) for cell in trained)
    rates = sorted({cell.config["lr"] for cell in cells if cell.kind == "search"})
    training, validation, test = data["images"]
    epochs = count(config["epochs"], "epoch", "epochs")
    return [
        f"Data: {data['spec']}, {training:,} training, {validation:,} validation and {test:,} test images in "
        f"{data['classes']} classes, {data['image_size']}x{data['image_size']} pixels.",
        f"All rows: {config['model']} with blocks {' or '.join(blocks)}, {epochs} in "
        f"batches of {config['batch']}, AdamW with cosine decay, the same order of images, augmentation and seeds. The "
        f"learning rate of each row is chosen among {', '.join(f'{rate:g}' for rate in rates)} by the mean validation "
        "accuracy of trainings with other seeds: of those within one standard error of the best, the one nearest to "
        "the middle of all. Tested are the weights of the epoch with the highest validation accuracy.",
        effort_line(cells),
    ]
