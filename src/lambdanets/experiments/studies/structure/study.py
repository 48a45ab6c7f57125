"""Lambda layers of sequences and of graphs with labels of edges (beyond the paper's images, what its text promises).

lambdanets compare structure --quick
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import nn

from lambdanets.experiments.bench.timing import Turns, ratio_of_turns
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
from lambdanets.experiments.compare.cell import Cell, Config, Done
from lambdanets.experiments.compare.claims import pair_claim, verdict
from lambdanets.experiments.compare.measured import PROCESS_BYTES
from lambdanets.experiments.compare.outcome import Claim, Outcome, Plot, Table, effort_line, machine_line
from lambdanets.experiments.compare.study import Needs, Options, Place, Study, choose_rows
from lambdanets.experiments.studies.structure.data import Graphs, Sequences, load_leaves, load_molecules
from lambdanets.experiments.studies.structure.networks import (
    Attention,
    GraphLambda,
    GraphNetwork,
    Network,
    RelationalConvolution,
    fit,
    score,
    step,
)
from lambdanets.layers import LambdaLayer

BATCH = 32


@dataclass(frozen=True)
class Layer:
    """A row of the study.

    Args:
        make: what makes the layer that mixes positions.
        is_lambda: True for a lambda layer, which is compared with all others. Default False.
    """

    make: Callable[[int, int], nn.Module]
    is_lambda: bool = False


@dataclass(frozen=True)
class Structure:
    """A kind of data with its rows.

    Args:
        data: name of the data set.
        load: reads it.
        rows: by name; the first is the baseline.
        unit: what differences are paired by, a seed or a fold.
        steps: of a training, by scale.
    """

    data: str
    load: Callable[[], Sequences | Graphs]
    rows: Mapping[str, Layer]
    unit: str
    steps: Mapping[str, int]


STRUCTURES = {
    "sequence": Structure(
        "OSULeaf",
        load_leaves,
        {
            "sequence: convolution": Layer(lambda dim, size: nn.Conv1d(dim, dim, 7, padding=3)),
            "sequence: attention": Layer(Attention),
            "sequence: lambda": Layer(lambda dim, size: LambdaLayer(dim, size=size, ndim=1), is_lambda=True),
            "sequence: lambda, scope 7": Layer(lambda dim, size: LambdaLayer(dim, scope=7, ndim=1), is_lambda=True),
        },
        "seed",
        {"full": 300, "quick": 40},
    ),
    "graph": Structure(
        "MUTAG",
        load_molecules,
        {
            "graph: graph network": Layer(GraphNetwork),
            "graph: relational convolution": Layer(RelationalConvolution),
            "graph: lambda": Layer(GraphLambda, is_lambda=True),
            "graph: lambda, no edge labels": Layer(lambda dim, dim_edge: GraphLambda(dim, None), is_lambda=True),
        },
        "fold",
        {"full": 150, "quick": 40},
    ),
}
ROWS = {name: structure for structure, found in STRUCTURES.items() for name in found.rows}
# Of each row the ones that are best for it by validation.
NORMS = ("batch", "layer")
RATES = {"full": (2e-3, 6e-3, 2e-2), "quick": (6e-3,)}
# Of the turns of all rows.
SECONDS = {"full": (10.0, 30.0), "quick": (2.0, 4.0)}


def baseline(structure: str) -> str:
    """The row that the others of a structure are compared with."""
    return next(iter(STRUCTURES[structure].rows))


class StructureStudy(Study):
    """Small networks that are trained on sequences and on graphs, of which one layer varies."""

    name = "structure"
    title = "Sequences and graphs"
    question = (
        "Do lambda layers reach convolution and attention on sequences, and graph networks on graphs with labels of "
        "edges?"
    )
    takes_data, default_data = False, None

    def row_names(self, options: Options) -> list[str]:
        """See the interface."""
        return list(ROWS)

    def cells(self, options: Options) -> list[Cell]:
        """See the interface. Every fold of the graphs is tested, whatever the number of seeds."""
        chosen = choose_rows(self, options)
        found = []
        for structure, kind in STRUCTURES.items():
            own = [name for name in chosen if ROWS[name] == structure]
            if not own:
                continue
            names = list(dict.fromkeys([baseline(structure), *own]))
            scale = options.scale
            data = {"data": kind.data, "fingerprint": kind.load().fingerprint}
            common = {"study": self.name, "scale": scale, "structure": structure, **data, "batch": BATCH}
            steps, seconds = kind.steps[scale], list(SECONDS[scale])
            times = {"kind": "speed", "row": f"all rows of {structure}", "rows": names, "seconds": seconds}
            found.append(Cell({**common, **times}, weight=steps, alone=True))
            training = {**common, "kind": "train", "steps": steps, "norms": list(NORMS), "rates": list(RATES[scale])}
            count = options.seeds if kind.unit == "seed" else Graphs.FOLDS
            found += [
                Cell({**training, "row": name, "seed": unit}, weight=steps) for name in names for unit in range(count)
            ]
        return found

    def run(self, config: Config, place: Place) -> dict[str, Any]:
        """See the interface."""
        return _measure(config) if config["kind"] == "speed" else _train(config)

    def threads(self, config: Config) -> int:
        """See the interface. One in every cell: their numbers do not depend on how many run at once."""
        return 1

    def needs(self, config: Config) -> Needs:
        """See the interface."""
        return Needs(memory=PROCESS_BYTES)

    def line(self, result: Mapping[str, Any]) -> str:
        """See the interface."""
        if result.get("diverged"):
            return "diverged"
        return f"{result['test_top1']:.2%} right" if "test_top1" in result else ""

    def outcome(self, cells: Sequence[Done]) -> Outcome:
        """See the interface."""
        tables, plots, claims, notes = [], [], [], []
        for structure in STRUCTURES:
            own = [done for done in cells if done.config["structure"] == structure]
            rows = summaries(structure, own)
            if rows:
                claims += _claims(structure, rows)
                tables.append(_table(structure, rows))
                plots += _plots(structure, rows)
                notes.append(_note(structure, own))
        notes.append(effort_line(cells))
        return Outcome(self.name, self.title, self.question, claims, tables, plots, notes, machine_line(cells))


def _network(config: Config, row: str, norm: str, seed: int) -> Network:
    kind = STRUCTURES[config["structure"]]
    torch.manual_seed(seed)
    return Network(kind.load(), kind.rows[row].make, norm)


def _measure(config: Config) -> dict[str, Any]:
    """Milliseconds of a step (median, low, high) of each row, how many times as many as the first's, and all turns."""
    data, rows = STRUCTURES[config["structure"]].load(), config["rows"]
    examples = data.split(0)[0][: config["batch"]]
    inputs, labels = data.inputs(examples), data.labels[examples]
    turns = Turns([partial(step, _network(config, row, NORMS[0], 0), inputs, labels) for row in rows])
    turns.take(*config["seconds"])
    found = {}
    for index, (row, timing) in enumerate(zip(rows, turns.timings(), strict=True)):
        time, ratio = timing.seconds, timing.ratio
        found[row] = {
            "milliseconds": [round(1e3 * value, 3) for value in (time.median, time.low, time.high)],
            "ratio": [round(value, 4) for value in (ratio.median, ratio.low, ratio.high)],
            "seconds": [None if value is None else float(f"{value:.5g}") for value in turns.seconds(index)],
        }
    return {"rows": found}


