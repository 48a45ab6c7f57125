"""Memory and time of attention and lambda layers against resolution, to where each ends (paper, table on memory).

lambdanets compare memory --quick
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from lambdanets.experiments.bench.measure import PASSES, passes, peak_bytes, saved_bytes
from lambdanets.experiments.bench.timing import Turns, wall_clock
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
SIZES = {"quick": (14, 28), "full": (14, 20, 28, 40, 56, 80, 112)}
SECONDS = {"quick": 1.0, "full": 4.0}
# A call that takes longer is timed once: seven turns of it would take too long.
LONGEST = 4.0
# Of the memory that is free, what a row's prediction may take: its step allocates more than it keeps.
SHARE = 0.4
INFERENCE, TRAINING = PASSES


@dataclass(frozen=True)
class Layer:
    """A row of the study.

    Args:
        make: a layer from the side of the map.
        kept: numbers that a layer keeps for the backward pass of one image, its input left out, from the number of
            positions and the side of the map.
        shared: True if all layers have one table of positions.
    """

    make: Callable[[int], nn.Module]
    kept: Callable[[int, int], int]
    shared: bool = False


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
    "global attention": Layer(partial(_attention, GlobalAttention), lambda n, side: 5 * DIM * n + HEADS * n * n),
    "global attention, fused": Layer(
        partial(_attention, GlobalAttention, fused=True),
        lambda n, side: 2 * DIM * n + 4 * n * (DIM + HEADS * 2 * side) + HEADS * n,
    ),
    "axial attention": Layer(partial(_attention, AxialAttention), lambda n, side: 9 * DIM * n + 2 * HEADS * n * side),
    "axial attention, fused": Layer(
        partial(_attention, AxialAttention, fused=True),
        lambda n, side: 3 * DIM * n + 8 * n * (DIM + HEADS * side) + 2 * HEADS * n,
    ),
    "local attention": Layer(
        partial(_attention, LocalAttention, sized=False),
        lambda n, side: 3 * DIM * n + 2 * DIM * (side + 6) ** 2 + HEADS * n * 49,
    ),
    "local attention, fused": Layer(partial(_attention, LocalAttention, sized=False, fused=True), _kept_local_fused),
    "lambda": Layer(_lambda, _kept_lambda),
    "lambda, k 8": Layer(partial(_lambda, dim_key=8), partial(_kept_lambda, key=8)),
    "lambda, one table": Layer(_lambda, _kept_lambda, shared=True),
    "lambda convolution": Layer(partial(_lambda, scope=7), _kept_lambda),
}


def predicted_bytes(name: str, side: int) -> int:
    """Bytes that the layers of a row keep for the backward pass of one image, by formula."""
    n = side * side
    between = (LAYERS - 1) * DIM * n  # the inputs of all layers but the first
    return 4 * (LAYERS * ROWS[name].kept(n, side) + between)


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
    takes_data, default_data = False, None

    def row_names(self, options: Options) -> list[str]:
        """See the interface."""
        return list(ROWS)

    def cells(self, options: Options) -> list[Cell]:
        """See the interface."""
        rows = list(dict.fromkeys(["lambda", *choose_rows(self, options)]))
        common = {"study": self.name, "kind": "sizes", "scale": options.scale, "seconds": SECONDS[options.scale]}
        return [
            Cell({**common, "row": f"{side}x{side}", "side": side, "rows": rows}, weight=side**3, alone=True)
            for side in SIZES[options.scale]
        ]

    def run(self, config: Config, place: Place) -> dict[str, Any]:
        """See the interface."""
        side = config["side"]
        found: dict[str, dict[str, Any]] = {}
        calls: dict[str, dict[str, Callable[[], object]]] = {}
        for name in config["rows"]:
            predicted = predicted_bytes(name, side)
            if predicted > SHARE * available_memory():
                found[name] = {"predicted_bytes": predicted}
                continue
            module, x = build(name, side), torch.randn(1, DIM, side, side)
            step = passes(module, x)
            step[TRAINING]()
            found[name] = {
                "predicted_bytes": predicted,
                "saved_bytes": saved_bytes(module, x),
                "parameter_bytes": sum(parameter.nbytes for parameter in module.parameters()),
                "peak_bytes": peak_bytes(step[TRAINING]),
                "milliseconds": {},
            }
            calls[name] = step
        for way in PASSES:
            for name, milliseconds in _times({name: step[way] for name, step in calls.items()}, config["seconds"]):
                found[name]["milliseconds"][way] = milliseconds
        return {"rows": found}

    def line(self, result: Mapping[str, Any]) -> str:
        """See the interface."""
        rows = result.get("rows", {})
        ended = [name for name, row in rows.items() if "saved_bytes" not in row]
        return f"{len(rows) - len(ended)} rows measured" + (f", no room for {', '.join(ended)}" if ended else "")

    def outcome(self, cells: Sequence[Done]) -> Outcome:
        """See the interface."""
        sizes = {done.config["side"]: done.result["rows"] for done in sorted(cells, key=lambda d: d.config["side"])}
        names = [name for name in ROWS if any(name in rows for rows in sizes.values())]
        return Outcome(
            self.name,
            self.title,
            self.question,
            _claims(names, sizes),
            _tables(names, sizes),
            _plots(names, sizes),
            [
                f"{LAYERS} layers in a row on one image with {DIM} channels, float32; attention with {HEADS} heads, "
                "lambda layers with 4 heads and k 16. Kept are the bytes between the forward and the backward pass, "
                "without the input and the parameters. A row ends where its prediction takes more than "
                f"{SHARE:.0%} of the memory that is free.",
                f"Times are medians over turns of all rows; a call of more than {LONGEST:g} s is timed once.",
            ],
            machine_line(cells),
        )


def _times(calls: Mapping[str, Callable[[], object]], seconds: float) -> list[tuple[str, list[float]]]:
    """Milliseconds of each call (median, low, high)."""
    once = {name: wall_clock(call) for name, call in calls.items()}
    short = [name for name, value in once.items() if value <= LONGEST]
    found = [(name, [round(1e3 * value, 3)]) for name, value in once.items() if name not in short]
    if short:
        turns = Turns([calls[name] for name in short])
        turns.take(seconds * len(short) / 4, 3 * seconds * len(short))
        for name, timing in zip(short, turns.timings(), strict=True):
            estimate = timing.seconds
            found.append((name, [round(1e3 * value, 3) for value in (estimate.median, estimate.low, estimate.high)]))
    return found


Sizes = Mapping[int, Mapping[str, Mapping[str, Any]]]


def _value(rows: Mapping[str, Mapping[str, Any]], name: str, value: str) -> float | None:
    """MB that a row keeps, or its milliseconds of a pass; None where it ended."""
    row = rows.get(name, {})
    if "saved_bytes" not in row:
        return None
    return row["milliseconds"][value][0] if value in PASSES else row[value] / 1e6


def _claims(names: Sequence[str], sizes: Sizes) -> list[Claim]:
    errors = [
        abs(row["predicted_bytes"] / row["saved_bytes"] - 1)
        for rows in sizes.values()
        for row in rows.values()
        if "saved_bytes" in row
    ]
    claims = []
    if errors:
        text = f"The formulas predict the memory that is kept within {max(errors):.0%}; expected are 10 %."
        claims.append(Claim(text, max(errors) <= 0.1))
    for value, what, verb in (("saved_bytes", "memory", "keeps"), (TRAINING, "time", "takes")):
        for name in names:
            if "attention" not in name:
                continue
            # Against fused attention the paper says nothing of small maps.
            least = 28 if value == TRAINING and "fused" in name else 0
            ratios = {
                side: other / own
                for side, rows in sizes.items()
                if (own := _value(rows, "lambda", value)) and (other := _value(rows, name, value))
            }
            asked = {side: ratio for side, ratio in ratios.items() if side >= least}
            if asked:
                spread = ", ".join(f"{ratio:.2f} at {side}x{side}" for side, ratio in ratios.items())
                claims.append(
                    Claim(f"{name} {verb} so many times the {what} of lambda: {spread}.", min(asked.values()) > 1)
                )
    return claims


def _tables(names: Sequence[str], sizes: Sizes) -> list[Table]:
    columns = ["row", *(f"{side}x{side}" for side in sizes)]

    def table(name: str, title: str, show: Callable[[Mapping[str, Any]], str], note: str) -> Table:
        lines = [[row, *(show(rows.get(row, {})) for rows in sizes.values())] for row in names]
        return Table(name, title, columns, lines, [note] if note else [])

    def kept(row: Mapping[str, Any]) -> str:
        if not row:
            return ""
        predicted = f"{row['predicted_bytes'] / 1e6:,.2f}"
        return f"{row['saved_bytes'] / 1e6:,.2f} ({predicted})" if "saved_bytes" in row else f"no room ({predicted})"

    def megabytes(value: str) -> Callable[[Mapping[str, Any]], str]:
        return lambda row: f"{row[value] / 1e6:,.2f}" if value in row else ""

    def milliseconds(way: str) -> Callable[[Mapping[str, Any]], str]:
        return lambda row: f"{row['milliseconds'][way][0]:,.1f}" if "milliseconds" in row else ""

    return [
        table("kept", "Kept for backward, MB", kept, "In brackets what the formula predicts."),
        table("parameters", "Parameters, MB", megabytes("parameter_bytes"), "Tables of positions included."),
        table("peak", "Most memory at once in a training step, MB", megabytes("peak_bytes"), ""),
        table("training", "Forward and backward pass, ms", milliseconds(TRAINING), ""),
        table("inference", "Forward pass, ms", milliseconds(INFERENCE), ""),
    ]


def _plots(names: Sequence[str], sizes: Sizes) -> list[Plot]:
    def plot(name: str, title: str, label: str, value: str) -> Plot:
        series = []
        for row in names:
            found = [(side, _value(rows, row, value)) for side, rows in sizes.items()]
            points = [Point(float(side), y, text=f"{side}x{side}") for side, y in found if y is not None]
            series.append(Series(row, points))
        return Plot(name, title, Axis("side of the map", log=True), Axis(label, log=True), series, lines=True)

    return [
        plot("memory", "Memory against resolution", "kept for backward, MB", "saved_bytes"),
        plot("time", "Training time against resolution", "forward and backward pass, ms", TRAINING),
    ]


STUDY = MemoryStudy()
