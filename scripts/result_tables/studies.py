"""Studies of ``lambdanets compare`` whose cells are in results/compare/."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from statistics import mean

from lambdanets.experiments.bench.measure import TRAINING
from lambdanets.experiments.compare.accuracy import SMALL_SAMPLES, accuracies, marked, signed, told_accuracy
from lambdanets.experiments.compare.cell import read_cells
from lambdanets.experiments.compare.measured import build
from lambdanets.experiments.compare.outcome import Outcome, machine_line
from lambdanets.experiments.compare.rows import forms_of
from lambdanets.experiments.compare.statistics import paired_difference
from lambdanets.experiments.compare.summary import Summary, summaries
from lambdanets.experiments.report.study_report import MARK, table_text
from lambdanets.experiments.studies import get_study, read_outcome
from lambdanets.experiments.studies.layers import CONVOLUTION, LAMBDAS
from lambdanets.markdown_text import markdown_table
from result_tables import RESULTS

__all__ = ["FIGURES", "TABLES", "study"]

COMPARE = RESULTS / "compare"


@cache
def _outcome(study: str) -> Outcome:
    return read_outcome(study, COMPARE / study)


def study(name: str) -> str:
    """A table of a study whose cells are in results/compare/.

    Args:
        name: compare-STUDY for what was expected and found, compare-STUDY-TABLE for one of its tables.
    """
    _, which, *table = name.split("-", 2)
    outcome = _outcome(which)
    if table:
        found = next(each for each in outcome.tables if each.name == table[0])
        # The page has this note once, for all tables.
        text = table_text(replace(found, notes=[note for note in found.notes if note != SMALL_SAMPLES]))
        return f"{text}\n\n{outcome.environment}."
    words = {True: "yes", False: "**no**", None: "undecided"}
    rows = [f"| {claim.text} | {words[claim.held]} |" for claim in outcome.claims]
    return "\n".join(["| found | as expected |", "| --- | --- |", *rows])


def short(study: str, heading: str) -> str:
    """A study of layers in short; of attention's two forms the faster one's speed and the leaner one's memory.

    Args:
        study: layers or placement.
        heading: of the rows.
    """
    cells, _ = read_cells(COMPARE / study)
    specs = get_study(study).rows
    rows = summaries(specs, cells)
    baseline = next(iter(rows))
    lines = []
    names, numbers = list(rows), marked(list(rows.values()))
    lost = {names[number] for number in numbers}
    for name, row in rows.items():
        is_lambda = (row.spec.form_of or name) in LAMBDAS
        if not row.spec.trains and not is_lambda:
            continue
        forms = [row] if is_lambda else [rows[form] for form in forms_of(specs, name) if form in rows]
        rate = max(forms, key=lambda form: form.ratio[TRAINING][0]).ratio[TRAINING]
        kept = min(form.saved_bytes for form in forms)
        lines.append(
            [
                f"{name} {MARK}" if (row.spec.form_of or name) in lost else name,
                f"{row.parameters / 1e6:.3f}",
                told_accuracy(row) if row.spec.trains else f"as {row.spec.form_of}",
                signed(row.difference) if row.spec.trains else "",
                f"{rate[0]:.2f}x",
                f"{kept / 1e6:.2f}",
            ]
        )
    header = [
        heading,
        "parameters, M",
        "test accuracy, % (95 %)",
        f"difference to {baseline}",
        "training speed",
        "kept for backward, MB an image",
    ]
    return f"{markdown_table(header, lines)}\n\n{machine_line(cells)}."


def _last_loss(study: str, row: str) -> str:
    """The training loss at the end of the trainings of a row, mean over seeds: in the last epoch, or tenth of steps."""
    cells, _ = read_cells(COMPARE / study)
    return f"{mean(done.result['train_loss'][-1] for done in cells if done.kind == 'train' and done.row == row):.2f}"


def _hours(study: str) -> str:
    """Hours of computing of all cells of a study."""
    cells, _ = read_cells(COMPARE / study)
    return f"{sum(done.seconds for done in cells) / 3600:.1f} hours"


def _rows(study: str) -> dict[str, Summary]:
    """The rows of a study of trained models."""
    return summaries(get_study(study).rows, read_cells(COMPARE / study)[0])


def _parameters(study: str, row: str) -> str:
    """The parameters of a row's network over those of the first row's."""
    rows = _rows(study)
    base, *_ = rows.values()
    return f"{rows[row].parameters / base.parameters:.2f}"


def _speed(study: str, row: str) -> str:
    """The training speed of a row's network over that of the first row's."""
    return f"{_rows(study)[row].ratio[TRAINING][0]:.2f}"


def _parameters_of_sequences() -> str:
    """The parameters of the network with lambda layers of scope 7 over those of the one with convolutions."""
    cells, _ = read_cells(COMPARE / "structure")
    parameters = {done.row: done.result["parameters"] for done in cells if done.kind == "train"}
    return f"{parameters['sequence: lambda, scope 7'] / parameters['sequence: convolution']:.2f}"


def _gain_by_scope() -> str:
    """The accuracy of global lambda layers over that of scope 3, in points of percent."""
    rows = _rows("scope")
    return f"{rows['global'].difference.difference.mean:.1f}"


def _gain_by_small_scope() -> str:
    """The accuracy of lambda convolutions over that of global lambda layers on CIFAR-10, paired by seed."""
    rows = _rows("layers")
    return signed(paired_difference(rows["lambda convolution"].accuracies, rows["lambda"].accuracies))


def _same_network() -> str:
    """The largest difference, in points for one seed, between two rows that train one network: by other commits."""
    rows = (("layers", "lambda"), ("placement", "LLLL"))
    first, second = (accuracies(read_cells(COMPARE / study)[0], row) for study, row in rows)
    return f"{max(abs(first[seed] - second[seed]) for seed in first):.1f}"


def _kept_by_all_layers() -> str:
    """The share of the convolution's network that no row of the study of layers replaces."""
    cells, _ = read_cells(COMPARE / "layers")
    config = next(done.config for done in cells if done.kind == "speed")
    row = config["models"][CONVOLUTION]
    parameters = dict(build(row["model"], row["model_kwargs"], config).named_parameters())
    replaced = sum(weight.numel() for name, weight in parameters.items() if name.endswith("conv2.weight"))
    return f"{1 - replaced / sum(weight.numel() for weight in parameters.values()):.2f}"


TABLES: dict[str, Callable[[], str]] = {
    "layers": lambda: short("layers", "layer"),
    "placements": lambda: short("placement", "stages"),
}
FIGURES: dict[str, Callable[[], str]] = {
    "kept-by-all-layers": _kept_by_all_layers,
    "same-network": _same_network,
    "hours-layers": lambda: _hours("layers"),
    "hours-placement": lambda: _hours("placement"),
    "parameters-u4": lambda: _parameters("layers", "lambda, u = 4"),
    "parameters-CLLL": lambda: _parameters("placement", "CLLL"),
    "parameters-CCLL": lambda: _parameters("placement", "CCLL"),
    "speed-CCLL": lambda: _speed("placement", "CCLL"),
    "parameters-sequence": _parameters_of_sequences,
    "gain-by-scope": _gain_by_scope,
    "gain-by-small-scope": _gain_by_small_scope,
    "loss-convolution": lambda: _last_loss("layers", CONVOLUTION),
    "loss-lambda": lambda: _last_loss("layers", "lambda"),
    "structure-loss-lambda": lambda: _last_loss("structure", "sequence: lambda"),
    "structure-loss-convolution": lambda: _last_loss("structure", "sequence: convolution"),
}