def _train(config: Config) -> dict[str, Any]:
    """Train with each norm and learning rate, and test those that are best on the examples to choose by."""
    data = STRUCTURES[config["structure"]].load()
    train, choose, test = data.split(config["seed"])
    options = {name: config[name] for name in ("steps", "batch", "seed")}
    best: tuple[float, float] | None = None
    result: dict[str, Any] = {"diverged": "the loss became infinite or NaN with every learning rate"}
    for norm, rate in product(config["norms"], config["rates"]):
        network = _network(config, config["row"], norm, config["seed"])
        losses = fit(network, data, train, rate=rate, **options)
        right, loss = score(network, data, choose)
        if not (math.isfinite(losses[-1]) and math.isfinite(loss)):
            continue
        if best is None or (right, -loss) > best:
            best = (right, -loss)
            result = {
                "test_top1": score(network, data, test)[0],
                "validation_top1": right,
                "norm": norm,
                "lr": rate,
                "train_loss": [round(value, 4) for value in losses],
            }
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return {**result, "parameters": parameters, "examples": [len(train), len(choose), len(test)]}


@dataclass(frozen=True)
class Summary(Scores):
    """Findings of the cells on a row, its accuracies by seed or fold included; None for what no cell says.

    Args:
        parameters: their number.
        choices: the norms and learning rates that were chosen, and how often each.
        milliseconds: of a training step (median, low, high).
        ratio: how many times those of the baseline (median, low, high).
        seconds: of a step in each turn, None where the row did not take part.
    """

    parameters: int
    choices: Mapping[str, int]
    milliseconds: Sequence[float] | None
    ratio: Sequence[float] | None
    seconds: Sequence[float | None] | None


