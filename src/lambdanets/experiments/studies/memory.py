"""Memory and time of attention and lambda layers against resolution, to where each ends (paper, table on memory).

lambdanets compare memory --quick
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from lambdanets.experiments.bench.measure import PASSES, passes, peak_bytes, saved_bytes
from lambdanets.experiments.bench.timing import Estimate, Turns, wall_clock
from lambdanets.experiments.compare.cell import Cell, Config, Done
from lambdanets.experiments.compare.measured import available_memory
from lambdanets.experiments.compare.outcome import Axis, Claim, Outcome, Plot, Point, Series, Table
from lambdanets.experiments.compare.study import Options, Place, Study, choose_rows
from lambdanets.experiments.compare.summary import machine_line
from lambdanets.layers import LambdaLayer
from lambdanets.layers.axial_attention import AxialAttention
from lambdanets.layers.global_attention import GlobalAttention
from lambdanets.layers.local_attention import LocalAttention

DIM, HEADS, LAYERS = 64, 8, 2
# Long enough that every row ends: by memory, or because a pass takes longer than LIMIT.
SIZES = {
    "quick": (14, 28, 56, 112, 224, 448, 896),
    "full": (14, 20, 28, 40, 56, 80, 112, 160, 224, 320, 448, 640, 896, 1280, 1792),
}
# Of the turns of a row at most, and of a training pass with which a row ends. Full size takes about a quarter of an
# hour on two CPU cores, by the limits alone.
SECONDS = {"quick": 1.0, "full": 2.0}
LIMIT = {"quick": 0.5, "full": 10.0}
# A row whose training pass takes longer is timed once: seven turns of it would take too long.
LONGEST = 2.0
# Of the memory that is free, what a training step may take.
SHARE = 0.8
# How many times what it keeps a step allocates at once is measured here; it depends on the number of threads too.
PROBE = 28
# What all others are compared with.
OURS = "lambda"
INFERENCE, TRAINING = PASSES


@dataclass(frozen=True)
class Layer:
    """A row of the study.

    Args:
        make: a layer from the side of the map.
        kept: numbers that a layer keeps for the backward pass of one image, its input left out, from the number of
            positions and the side of the map.
        shared: True if all layers have one table of positions.
        paper: the paper's figures: "gigabytes" and "rate", images a second, 0 where memory did not suffice.
    """

    make: Callable[[int], nn.Module]
    kept: Callable[[int, int], int]
    shared: bool = False
    paper: Mapping[str, float] = field(default_factory=dict)


def _attention(kind: type[nn.Module], side: int, sized: bool = True, **options: Any) -> nn.Module:
    return kind(DIM, num_heads=HEADS, **({"size": side} if sized else {}), **options)


def _lambda(side: int, **options: Any) -> nn.Module:
    return LambdaLayer(DIM, size=None if "scope" in options else side, **options)


def _kept_lambda(n: int, side: int, key: int = 16, heads: int = 4) -> int:
    """Queries, keys and values, before their norms and softmax and behind them, and the content lambda."""
    value = DIM // heads
    return 2 * n * (heads * key + key + value) + key * value


def _kept_local_fused(n: int, side: int) -> int:
    """Blocks of 8x8 queries, their outputs and sums, keys and values of their windows of 14x14; and the mask.

    Each has 14 further channels for the rows and 14 for the columns of a window.
    """
    depth = DIM // HEADS + 2 * 14
    blocks = math.ceil(side / 8) ** 2
    return blocks * HEADS * (64 * (1 + DIM // HEADS + 2 * depth) + 196 * 2 * depth) + 64 * 196


# Fused attention has the logits of rows and columns as further channels of queries, keys, values and outputs.
ROWS: dict[str, Layer] = {
    "global attention": Layer(
        partial(_attention, GlobalAttention),
        lambda n, side: 5 * DIM * n + HEADS * n * n,
        paper={"gigabytes": 120, "rate": 0},
    ),
    "global attention, fused": Layer(
        partial(_attention, GlobalAttention, fused=True),
        lambda n, side: 2 * DIM * n + 4 * n * (DIM + HEADS * 2 * side) + HEADS * n,
    ),
    "axial attention": Layer(
        partial(_attention, AxialAttention),
        lambda n, side: 9 * DIM * n + 2 * HEADS * n * side,
        paper={"gigabytes": 4.8, "rate": 960},
    ),
    "axial attention, fused": Layer(
        partial(_attention, AxialAttention, fused=True),
        lambda n, side: 3 * DIM * n + 8 * n * (DIM + HEADS * side) + 2 * HEADS * n,
    ),
    "local attention": Layer(
        partial(_attention, LocalAttention, sized=False),
        lambda n, side: 3 * DIM * n + 2 * DIM * (side + 6) ** 2 + HEADS * n * 49,
        paper={"rate": 440},
    ),
    "local attention, fused": Layer(partial(_attention, LocalAttention, sized=False, fused=True), _kept_local_fused),
    OURS: Layer(_lambda, _kept_lambda, paper={"gigabytes": 1.9, "rate": 1160}),
    "lambda, k 8": Layer(
        partial(_lambda, dim_key=8),
        partial(_kept_lambda, key=8),
        paper={"gigabytes": 0.95, "rate": 1640},
    ),
    "lambda, one table": Layer(_lambda, _kept_lambda, shared=True, paper={"gigabytes": 0.63, "rate": 1210}),
    "lambda convolution": Layer(partial(_lambda, scope=7), _kept_lambda, paper={"rate": 1100}),
}


def predicted_bytes(name: str, side: int) -> int:
    """Bytes that the layers of a row keep for the backward pass of one image, by formula."""
    n = side * side
    between = (LAYERS - 1) * DIM * n  # the inputs of all layers but the first
    return 4 * (LAYERS * ROWS[name].kept(n, side) + between)


def needed_bytes(name: str, side: int) -> int:
    """Bytes that a training step allocates at once: those that it keeps, scaled as at a small size."""
    step = passes(build(name, PROBE), torch.randn(1, DIM, PROBE, PROBE))[TRAINING]
    step()
    return round(predicted_bytes(name, side) * peak_bytes(step) / predicted_bytes(name, PROBE))


def build(name: str, side: int) -> nn.Module:
    """Make the layers of a row for maps of a side."""
    torch.manual_seed(0)
    layers: list[Any] = [ROWS[name].make(side) for _ in range(LAYERS)]
    if ROWS[name].shared:
        for layer in layers[1:]:
            layer.positions = layers[0].positions
    return nn.Sequential(*layers)


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
            _claims(names, sizes),
            _tables(names, sizes, apart),
            _plots(names, sizes),
            [
                f"{LAYERS} layers in a row on one image with {DIM} channels, float32; attention with {HEADS} heads, "
                "lambda layers with 4 heads and k 16. Kept are the bytes between the forward and the backward pass, "
                "without the input and the parameters.",
                f"A row ends where a training step would take more than {SHARE:.0%} of the memory that is free, by "
                f"the formula and by how many times as much a step takes at {PROBE}x{PROBE}, or where its pass takes "
                f"more than {limits} s, whichever comes first.",
                "Times are medians over turns of all rows of a size; their ratios are medians over the ratios of a "
                f"turn, with 95 % intervals. A row whose training pass takes more than {LONGEST:g} s is timed once.",
            ],
            machine_line(cells),
        )


def _without_ended(config: Config, before: Sequence[Done]) -> Config:
    """The configuration of a size with the rows that the size before did not end."""
    rows = before[0].result["rows"]
    return {**config, "rows": [name for name in config["rows"] if name in rows and "ended" not in rows[name]]}


def _measure(name: str, side: int, limit: float) -> tuple[dict[str, Any], dict[str, Callable[[], object]] | None]:
    """What is measured of a row, and its passes where they are to be timed in turns."""
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


# Side -> row -> what was measured of it, and the number of its "cell".
Sizes = Mapping[int, Mapping[str, Mapping[str, Any]]]


def merge(cells: Sequence[Done]) -> tuple[Sizes, list[str]]:
    """Put the rows of all cells of a side together.

    Of a row that several cells have, the newest by date is taken, of one date that of the cell with the most rows.

    Returns:
        The rows by side, and sentences on rows of other cells than most rows of their side.
    """
    found: dict[int, dict[str, Mapping[str, Any]]] = {}
    newest_last = sorted(cells, key=lambda done: (done.environment.get("date", ""), len(done.result["rows"])))
    for number, done in enumerate(newest_last):
        rows = found.setdefault(done.config["side"], {})
        rows.update({name: {**row, "cell": number} for name, row in done.result["rows"].items()})
    sizes = {side: {name: rows[name] for name in ROWS if name in rows} for side, rows in sorted(found.items()) if rows}
    apart: dict[str, list[int]] = {}
    for side, rows in sizes.items():
        numbers = [row["cell"] for row in rows.values()]
        most = max(numbers, key=numbers.count)
        for name, row in rows.items():
            if row["cell"] != most:
                apart.setdefault(name, []).append(side)
    if not apart:
        return sizes, []
    which = "; ".join(f"{name} at {_sides(at)}" for name, at in apart.items())
    text = "Measured in other cells than the rest of their column, so that ratios between them are not of one run"
    return sizes, [f"{text}: {which}."]


def _sides(sides: Iterable[int]) -> str:
    return ", ".join(f"{side}x{side}" for side in sides)


def _value(rows: Mapping[str, Mapping[str, Any]], name: str, value: str) -> float | None:
    """MB of a row, or its milliseconds of a pass; None where it ended."""
    row = rows.get(name, {})
    if "saved_bytes" not in row:
        return None
    return row["milliseconds"][value][0] if value in PASSES else row[value] / 1e6


def _milliseconds(row: Mapping[str, Any], way: str) -> Sequence[float]:
    """Median, low and high of a pass; one number where it was timed once, as where the row ended by it; or none."""
    if row.get("ended") == "time" and way == TRAINING:
        return [1e3 * row["seconds"]]
    found: Sequence[float] = row.get("milliseconds", {}).get(way, [])
    return found


def _claims(names: Sequence[str], sizes: Sizes) -> list[Claim]:
    errors = [
        abs(row["predicted_bytes"] / row["saved_bytes"] - 1)
        for rows in sizes.values()
        for row in rows.values()
        if "saved_bytes" in row
    ]
    claims = []
    if errors:
        text = f"The formulas predict the memory that is kept within {max(errors):.1%}; expected are 10 %."
        claims.append(Claim(text, max(errors) <= 0.1))
    attention = [name for name in names if "attention" in name]
    claims += [claim for name in attention if (claim := _claim_of_memory(name, sizes))]
    return claims + [claim for name in attention if (claim := _claim_of_time(name, sizes))]


def _claim_of_memory(name: str, sizes: Sizes) -> Claim | None:
    ratios = {
        side: other / own
        for side, rows in sizes.items()
        if (own := _value(rows, OURS, "saved_bytes")) and (other := _value(rows, name, "saved_bytes"))
    }
    spread = ", ".join(f"{ratio:.2f} at {_sides([side])}" for side, ratio in ratios.items())
    text = f"{name} keeps so many times the memory of {OURS}: {spread}; expected are more than 1."
    return Claim(text, min(ratios.values()) > 1) if ratios else None


def _claim_of_time(name: str, sizes: Sizes) -> Claim | None:
    """Judged by the intervals: no answer where one contains 1 and no other is below it.

    What was timed once can make an answer doubtful, and gives none.
    """
    # Against fused attention the paper says nothing of small maps.
    least = 28 if "fused" in name else 0
    ratios = {
        side: ratio for side, rows in sizes.items() if (ratio := rows.get(name, {}).get("ratio", {}).get(TRAINING))
    }
    asked = [ratio for side, ratio in ratios.items() if side >= least]
    if not asked:
        return None
    spread = [
        f"{ratio[0]:.2f} ({ratio[1]:.2f} to {ratio[2]:.2f}) at {_sides([side])}" for side, ratio in ratios.items()
    ]
    doubtful = False
    for side, rows in sizes.items():
        own, other = rows.get(OURS, {}), rows.get(name, {})
        ours, theirs = _milliseconds(own, TRAINING), _milliseconds(other, TRAINING)
        if side not in ratios and ours and theirs and own["cell"] == other["cell"]:
            spread.append(f"about {theirs[0] / ours[0]:.3g} (timed once) at {_sides([side])}")
            doubtful |= theirs[0] < ours[0]
    slower, faster = (low > 1 and not doubtful for _, low, _ in asked), any(high < 1 for _, _, high in asked)
    text = f"{name} takes so many times the time of {OURS}: {', '.join(spread)}; expected are more than 1"
    return Claim(f"{text}{f' from {_sides([least])} on' if least else ''}.", all(slower) or (False if faster else None))


def _losses(names: Sequence[str], sizes: Sizes, value: str) -> dict[tuple[str, int], str]:
    """For a lambda row and a side, the attention that needs least where it needs less: time by its whole interval."""
    found = {}
    for side, rows in sizes.items():
        for name in names:
            if "attention" not in name:
                less = {
                    other: most
                    for other in names
                    if "attention" in other and (most := _less(rows.get(other, {}), rows.get(name, {}), value))
                }
                if less:
                    found[name, side] = min(less, key=lambda other: less[other])
    return found


def _less(other: Mapping[str, Any], own: Mapping[str, Any], value: str) -> float | None:
    """What the other row needs, if that is less; None otherwise, or where they are not to be compared."""
    if value not in PASSES:
        return other[value] if value in other and value in own and other[value] < own[value] else None
    theirs, ours = _milliseconds(other, value), _milliseconds(own, value)
    if not theirs or not ours or other["cell"] != own["cell"]:
        return None
    ratios = [row.get("ratio", {}).get(value) for row in (other, own)]
    if all(ratios):
        return theirs[0] if ratios[0][2] < ratios[1][1] else None
    return theirs[0] if theirs[-1] < min(ours) else None


def _tables(names: Sequence[str], sizes: Sizes, apart: Sequence[str]) -> list[Table]:
    def table(
        name: str,
        title: str,
        value: str,
        show: Callable[[Mapping[str, Any]], str],
        note: str = "",
        paper: tuple[str, str] | None = None,
    ) -> Table:
        columns = ["row", *(_sides([side]) for side in sizes), *([f"paper: {paper[1]} (of {OURS})"] if paper else [])]
        lines = [[row, *(show(rows.get(row, {})) for rows in sizes.values())] for row in names]
        notes = [note] if note else []
        if paper:
            lines = [[*line, _paper(line[0], paper[0])] for line in lines]
            notes.append("The paper's figures: ResNet-50, batch of 128, 224x224 pixels, on its accelerator.")
        losses = _losses(names, sizes, value)
        if losses:
            whole = ", by its whole interval or as timed once" if value in PASSES else ""
            notes.append(
                f"Marked where a lambda layer needs more than an attention{whole}; the least: {_told(losses)}."
            )
        places = {(row, side): (i, j) for i, row in enumerate(names) for j, side in enumerate(sizes, start=1)}
        return Table(name, title, columns, lines, [*notes, *apart], marked=frozenset(places[loss] for loss in losses))

    def kept(row: Mapping[str, Any]) -> str:
        if not row:
            return ""
        measured = f"{row['saved_bytes'] / 1e6:,.2f}" if "saved_bytes" in row else f"ended by {row['ended']}"
        return f"{measured} ({row['predicted_bytes'] / 1e6:,.2f})"

    def megabytes(value: str) -> Callable[[Mapping[str, Any]], str]:
        return lambda row: f"{row[value] / 1e6:,.2f}" if value in row else ""

    def milliseconds(way: str) -> Callable[[Mapping[str, Any]], str]:
        return lambda row: f"{found[0]:,.1f}" if (found := _milliseconds(row, way)) else ""

    brackets = "In brackets what the formula predicts."
    peak = "Most memory at once in a training step, MB"
    ends = [[name, *_end(name, sizes)] for name in names]
    return [
        Table("ends", "Where each row ends", ["row", "measured to", "ended by"], ends, apart, text=frozenset({2})),
        table("kept", "Kept for backward, MB", "saved_bytes", kept, brackets, ("gigabytes", "GB")),
        table(
            "parameters",
            "Parameters, MB",
            "parameter_bytes",
            megabytes("parameter_bytes"),
            "Tables of positions included.",
        ),
        table("peak", peak, "peak_bytes", megabytes("peak_bytes")),
        table(
            "training",
            "Forward and backward pass, ms",
            TRAINING,
            milliseconds(TRAINING),
            "With the pass by which a row ended.",
            ("rate", "images/s"),
        ),
        table("inference", "Forward pass, ms", INFERENCE, milliseconds(INFERENCE)),
    ]


def _told(losses: Mapping[tuple[str, int], str]) -> str:
    """Losses in words: "lambda than axial attention at 14x14, 28x28"."""
    sides: dict[tuple[str, str], list[int]] = {}
    for (name, side), other in losses.items():
        sides.setdefault((name, other), []).append(side)
    return "; ".join(f"{name} than {other} at {_sides(at)}" for (name, other), at in sides.items())


def _paper(name: str, figure: str) -> str:
    value = ROWS[name].paper.get(figure)
    if value is None:
        return ""
    return f"{value:g} ({value / ROWS[OURS].paper[figure]:.2f}x)" if value else "out of memory"


def _end(name: str, sizes: Sizes) -> tuple[str, str]:
    """The largest size that was measured of a row, and what ended it behind that."""
    measured = max((side for side, rows in sizes.items() if "saved_bytes" in rows.get(name, {})), default=0)
    to = _sides([measured]) if measured else ""
    for side, rows in sizes.items():
        row = rows.get(name, {})
        if side > measured and row.get("ended") == "memory":
            needed, free = row["needed_bytes"] / 1e9, row["free_bytes"] / 1e9
            return to, f"memory: {_sides([side])} takes {needed:.1f} GB at once, and {free:.1f} GB are free"
        if side > measured and row.get("ended") == "time":
            return to, f"time: a pass of {_sides([side])} takes {row['seconds']:.1f} s"
    return to, "not ended"


def _plots(names: Sequence[str], sizes: Sizes) -> list[Plot]:
    def plot(name: str, title: str, label: str, value: str) -> Plot:
        series = []
        for row in names:
            end = _end(row, sizes)[1]
            found = [(side, y) for side, rows in sizes.items() if (y := _value(rows, row, value)) is not None]
            points = [Point(float(side), y, text=_sides([side])) for side, y in found]
            points[-1:] = [replace(point, text=f"{point.text}; {end}") for point in points[-1:]]
            series.append(Series(f"{row} (to {found[-1][0]}, {end.partition(':')[0]})" if found else row, points))
        return Plot(name, title, Axis("side of the map", log=True), Axis(label, log=True), series, lines=True)

    return [
        plot("memory", "Memory against resolution", "kept for backward, MB", "saved_bytes"),
        plot("time", "Training time against resolution", "forward and backward pass, ms", TRAINING),
    ]


STUDY = MemoryStudy()
