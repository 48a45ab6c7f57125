"""Goals of the benchmark and how far its results reach them: the case that is furthest from each goal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lambdanets.experiments.bench.bench import PEERS, Row
from lambdanets.experiments.bench.cases import CASES, Case
from lambdanets.experiments.bench.contenders import OP
from lambdanets.experiments.bench.measure import PASSES
from lambdanets.markdown_text import markdown_table

__all__ = ["GOALS", "Goal", "goals_table"]

# By case, contender and pass.
Rows = Mapping[tuple[str, str, str], Row]


@dataclass(frozen=True)
class Ratio:
    """A ratio of two times.

    Args:
        value: the ratio.
        text: how it is written.
        contender: that it is of; "" if of none.
        most: what it would be if the op took no time and the rest of the layer as long as it does; None if unknown.
    """

    value: float
    text: str
    contender: str = ""
    most: float | None = None


@dataclass(frozen=True)
class Goal:
    """A bound of a ratio in every case of a group.

    Args:
        text: the group, and what is divided by what.
        holds_for: True for the cases of the group.
        ratio: of a case and a pass; None where its rows are missing.
        bounds: of the ratio, forward and forward+backward.
        at_least: True if the ratio should be the bound or more, False if it should be the bound or less.
    """

    text: str
    holds_for: Callable[[Case], bool]
    ratio: Callable[[Rows, Case, str], Ratio | None]
    bounds: tuple[float, float]
    at_least: bool = True

    def reached(self, value: float, bound: float) -> bool:
        """True if a ratio keeps to a bound."""
        return value >= bound if self.at_least else value <= bound


def _others(*names: str) -> Callable[[Rows, Case, str], Ratio | None]:
    """The time of the fastest of some contenders over ours, with its interval."""

    def ratio(rows: Rows, case: Case, way: str) -> Ratio | None:
        there = [rows[case.name, name, way] for name in names if (case.name, name, way) in rows]
        if not there:
            return None
        row = min(there, key=lambda row: float(row["ratio_median"]))
        value, low, high = (float(row[f"ratio_{name}"]) for name in ("median", "low", "high"))
        text = f"{value:.2f}x ({low:.2f} to {high:.2f})"
        return Ratio(value, text, str(row["contender"]), _without_op(value, rows, case, way))

    return ratio


def _without_op(value: float, rows: Rows, case: Case, way: str) -> float | None:
    """A ratio to our layer's time, if its op took no time: what is left are projection, norms and copies."""
    layer, op = (rows.get((case.name, name, way)) for name in ("lambdanets", OP))
    if layer is None or op is None:
        return None
    whole, part = float(layer["median_ms"]), float(op["median_ms"])
    return value * whole / (whole - part) if part < whole else None


def _over_floor(rows: Rows, case: Case, way: str) -> Ratio | None:
    """The time of the op over its floor: its multiply-adds at the rate of a large matrix product in the same turns."""
    row = rows.get((case.name, OP, way))
    if row is None or not row.get("over_floor_median"):  # a file of before these columns
        return None
    value, low, high = (float(row[f"over_floor_{key}"]) for key in ("median", "low", "high"))
    return Ratio(value, f"{value:.2f}x ({low:.2f} to {high:.2f})")


def _over_one_depth(rows: Rows, case: Case, way: str) -> Ratio | None:
    """The time of a layer over that of the same one with u = 1, of the medians."""
    one = case.name.removesuffix(f"-u{case.intra_depth}")
    if (case.name, "lambdanets", way) not in rows or (one, "lambdanets", way) not in rows:
        return None
    value, base = (float(rows[name, "lambdanets", way]["median_ms"]) for name in (case.name, one))
    return Ratio(value / base, f"{value / base:.2f}x, of medians")


def _is_one_small(case: Case) -> bool:
    return case.batch == 1 and case.positions <= 200


