"""Studies of ``lambdanets compare`` whose cells are in results/."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from statistics import mean

from lambdanets.experiments.bench.measure import TRAINING
from lambdanets.experiments.compare.accuracy import SMALL_SAMPLES, accuracies, marked, signed, told_accuracy
from lambdanets.experiments.compare.cell import Done, read_cells
from lambdanets.experiments.compare.measured import build
from lambdanets.experiments.compare.outcome import Outcome, four_digits, machine_line
from lambdanets.experiments.compare.rows import forms_of
from lambdanets.experiments.compare.statistics import Paired, paired_difference
from lambdanets.experiments.compare.summary import Summary, summaries
from lambdanets.experiments.report.study_report import MARK, table_text
from lambdanets.experiments.studies import get_study, read_outcome
from lambdanets.experiments.studies.layers import CONVOLUTION, LAMBDAS
from lambdanets.experiments.studies.memory.findings import merge
from lambdanets.experiments.studies.memory.rows import OURS, ROWS, predicted_bytes
from lambdanets.experiments.studies.shortcut import AVERAGED, TWO_BLOCKS
from lambdanets.markdown_text import markdown_table
from result_tables import RESULTS

__all__ = ["FIGURES", "FOLDERS", "TABLES", "study"]

# By the first word of a table's name: the cells of all studies; those of longer trainings; those of a study that the
# first folder has on digits, on CIFAR-10.
FOLDERS = {"compare": "compare", "longer": "compare-longer", "cifar10": "compare-cifar10"}


# The row of the ablation that has the paper's choices.
K16 = "k 16, h 4, u 1"


@cache
def _cells(study: str, folder: str = "compare") -> list[Done]:
    return read_cells(RESULTS / FOLDERS[folder] / study)[0]


@cache
def _outcome(study: str, folder: str) -> Outcome:
    return read_outcome(study, RESULTS / FOLDERS[folder] / study)


def study(name: str) -> str:
    """A table of a study whose cells are in results/.

    Args:
        name: FOLDER-STUDY for what was expected and found, FOLDER-STUDY-TABLE for one of its tables.
    """
    folder, which, *table = name.split("-", 2)
    outcome = _outcome(which, folder)
    if table:
        found = next(each for each in outcome.tables if each.name == table[0])
        # The page has this note once, for all tables.
        text = table_text(replace(found, notes=[note for note in found.notes if note != SMALL_SAMPLES]))
        return f"{text}\n\n{outcome.environment}."
    words = {True: "yes", False: "**no**", None: "undecided"}
    rows = [f"| {claim.text} | {words[claim.held]} |" for claim in outcome.claims]
    return "\n".join(["| found | as expected |", "| --- | --- |", *rows, *(f"\n{each}" for each in outcome.warnings)])


def short(study: str, heading: str) -> str:
    """A study of layers in short; of attention's two forms the faster one's speed and the leaner one's memory.

    Args:
        study: layers or placement.
        heading: of the rows.
    """
    cells = _cells(study)
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


def _last_losses(study: str, row: str, folder: str = "compare") -> dict[int, float]:
    """The training loss at the end of the trainings of a row by seed: in the last epoch, or tenth of steps."""
    trained = [done for done in _cells(study, folder) if done.kind == "train" and done.row == row]
    return {done.config["seed"]: done.result["train_loss"][-1] for done in trained}


def _last_loss(study: str, row: str, folder: str = "compare") -> str:
    return f"{mean(_last_losses(study, row, folder).values()):.2f}"


def _loss_above() -> str:
    """The training loss of global lambda layers less that of convolutions, paired by seed."""
    return f"{paired_difference(*(_last_losses('layers', row) for row in ('lambda', CONVOLUTION))).difference.mean:.3f}"


def _distance_without_query_norm() -> str:
    """The accuracy of global lambda layers without batch-norm of the queries over that of convolutions, CIFAR-10."""
    own = _rows("ablation", "cifar10")["no batch-norm of queries"].accuracies
    return signed(paired_difference(own, _rows("layers")[CONVOLUTION].accuracies))


def _hours(study: str, folder: str = "compare") -> str:
    """Hours of computing of all cells of a study."""
    return f"{sum(done.seconds for done in _cells(study, folder)) / 3600:.1f} hours"


def _gain_by_shortcuts(row: str, other: str) -> str:
    """The accuracy of a row of the study of shortcuts over that of another one, with the verdict."""
    rows = _rows("shortcut")
    return _judged(paired_difference(rows[row].accuracies, rows[other].accuracies))


def _averaged_gains_apart() -> str:
    """The points that an averaged shortcut adds with lambda layers less those that it adds with convolutions."""
    rows = _rows("shortcut")
    gains = [
        {seed: rows[f"{name}{AVERAGED}"].accuracies[seed] - plain for seed, plain in rows[name].accuracies.items()}
        for name in ("lambda", CONVOLUTION)
    ]
    return _judged(paired_difference(*gains))


@cache
def _rows(study: str, folder: str = "compare") -> dict[str, Summary]:
    """The rows of a study of trained models."""
    return summaries(get_study(study).rows, _cells(study, folder))


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
    parameters = {done.row: done.result["parameters"] for done in _cells("structure") if done.kind == "train"}
    return f"{parameters['sequence: lambda, scope 7'] / parameters['sequence: convolution']:.2f}"


def _gain(row: str, other: str, study: str = "layers", folder: str = "compare") -> str:
    """The accuracy of a row over that of another one, paired by seed."""
    rows = _rows(study, folder)
    return signed(paired_difference(rows[row].accuracies, rows[other].accuracies))


def _runs_of_all_lambda() -> list[dict[int, float]]:
    """The accuracies by seed of the network of global lambda layers, from three studies, each of another commit."""
    found = (("layers", "lambda", "compare"), ("placement", "LLLL", "compare"), ("ablation", K16, "cifar10"))
    return [accuracies(_cells(study, folder), row) for study, row, folder in found]


def _in_two_runs(row: str) -> str:
    """The accuracy of that network less that of a row of the study of layers, in the two runs that differ."""
    other = accuracies(_cells("layers"), row)
    found = [paired_difference(run, other) for run in _runs_of_all_lambda()[:2]]
    return " and ".join(map(_judged, found))


def _judged(difference: Paired) -> str:
    """A difference with its interval and verdict."""
    low, high = difference.bounds
    return f"{signed(difference)[:-1]}; {'decided' if low > 0 or high < 0 else 'undecided'})"


def _apart(first: int, second: int) -> str:
    """The largest difference, in points for one seed, between two runs of the network of global lambda layers."""
    runs = _runs_of_all_lambda()
    return f"{max(abs(runs[first][seed] - runs[second][seed]) for seed in runs[first]):.1f}"


def _kept_by_all_layers() -> str:
    """The share of the convolution's network that no row of the study of layers replaces."""
    config = next(done.config for done in _cells("layers") if done.kind == "speed")
    row = config["models"][CONVOLUTION]
    parameters = dict(build(row["model"], row["model_kwargs"], config).named_parameters())
    replaced = sum(weight.numel() for name, weight in parameters.items() if name.endswith("conv2.weight"))
    return f"{1 - replaced / sum(weight.numel() for weight in parameters.values()):.2f}"


