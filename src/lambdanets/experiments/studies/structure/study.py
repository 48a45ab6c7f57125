"""The question of the study of sequences and graphs, its cells and how one is run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any

import torch

from lambdanets.experiments.bench.timing import Turns
from lambdanets.experiments.compare.accuracy import unfinished_warning
from lambdanets.experiments.compare.cell import Cell, Config, Done
from lambdanets.experiments.compare.measured import PROCESS_BYTES
from lambdanets.experiments.compare.outcome import Outcome, code_warning, effort_line, machine_line, size_warning
from lambdanets.experiments.compare.study import Needs, Options, Place, Study, choose_rows
from lambdanets.experiments.studies.structure.data import Graphs
from lambdanets.experiments.studies.structure.findings import claims_of, note_of, plots_of, summaries, table_of
from lambdanets.experiments.studies.structure.networks import Network, fit, score, step
from lambdanets.experiments.studies.structure.rows import BATCH, ROWS, STRUCTURES, baseline

__all__ = ["STUDY"]

# Of each row the ones that are best for it by validation.
NORMS = ("batch", "layer")
RATES = {"full": (2e-3, 6e-3, 2e-2), "quick": (6e-3,)}
# Of the turns of all rows.
SECONDS = {"full": (10.0, 30.0), "quick": (2.0, 4.0)}


class StructureStudy(Study):
    """Small networks that are trained on sequences and on graphs, of which one layer varies."""

    name = "structure"
    title = "Sequences and graphs"
    question = (
        "Do lambda layers reach convolution and attention on sequences, and graph networks on graphs with labels of "
        "edges?"
    )
    takes_data, default_data, trains_without_data = False, None, True

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
        tables, plots, claims, notes, missing = [], [], [], [], []
        for structure in STRUCTURES:
            own = [done for done in cells if done.config["structure"] == structure]
            rows = summaries(structure, own)
            if rows:
                claims += claims_of(structure, rows)
                tables.append(table_of(structure, rows))
                plots += plots_of(structure, rows)
                notes.append(note_of(structure, own))
                missing += unfinished_warning(rows, STRUCTURES[structure].unit)
        notes.append(effort_line(cells))
        where, warnings = machine_line(cells), [*missing, *size_warning(cells), *code_warning(cells)]
        return Outcome(self.name, self.title, self.question, claims, tables, plots, notes, where, warnings)


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


STUDY = StructureStudy()
