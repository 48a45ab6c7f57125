"""Findings of the study of memory: rows of all cells put together, claims, tables, plots."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from lambdanets.experiments.bench.measure import INFERENCE, PASSES, TRAINING
from lambdanets.experiments.compare.cell import Done
from lambdanets.experiments.compare.outcome import Axis, Claim, Plot, Point, Series, Table, four_digits
from lambdanets.experiments.studies.memory.rows import OURS, ROWS, predicted_bytes

__all__ = ["Sizes", "claims_of", "merge", "plots_of", "tables_of"]

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


@dataclass(frozen=True)
class Quantity:
    """A quantity of which there is a table.

    Args:
        name: of the table's files.
        title: above it.
        value: what is measured: a pass, or bytes by their name.
        show: a row's cell, "" where it was not measured.
        note: a sentence below the table.
        paper: the name of the paper's figures for it, and their unit.
    """

    name: str
    title: str
    value: str
    show: Callable[[Mapping[str, Any]], str]
    note: str = ""
    paper: tuple[str, str] | None = None


def _show_kept(row: Mapping[str, Any]) -> str:
    if not row:
        return ""
    measured = f"{row['saved_bytes'] / 1e6:,.2f}" if "saved_bytes" in row else "not reached"
    return f"{measured} ({row['predicted_bytes'] / 1e6:,.2f})"


def _show_bytes(value: str, row: Mapping[str, Any]) -> str:
    return f"{row[value] / 1e6:,.2f}" if value in row else ""


def _show_time(way: str, row: Mapping[str, Any]) -> str:
    return f"{found[0]:,.1f}" if (found := _milliseconds(row, way)) else ""


QUANTITIES = (
    Quantity(
        "kept",
        "Kept for backward, MB",
        "saved_bytes",
        _show_kept,
        "In brackets what the formula predicts.",
        ("gigabytes", "GB"),
    ),
    Quantity(
        "parameters",
        "Parameters, MB",
        "parameter_bytes",
        partial(_show_bytes, "parameter_bytes"),
        "Tables of positions included.",
    ),
    Quantity("peak", "Most memory at once in a training step, MB", "peak_bytes", partial(_show_bytes, "peak_bytes")),
    Quantity(
        "training",
        "Forward and backward pass, ms",
        TRAINING,
        partial(_show_time, TRAINING),
        "With the pass by which a row ended.",
        ("rate", "images/s"),
    ),
    Quantity("inference", "Forward pass, ms", INFERENCE, partial(_show_time, INFERENCE)),
)


def claims_of(names: Sequence[str], sizes: Sizes) -> list[Claim]:
    """Say what was expected of the rows, and what was found."""
    errors = [
        abs(row["predicted_bytes"] / row["saved_bytes"] - 1)
        for rows in sizes.values()
        for row in rows.values()
        if "saved_bytes" in row
    ]
    claims = []
    if errors:
        text = f"The formulas predict the memory that is kept within {max(errors):.1%}; expected: within 10 %."
        claims.append(Claim(text, max(errors) <= 0.1))
    attention = [name for name in names if ROWS[name].attention]
    claims += [claim for name in attention if (claim := _claim_of_memory(name, sizes))]
    return claims + [claim for name in attention if (claim := _claim_of_time(name, sizes))]


def _claim_of_memory(name: str, sizes: Sizes) -> Claim | None:
    ratios = {
        side: other / own
        for side, rows in sizes.items()
        if (own := _value(rows, OURS, "saved_bytes")) and (other := _value(rows, name, "saved_bytes"))
    }
    if not ratios:
        return None
    spread = _spread({side: (ratio, f"{ratio:.2f}") for side, ratio in ratios.items()})
    text = f"Memory kept by {name}, in multiples of that of {OURS}: {spread}; expected: more than 1."
    return Claim(text, min(ratios.values()) > 1)


def _spread(found: Mapping[int, tuple[float, str]]) -> str:
    """The values of all sides in words; of more than two the least and the most."""
    told = {side: f"{text} at {_sides([side])}" for side, (_, text) in found.items()}
    if len(found) <= 2:
        return ", ".join(told.values())
    least, most = (choose(found, key=lambda side: found[side][0]) for choose in (min, max))
    return f"{told[least]} to {told[most]}, the smallest and largest of {len(found)} sizes"


def _claim_of_time(name: str, sizes: Sizes) -> Claim | None:
    """Judged by the intervals: no answer where one contains 1 and no other is below it.

    What was timed once can make an answer doubtful, and gives none.
    """
    # Against fused attention the paper says nothing of small maps.
    least = 28 if ROWS[name].attention == "fused" else 0
    ratios = {
        side: ratio for side, rows in sizes.items() if (ratio := rows.get(name, {}).get("ratio", {}).get(TRAINING))
    }
    asked = [ratio for side, ratio in ratios.items() if side >= least]
    if not asked:
        return None
    found = {side: ratio for side, rows in sizes.items() if (ratio := _times_ours(rows, name))}
    doubtful = any(value < 1 for side, (value, _) in found.items() if side not in ratios)
    slower, faster = (low > 1 and not doubtful for _, low, _ in asked), any(high < 1 for _, _, high in asked)
    text = f"Time of {name}, in multiples of that of {OURS}: {_spread(found)}; expected: more than 1"
    return Claim(f"{text}{f' from {_sides([least])} on' if least else ''}.", all(slower) or (False if faster else None))


def _times_ours(rows: Mapping[str, Mapping[str, Any]], name: str) -> tuple[float, str] | None:
    """Time of a row's training pass over that of a lambda layer, and in words; None if they are not of one run."""
    own, other = rows.get(OURS, {}), rows.get(name, {})
    ratio = other.get("ratio", {}).get(TRAINING)
    if ratio:
        return ratio[0], f"{ratio[0]:.2f} ({ratio[1]:.2f} to {ratio[2]:.2f})"
    ours, theirs = _milliseconds(own, TRAINING), _milliseconds(other, TRAINING)
    if not ours or not theirs or own["cell"] != other["cell"]:
        return None
    return theirs[0] / ours[0], f"about {theirs[0] / ours[0]:.3g} (timed once)"