def _least_beside_attention(value: str) -> str:
    """The memory or time of an attention in multiples of a lambda layer, where that is least."""
    sizes, _ = merge(_cells("memory"))
    found = []
    for rows in sizes.values():
        for name, row in rows.items():
            if not ROWS[name].attention or "saved_bytes" not in row:
                continue
            if value == "memory":
                found.append((row["saved_bytes"] / rows[OURS]["saved_bytes"], ""))
            elif TRAINING in row["ratio"]:
                ratio, low, high = row["ratio"][TRAINING]
                found.append((ratio, f" ({low:.2f} to {high:.2f})"))
    ratio, interval = min(found)
    return f"{ratio:.2f}{interval}"


def _error_of_formulas() -> str:
    """The largest error of the formulas of memory."""
    return re.search(r"within ([\d.]+)%", _outcome("memory", "compare").claims[0].text)[1] + " %"


def _predicted(row: str, side: int) -> str:
    """The memory that a row of the study of memory keeps, by the formula."""
    return f"{four_digits(predicted_bytes(row, side) / 1e9)} GB"


def _times_as_fast(network: str, other: str) -> str:
    """The training speed of a network over that of another, from what the study of families found."""
    (claim,) = [
        claim.text
        for claim in _outcome("family", "compare").claims
        if claim.text.startswith(f"{network} (") and f"as {other} (" in claim.text
    ]
    return re.search(r"trains ([\d.]+ \([\d.]+ to [\d.]+\)) times", claim)[1]


