"""The question of the study of memory, its cells and how one is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from lambdanets.experiments.bench.measure import INFERENCE, PASSES, TRAINING, passes, peak_bytes, saved_bytes
from lambdanets.experiments.bench.timing import Estimate, Turns, wall_clock
from lambdanets.experiments.compare.cell import Cell, Config, Done
from lambdanets.experiments.compare.measured import available_memory
from lambdanets.experiments.compare.outcome import Outcome, code_warning, machine_line, size_warning
from lambdanets.experiments.compare.study import Options, Place, Study, choose_rows
from lambdanets.experiments.studies.memory.findings import claims_of, merge, plots_of, tables_of
from lambdanets.experiments.studies.memory.rows import (
    DIM,
    HEADS,
    LAYERS,
    OURS,
    PROBE,
    ROWS,
    build,
    needed_bytes,
    predicted_bytes,
)

__all__ = ["STUDY"]

# Long enough that every row ends: by memory, or because a pass takes longer than LIMIT.
SIZES = {
    "quick": (14, 28, 56, 112, 224, 448, 896),
    "full": (14, 20, 28, 40, 56, 80, 112, 160, 224, 320, 448, 640, 896, 1280, 1792),
}
# The turns of the rows of one size take so many seconds each, at most. By this and LIMIT, the full size takes about a
# quarter of an hour on two CPU cores.
SECONDS = {"quick": 1.0, "full": 2.0}
# A row ends with the size at which a training pass takes longer than so many seconds.
LIMIT = {"quick": 0.5, "full": 10.0}
# A row whose training pass takes longer is timed once: seven turns of it would take too long.
LONGEST = 2.0
# Of the memory that is free, what a training step may take.
SHARE = 0.8


class MemoryStudy(Study):
    """Layers by themselves, two in a row on one image of 64 channels, at growing sizes."""

    name = "memory"
    title = "Memory and time against resolution"
    question = "How do the memory and the time of attention and of lambda layers grow, and where does each end?"
    version = 2
    takes_data, default_data = False, None

    def row_names(self, options: Options) -> list[str]:
        """See the interface."""
        return list(ROWS)

    def cells(self, options: Options) -> list[Cell]:
        """See the interface. A cell for each side, with the rows that the one before did not end."""
        scale, rows = options.scale, list(dict.fromkeys([OURS, *choose_rows(self, options)]))
        common = {"study": self.name, "kind": "sizes", "scale": scale, "seconds": SECONDS[scale], "limit": LIMIT[scale]}
        found: list[Cell] = []
        for side in SIZES[scale]:
            config = {**common, "row": f"{side}x{side}", "side": side, "rows": rows}
            before = tuple(found[-1:])
            found.append(Cell(config, before, _without_ended if before else None, alone=True))
        return found[-1:]

    def run(self, config: Config, place: Place) -> dict[str, Any]:
        """See the interface."""
        found: dict[str, dict[str, Any]] = {}
        calls: dict[str, dict[str, Callable[[], object]]] = {}
        for name in config["rows"]:
            found[name], step = _measure(name, config["side"], config["limit"])
            if step:
                calls[name] = step
        for way in PASSES if calls else ():
            turns = Turns([step[way] for step in calls.values()])
            turns.take(config["seconds"] * len(calls) / 4, config["seconds"] * len(calls))
            for name, timing in zip(calls, turns.timings(), strict=True):
                found[name]["milliseconds"][way] = _three(timing.seconds, 1e3)
                if OURS in calls:  # then it is the first
                    found[name]["ratio"][way] = _three(timing.ratio, 1)
        return {"rows": found}

    def line(self, result: Mapping[str, Any]) -> str:
        """See the interface."""
        rows = result.get("rows", {})
        ended = {name: row["ended"] for name, row in rows.items() if "ended" in row}
        words = "".join(f", {name} ended by {reason}" for name, reason in ended.items())
        return f"{len(rows) - len(ended)} rows measured{words}" if rows else "all rows have ended"

    def outcome(self, cells: Sequence[Done]) -> Outcome:
        """See the interface."""
        sizes, apart = merge(cells)
        names = [name for name in ROWS if any(name in rows for rows in sizes.values())]
        limits = ", ".join(f"{limit:g}" for limit in sorted({done.config["limit"] for done in cells}))
        return Outcome(
            self.name,
            self.title,
            self.question,
            claims_of(names, sizes),
            tables_of(names, sizes, apart),
            plots_of(names, sizes),
            [
                f"{LAYERS} layers in a row on one image with {DIM} channels, float32; attention with {HEADS} heads, "
                "lambda layers with 4 heads and k 16. Attention is the form with stored maps, as in the paper, or "
                "PyTorch's fused one. Lambda layers are global, but for the lambda convolution, of scope 7; with one "
                "table they share their position embeddings. Kept are the bytes between the forward and the backward "
                "pass, without the input and the parameters.",
                f"A row ends where a training step would take more than {SHARE:.0%} of the memory that is free, by "
                f"the formula and by how many times as much a step takes at {PROBE}x{PROBE}, or where its pass takes "
                f"more than {limits} s, whichever comes first.",
                "Times are medians over turns of all rows of a size; their ratios are medians over the ratios of a "
                f"turn, with 95 % intervals. A row whose training pass takes more than {LONGEST:g} s is timed once.",
            ],
            machine_line(cells),
            [*size_warning(cells), *code_warning(cells)],
        )


def _without_ended(config: Config, before: Sequence[Done]) -> Config:
    """The configuration of a size with the rows that the size before did not end."""
    rows = before[0].result["rows"]
    return {**config, "rows": [name for name in config["rows"] if name in rows and "ended" not in rows[name]]}


def _measure(name: str, side: int, limit: float) -> tuple[dict[str, Any], dict[str, Callable[[], object]] | None]:
    """Return what is measured of a row, and its passes where they are to be timed in turns."""
    predicted = predicted_bytes(name, side)
    found: dict[str, Any] = {"predicted_bytes": predicted}
    needed, free = needed_bytes(name, side), available_memory()
    if needed > SHARE * free:
        return {**found, "ended": "memory", "needed_bytes": needed, "free_bytes": free}, None
    module, x = build(name, side), torch.randn(1, DIM, side, side)
    step = passes(module, x)
    seconds = wall_clock(step[TRAINING])
    if limit < seconds <= 2 * limit:  # the first call also plans
        seconds = wall_clock(step[TRAINING])
    if seconds > limit:
        return {**found, "ended": "time", "seconds": round(seconds, 3)}, None
    found |= {
        "saved_bytes": saved_bytes(module, x),
        "parameter_bytes": sum(parameter.nbytes for parameter in module.parameters()),
        "peak_bytes": peak_bytes(step[TRAINING]),
        "milliseconds": {},
        "ratio": {},
    }
    if seconds <= LONGEST:
        return found, step
    for way, value in ((INFERENCE, wall_clock(step[INFERENCE])), (TRAINING, seconds)):
        found["milliseconds"][way] = [round(1e3 * value, 3)]
    return found, None


def _three(estimate: Estimate, unit: float) -> list[float]:
    """Median, low and high."""
    return [round(unit * value, 4) for value in (estimate.median, estimate.low, estimate.high)]


STUDY = MemoryStudy()