def _losses(names: Sequence[str], sizes: Sizes, value: str) -> dict[tuple[str, int], str]:
    """For a lambda row and a side, the attention that needs least where it needs less: time by its whole interval."""
    found = {}
    for side, rows in sizes.items():
        for name in names:
            if not ROWS[name].attention:
                less = {
                    other: most
                    for other in names
                    if ROWS[other].attention and (most := _less(rows.get(other, {}), rows.get(name, {}), value))
                }
                if less:
                    found[name, side] = min(less, key=lambda other: less[other])
    return found


def _less(other: Mapping[str, Any], own: Mapping[str, Any], value: str) -> float | None:
    """Return what the other row needs, if that is less; None otherwise, or where they are not to be compared."""
    if value not in PASSES:
        return other[value] if value in other and value in own and other[value] < own[value] else None
    theirs, ours = _milliseconds(other, value), _milliseconds(own, value)
    if not theirs or not ours or other["cell"] != own["cell"]:
        return None
    ratios = [row.get("ratio", {}).get(value) for row in (other, own)]
    if all(ratios):
        return theirs[0] if ratios[0][2] < ratios[1][1] else None
    return theirs[0] if theirs[-1] < min(ours) else None


def tables_of(names: Sequence[str], sizes: Sizes, apart: Sequence[str]) -> list[Table]:
    """Return the tables of the rows; ``apart`` are the sentences of ``merge``, which stand below each."""
    kept, parameters, peak, training, inference = (_table(quantity, names, sizes) for quantity in QUANTITIES)
    ends, ratios = _table_of_ends(names, sizes), _table_of_ratios(names, sizes)
    tables = (ends, kept, _table_of_formulas(names, sizes), parameters, peak, training, ratios, inference)
    # Of one row alone there is nothing to divide.
    return [replace(table, notes=[*table.notes, *apart]) for table in tables if table.rows and len(table.columns) > 1]