def _globals(low: int, high: int = 1 << 30, depth: int = 1) -> Callable[[Case], bool]:
    """Global contexts of some numbers of positions."""
    return lambda case: (
        case.scope is None and case.intra_depth == depth and low <= case.positions <= high and not _is_one_small(case)
    )


def _scopes(*scopes: int) -> Callable[[Case], bool]:
    return lambda case: case.scope in scopes and case.intra_depth == 1


def _is_wide_image(case: Case) -> bool:
    return case.dim >= 128 and case.intra_depth == 1 and len(case.grid) == 2


def _is_large(case: Case) -> bool:
    return _globals(196)(case) or _scopes(23)(case)


def _is_small_or_near(case: Case) -> bool:
    return _globals(1, 49)(case) or _scopes(7)(case)


_PEERS, _ATTENTION = _others(*PEERS), _others("attention")

GOALS = (
    Goal("one example, 7x7 to 14x14, beside timm", _is_one_small, _others("timm"), (1, 1)),
    Goal("global, n to 256, beside lambda layers", _globals(1, 256), _PEERS, (2.5, 3)),
    Goal("global, n 784 to 1024, beside lambda layers", _globals(784, 1024), _PEERS, (10, 8)),
    Goal("global, n from 3136, beside lambda layers", _globals(3136), _PEERS, (60, 60)),
    Goal("scope 7 and 9, beside lambda layers", _scopes(7, 9), _PEERS, (2, 4)),
    Goal("scope 23, beside lambda layers", _scopes(23), _PEERS, (3, 10)),
    Goal("global, n 196 to 256, beside attention", _globals(196, 256), _ATTENTION, (1, 1)),
    Goal("global, n from 784, beside attention", _globals(784), _ATTENTION, (2, 2)),
    Goal("images, d from 128, beside a 3x3 convolution", _is_wide_image, _others("convolution"), (1, 1)),
    Goal("global, n from 784, u = 4 over u = 1", _globals(784, depth=4), _over_one_depth, (1.5, 1.5), at_least=False),
    Goal("the op over its floor, n from 196, global and scope 23", _is_large, _over_floor, (2, 2), at_least=False),
    Goal("the op over its floor, 7x7 and scope 7", _is_small_or_near, _over_floor, (4, 4), at_least=False),
)


def goals_table(rows: Sequence[Row]) -> str:
    """Return, by goal and pass, the bound, the case that is furthest from it and what was measured, in Markdown.

    Goals without a case among the rows are left out; without any goal the table is "". Of a group of which some cases
    are missing the first column says so.

    Ratios have their intervals, but for u = 4 over u = 1, which is of medians of one run. Where a goal is not reached,
    the last column says where the time goes: what the ratio would be with an op that took no time.
    """
    found = {(str(row["case"]), str(row["contender"]), str(row["pass"])): row for row in rows}
    lines = []
    for goal in GOALS:
        for way, bound in zip(PASSES, goal.bounds, strict=True):
            ratios = {case.name: goal.ratio(found, case, way) for case in CASES if goal.holds_for(case)}
            there = {name: ratio for name, ratio in ratios.items() if ratio is not None}
            if not there:
                continue
            furthest = (min if goal.at_least else max)(there, key=lambda name: there[name].value)
            ratio = there[furthest]
            is_held = goal.reached(ratio.value, bound)
            held = "yes" if is_held else "**no**"
            sign = "at least" if goal.at_least else "at most"
            measured = f"{ratio.text} {ratio.contender}".rstrip()
            most = "" if is_held or ratio.most is None else f"{ratio.most:.2f}x"
            text = goal.text if len(there) == len(ratios) else f"{goal.text} ({len(there)} of {len(ratios)} cases)"
            lines.append([text, way, f"{sign} {bound:g}x", f"`{furthest}`", measured, held, most])
    if not lines:
        return ""
    return markdown_table(
        ["goal", "pass", "bound", "furthest case", "measured", "reached", "with an op of no time"], lines
    )
