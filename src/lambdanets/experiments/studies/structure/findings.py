"""Findings of the study of sequences and graphs: what the cells say of rows, claims, tables, plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lambdanets.experiments.bench.timing import ratio_of_turns
from lambdanets.experiments.compare.accuracy import (
    SMALL_SAMPLES,
    Scores,
    accuracy_cells,
    accuracy_columns,
    accuracy_note,
    accuracy_plot,
    marked,
    scores_of,
)
from lambdanets.experiments.compare.cell import Done
from lambdanets.experiments.compare.claims import pair_claim, verdict
from lambdanets.experiments.compare.outcome import Claim, Plot, Table
from lambdanets.experiments.compare.summary import common_run, timed_runs
from lambdanets.experiments.studies.structure.data import Graphs
from lambdanets.experiments.studies.structure.rows import BATCH, STRUCTURES, baseline

__all__ = ["Summary", "claims_of", "note_of", "plots_of", "summaries", "table_of"]


@dataclass(frozen=True)
class Summary(Scores):
    """Findings of the cells on a row, its accuracies by seed or fold included; None for what no cell says.

    Args:
        name: of the row.
        parameters: their number.
        choices: the norms and learning rates that were chosen, and how often each.
        runs: in which its training step was timed together with other rows, the latest first.
    """

    name: str
    parameters: int
    choices: Mapping[str, int]
    runs: Sequence[Done]

    def time(self, run: Done | None = None) -> Mapping[str, Any]:
        """Its step in a run, by default the latest: milliseconds and ratio to the baseline (median, low, high each),
        seconds of each turn; {} if it was not timed.
        """
        run = run or next(iter(self.runs), None)
        return {} if run is None else run.result["rows"][self.name]


def summaries(structure: str, cells: Sequence[Done]) -> dict[str, Summary]:
    """Return what the cells say of each row of a structure that was trained, in the study's order."""
    runs = timed_runs(cells, "rows")
    found = {}
    for name in STRUCTURES[structure].rows:
        trained = [done for done in cells if done.kind == "train" and done.row == name]
        if not trained:
            continue
        choices = sorted(f"{done.result['norm']} {done.result['lr']:g}" for done in trained if "lr" in done.result)
        found[name] = Summary(
            **vars(scores_of(cells, name, baseline(structure), _overlap(structure, trained[0]))),
            name=name,
            parameters=trained[0].result["parameters"],
            choices={choice: choices.count(choice) for choice in dict.fromkeys(choices)},
            runs=[run for run in runs if name in run.result["rows"]],
        )
    return found


def _overlap(structure: str, trained: Done) -> float:
    """Of folds the examples to test on over those to train on; 0 of seeds, which share a standard split."""
    training, _, test = trained.result["examples"]
    return test / training if STRUCTURES[structure].unit == "fold" else 0.0


def claims_of(structure: str, rows: Mapping[str, Summary]) -> list[Claim]:
    """Return what the paper's text leads to expect, and what was found."""
    unit, layers = STRUCTURES[structure].unit, STRUCTURES[structure].rows
    pairs = [(name, other) for name in rows if layers[name].is_lambda for other in rows if not layers[other].is_lambda]
    if structure == "graph":
        pairs.append(("graph: lambda", "graph: lambda, no edge labels"))
    claims = [claim for name, other in pairs for claim in pair_claim(rows, name, other, "0 or more", unit)]
    ours, attention = rows.get("sequence: lambda"), rows.get("sequence: attention")
    run = common_run(ours.runs, attention.runs) if ours and attention else None
    if ours and attention and run:
        times = ratio_of_turns(attention.time(run)["seconds"], ours.time(run)["seconds"])
        text = (
            f"sequence: attention takes {times.median:.2f} ({times.low:.2f} to {times.high:.2f}) times the time of "
            "lambda; expected: more than 1."
        )
        claims.append(Claim(text, verdict(times.low - 1, times.high - 1, "more than 0")))
    return claims


def table_of(structure: str, rows: Mapping[str, Summary]) -> Table:
    """Return the table of a structure's rows."""
    unit = STRUCTURES[structure].unit
    lines: list[list[str]] = []
    for name, row in rows.items():
        time = row.time()
        lines.append(
            [
                name,
                f"{row.parameters:,}",
                *accuracy_cells(row, unit),
                ", ".join(f"{choice} ({count}x)" for choice, count in row.choices.items()),
                f"{time['milliseconds'][0]:.1f} ({time['ratio'][0]:.2f}x)" if time else "",
            ]
        )
    columns = [
        "row",
        "parameters",
        *accuracy_columns(baseline(structure), unit),
        "norm and learning rate",
        "training step, ms (of the first)",
    ]
    notes = [
        f"{accuracy_note(unit)} A step is a forward and a backward pass of {BATCH} examples; medians over turns of all "
        "rows.",
        SMALL_SAMPLES,
    ]
    return Table(
        structure, f"{structure.capitalize()}s", columns, lines, notes, marked(list(rows.values())), frozenset({6})
    )


def plots_of(structure: str, rows: Mapping[str, Summary]) -> list[Plot]:
    """Return the plots of accuracy against parameters and time."""
    costs: dict[str, tuple[str, dict[str, float | None]]] = {
        "parameters": ("parameters", {name: row.parameters for name, row in rows.items()}),
        "time": (
            "training step, ms",
            {name: row.time()["milliseconds"][0] if row.runs else None for name, row in rows.items()},
        ),
    }
    title = f"{structure.capitalize()}s"
    return [
        accuracy_plot(f"{structure}-{name}", f"{title}: {name} and accuracy", label, values, rows)
        for name, (label, values) in costs.items()
    ]


def note_of(structure: str, cells: Sequence[Done]) -> str:
    """Return how the rows of a structure were trained."""
    kind = STRUCTURES[structure]
    trained = [done for done in cells if done.kind == "train"]
    # Folds may differ by an example.
    sizes = zip(*(done.result["examples"] for done in trained), strict=True)
    training, choosing, test = (" to ".join(map(str, sorted({min(size), max(size)}))) for size in map(list, sizes))
    config = trained[0].config
    split = (
        "the standard split, of whose training part each seed takes another fifth to choose by"
        if kind.unit == "seed"
        else f"{Graphs.FOLDS} folds with equal shares of the classes, of which the next one is to choose by"
    )
    rates = ", ".join(f"{rate:g}" for rate in config["rates"])
    return (
        f"{structure.capitalize()}s: {config['data']}, {training} examples to train on, {choosing} to choose by, "
        f"{test} to test on; {split}. All rows: the same network, {config['steps']} steps of {config['batch']} "
        f"examples in the same order, AdamW, one cycle of the learning rate. Each {kind.unit} of each row is trained "
        f"with the norms {', '.join(config['norms'])} and the rates {rates}, and those with the highest validation "
        "accuracy are tested, after the last step. "
        "Before a test the running statistics of batch-norms are computed anew, from all training examples."
    )