def _table(quantity: Quantity, names: Sequence[str], sizes: Sizes) -> Table:
    """The table of a quantity by row and size, with the paper's figures and with marks where a lambda layer lost."""
    columns = ["row", *(_sides([side]) for side in sizes)]
    lines = [[row, *(quantity.show(rows.get(row, {})) for rows in sizes.values())] for row in names]
    notes = [quantity.note] if quantity.note else []
    if quantity.paper:
        figure, unit = quantity.paper
        columns.append(f"paper: {unit} (of {OURS})")
        lines = [[*line, _paper(line[0], figure)] for line in lines]
        notes.append("The paper's figures: ResNet-50, batch of 128, 224x224 pixels, on its accelerator.")
    losses = _losses(names, sizes, quantity.value)
    if losses:
        whole = ", by its whole interval or as timed once" if quantity.value in PASSES else ""
        notes.append(f"Marked where a lambda layer needs more than an attention{whole}: {_told(losses, list(sizes))}.")
    places = {(row, side): (i, j) for i, row in enumerate(names) for j, side in enumerate(sizes, start=1)}
    marked = frozenset(places[loss] for loss in losses)
    return Table(quantity.name, quantity.title, columns, lines, notes, marked=marked)


def _table_of_ends(names: Sequence[str], sizes: Sizes) -> Table:
    lines = [[name, *_end(name, sizes)] for name in names]
    return Table("ends", "Where each row ends", ["row", "measured to", "ended by"], lines, text=frozenset({2}))


def _table_of_formulas(names: Sequence[str], sizes: Sizes) -> Table:
    """The table of what each row keeps by the formula, also at sizes that take too long or too much to be measured."""
    lines = [[row, *(four_digits(predicted_bytes(row, side) / 1e9) for side in sizes)] for row in names]
    columns = ["row", *(_sides([side]) for side in sizes)]
    return Table("formula", "Kept for backward by the formula, GB, at every size", columns, lines)


def _table_of_ratios(names: Sequence[str], sizes: Sizes) -> Table:
    others = [row for row in names if row != OURS]
    found = {side: [_times_ours(rows, row) for row in others] for side, rows in sizes.items()}
    found = {side: ratios for side, ratios in found.items() if any(ratios)}
    lines = [
        [row, *(ratio[1] if ratio else "" for ratio in ratios)]
        for row, *ratios in zip(others, *found.values(), strict=True)
    ]
    columns = ["row", *(_sides([side]) for side in found)]
    notes = [f"The time of a row divided by that of {OURS}: above 1, {OURS} is faster."]
    return Table("ratios", f"Forward and backward pass, times that of {OURS} (95 %)", columns, lines, notes)


def _told(losses: Mapping[tuple[str, int], str], sizes: Sequence[int]) -> str:
    """Losses in words: "axial attention needs less than lambda at 14x14, 28x28"; a row of sizes by its ends."""
    sides: dict[tuple[str, str], list[int]] = {}
    for (name, side), other in losses.items():
        sides.setdefault((name, other), []).append(side)

    def where(at: Sequence[int]) -> str:
        first, last = sizes.index(at[0]), sizes.index(at[-1])
        in_a_row = len(at) > 2 and last - first == len(at) - 1
        return f"from {_sides(at[:1])} to {_sides(at[-1:])}" if in_a_row else f"at {_sides(at)}"

    return "; ".join(f"{other} needs less than {name} {where(at)}" for (name, other), at in sides.items())


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


def plots_of(names: Sequence[str], sizes: Sizes) -> list[Plot]:
    """Return the plots of the rows against the side of the map."""

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