def summaries(structure: str, cells: Sequence[Done]) -> dict[str, Summary]:
    """Return what the cells say of each row of a structure that was trained, in the study's order."""
    times = {name: time for done in cells if done.kind == "speed" for name, time in done.result["rows"].items()}
    found = {}
    for name in STRUCTURES[structure].rows:
        trained = [done for done in cells if done.kind == "train" and done.row == name]
        if not trained:
            continue
        time = times.get(name, {})
        choices = sorted(f"{done.result['norm']} {done.result['lr']:g}" for done in trained if "lr" in done.result)
        found[name] = Summary(
            **vars(scores_of(cells, name, baseline(structure))),
            parameters=trained[0].result["parameters"],
            choices={choice: choices.count(choice) for choice in dict.fromkeys(choices)},
            milliseconds=time.get("milliseconds"),
            ratio=time.get("ratio"),
            seconds=time.get("seconds"),
        )
    return found


def _claims(structure: str, rows: Mapping[str, Summary]) -> list[Claim]:
    """Return what the paper's text leads to expect, and what was found."""
    unit, layers = STRUCTURES[structure].unit, STRUCTURES[structure].rows
    pairs = [(name, other) for name in rows if layers[name].is_lambda for other in rows if not layers[other].is_lambda]
    if structure == "graph":
        pairs.append(("graph: lambda", "graph: lambda, no edge labels"))
    claims = [claim for name, other in pairs for claim in pair_claim(rows, name, other, "0 or more", unit)]
    ours, attention = rows.get("sequence: lambda"), rows.get("sequence: attention")
    if ours and attention and ours.seconds and attention.seconds:
        times = ratio_of_turns(attention.seconds, ours.seconds)
        text = (
            f"sequence: attention takes {times.median:.2f} ({times.low:.2f} to {times.high:.2f}) times the time of "
            "lambda; expected are more than 1."
        )
        claims.append(Claim(text, verdict(times.low - 1, times.high - 1, "more than 0")))
    return claims


def _table(structure: str, rows: Mapping[str, Summary]) -> Table:
    unit = STRUCTURES[structure].unit
    lines: list[list[str]] = []
    for name, row in rows.items():
        lines.append(
            [
                name,
                f"{row.parameters:,}",
                *accuracy_cells(row, unit),
                ", ".join(f"{choice} ({count}x)" for choice, count in row.choices.items()),
                f"{row.milliseconds[0]:.1f} ({row.ratio[0]:.2f}x)" if row.milliseconds and row.ratio else "",
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


def _plots(structure: str, rows: Mapping[str, Summary]) -> list[Plot]:
    costs: dict[str, tuple[str, dict[str, float | None]]] = {
        "parameters": ("parameters", {name: row.parameters for name, row in rows.items()}),
        "time": (
            "training step, ms",
            {name: row.milliseconds[0] if row.milliseconds else None for name, row in rows.items()},
        ),
    }
    title = f"{structure.capitalize()}s"
    return [
        accuracy_plot(f"{structure}-{name}", f"{title}: {name} and accuracy", label, values, rows, digits=4)
        for name, (label, values) in costs.items()
    ]


def _note(structure: str, cells: Sequence[Done]) -> str:
    kind = STRUCTURES[structure]
    done = next(done for done in cells if done.kind == "train")
    training, choosing, test = done.result["examples"]
    config = done.config
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
        "Statistics of batch-norms are those of all examples to train on."
    )


STUDY = StructureStudy()