TABLES: dict[str, Callable[[], str]] = {
    "layers": lambda: short("layers", "layer"),
    "placements": lambda: short("placement", "stages"),
}
FIGURES: dict[str, Callable[[], str]] = {
    "kept-by-all-layers": _kept_by_all_layers,
    "same-network": lambda: _apart(0, 1),
    "same-network-again": lambda: _apart(1, 2),
    "hours-layers": lambda: _hours("layers"),
    "hours-placement": lambda: _hours("placement"),
    "parameters-u4": lambda: _parameters("layers", "lambda, u = 4"),
    "parameters-CLLL": lambda: _parameters("placement", "CLLL"),
    "parameters-CCLL": lambda: _parameters("placement", "CCLL"),
    "speed-CCLL": lambda: _speed("placement", "CCLL"),
    "parameters-sequence": _parameters_of_sequences,
    "gain-by-scope": lambda: _gain("global", "scope 3", "scope"),
    "gain-by-small-scope": lambda: _gain("lambda convolution", "lambda"),
    "lambda-beside-local": lambda: _in_two_runs("local attention"),
    "lambda-beside-global": lambda: _in_two_runs("global attention"),
    "no-query-norm": lambda: _gain("no batch-norm of queries", K16, "ablation", "cifar10"),
    "no-query-norm-loss": lambda: _last_loss("ablation", "no batch-norm of queries", "cifar10"),
    "no-query-norm-distance": _distance_without_query_norm,
    "shortcut-lambda": lambda: _gain_by_shortcuts("lambda", CONVOLUTION),
    "shortcut-averaged": lambda: _gain_by_shortcuts(f"lambda{AVERAGED}", f"{CONVOLUTION}{AVERAGED}"),
    "averaged-convolution": lambda: _gain_by_shortcuts(f"{CONVOLUTION}{AVERAGED}", CONVOLUTION),
    "averaged-lambda": lambda: _gain_by_shortcuts(f"lambda{AVERAGED}", "lambda"),
    "averaged-gains-apart": _averaged_gains_apart,
    "shortcut-two-blocks": lambda: _gain_by_shortcuts(f"lambda{TWO_BLOCKS}", f"{CONVOLUTION}{TWO_BLOCKS}"),
    "hours-shortcut": lambda: _hours("shortcut"),
    "balanced-start": lambda: _gain("start: balanced", K16, "ablation", "cifar10"),
    "loss-above": _loss_above,
    "longer-lambda": lambda: _gain("lambda", CONVOLUTION, folder="longer"),
    "hours-longer": lambda: _hours("layers", "longer"),
    "hours-cifar10": lambda: _hours("ablation", "cifar10"),
    "kept-beside-attention": lambda: _least_beside_attention("memory"),
    "time-beside-attention": lambda: _least_beside_attention("time"),
    "formulas-error": _error_of_formulas,
    "kept-global": lambda: _predicted("global attention", 224),
    "kept-global-fused": lambda: _predicted("global attention, fused", 224),
    "kept-lambda": lambda: _predicted(OURS, 224),
    "family-152": lambda: _times_as_fast("LambdaResNet-152", "EfficientNet-B6"),
    "family-200": lambda: _times_as_fast("LambdaResNet-200", "EfficientNet-B7"),
    "structure-loss-lambda": lambda: _last_loss("structure", "sequence: lambda"),
    "structure-loss-convolution": lambda: _last_loss("structure", "sequence: convolution"),
}
