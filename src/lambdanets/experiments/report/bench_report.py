"""Tables and plots of the benchmark's rows, those of the README and the docs included."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from lambdanets.experiments.bench.bench import PEERS, Row
from lambdanets.experiments.bench.growth import LEAST_POSITIONS, exponents
from lambdanets.experiments.bench.measure import PASSES
from lambdanets.files import replacing
from lambdanets.markdown_text import markdown_table

__all__ = [
    "NOISY",
    "PASSES",
    "bench_table",
    "compact_table",
    "comparisons",
    "environment_line",
    "growth_table",
    "pass_table",
    "plot_bench",
    "plot_growth",
    "times",
]

NOISY = "~"
LEGEND = (
    f"{NOISY}: the 95 % interval of a median reaches more than 10 % of the median away from it, or the quotient of the "
    "milliseconds is more than 10 % from the ratio."
)
COLUMNS = {"peers": "best of lucidrains and timm", "attention": "attention", "convolution": "3x3 convolution"}
LABELS = {"lambdanets": "ours", "attention": "attention (SDPA)", "convolution": "3x3 convolution"}
COLOURS = {
    "lambdanets": "#2f6fde",
    "lucidrains": "#d9822b",
    "timm": "#c23030",
    "attention": "#6a4fb3",
    "convolution": "#3a7d44",
}


def environment_line(rows: Sequence[Row]) -> str:
    """Return machine, versions, threads, precision, commits and dates of a result in one line."""
    row = rows[0]
    # Rows may come from several commits and days; files of earlier versions have no date, still earlier ones no commit.
    commits, dates = (
        list(dict.fromkeys(str(each[name]) for each in rows if each.get(name))) for name in ("commit", "date")
    )
    own = f", lambdanets {row['lambdanets']} ({', '.join(commits)})" if commits else ""
    own += f"; {', '.join(dates)}" if dates else ""
    return (
        f"{row['machine']}, {row['threads']} threads of {row['cores']} cores, {row['precision']}; "
        f"PyTorch {row['torch']}, timm {row['timm']}, lambda-networks {row['lambda-networks']}, "
        f"Python {row['python']}{own}"
    )


def _by_case(rows: Sequence[Row]) -> dict[str, dict[tuple[str, str], Row]]:
    cases: dict[str, dict[tuple[str, str], Row]] = {}
    for row in rows:
        cases.setdefault(str(row["case"]), {})[str(row["contender"]), str(row["pass"])] = row
    return cases


def comparisons(rows: Sequence[Row]) -> dict[str, dict[str, dict[str, Row]]]:
    """Return case -> pass -> what our layer is compared with -> its row.

    "peers" is the faster one of lucidrains and timm, "kernels" the fastest of our own kernels, which shows how well the
    planner chose.
    """
    result: dict[str, dict[str, dict[str, Row]]] = {}
    for case, found in _by_case(rows).items():
        for way in PASSES:
            groups: dict[str, list[Row | None]] = {
                "peers": [found.get((peer, way)) for peer in PEERS],
                "attention": [found.get(("attention", way))],
                "convolution": [found.get(("convolution", way))],
                "kernels": [row for (name, w), row in found.items() if w == way and name.startswith("lambdanets:")],
            }
            there = {name: [row for row in members if row is not None] for name, members in groups.items()}
            result.setdefault(case, {})[way] = {
                name: min(members, key=lambda row: float(row["ratio_median"]))
                for name, members in there.items()
                if members
            }
    return result


def times(row: Row) -> str:
    """Return the ratio of a row as text, 1.73x: its time over ours, marked if it is noisy."""
    ratio = float(row["ratio_median"])
    return (f"{ratio:.2f}x" if ratio < 10 else f"{ratio:.1f}x") + _mark(row)


def _mark(row: Row) -> str:
    return NOISY if row["noisy"] else ""


def _interval(row: Row, name: str, unit: str = "") -> str:
    low, high = row.get(f"{name}low{unit}", ""), row.get(f"{name}high{unit}", "")
    return f"{float(low):.2f} to {float(high):.2f}" if low != "" else ""


def _milliseconds(row: Row, digits: int = 1) -> str:
    return f"{float(row['median_ms']):.{digits}f}{_mark(row)}"


def _with_legend(table: str) -> str:
    return f"{table}\n\n{LEGEND}" if NOISY in table else table


def bench_table(rows: Sequence[Row]) -> str:
    """Return every contender's milliseconds, ratio to ours and memory by case, in Markdown."""
    lines = [
        [
            str(row["case"]),
            str(row["contender"]),
            str(row["pass"]),
            _milliseconds(row, 2),
            _interval(row, "", "_ms"),
            times(row),
            _interval(row, "ratio_"),
            f"{float(row['floor_ms']):.2f}" if row["floor_ms"] != "" else "",
            f"{int(row['saved_bytes']) / 1e6:.1f}",
            f"{int(row['peak_bytes']) / 1e6:.1f}",
            str(row["note"]),
        ]
        for row in rows
    ]
    header = ["case", "contender", "pass", "ms", "95 %", "over ours", "95 %", "floor", "kept MB", "peak MB", "note"]
    return _with_legend(markdown_table(header, lines))


def pass_table(rows: Sequence[Row]) -> str:
    """Return, by case and pass, our time and the ratios of the others with their intervals, in Markdown."""
    lines = []
    cases = _by_case(rows)
    for case, by_pass in comparisons(rows).items():
        for way, others in by_pass.items():
            cells = []
            for name in COLUMNS:
                interval = _interval(others[name], "ratio_") if name in others else ""
                cells.append("" if name not in others else times(others[name]) + (interval and f" ({interval})"))
            lines.append([f"`{case}`", way, _milliseconds(cases[case]["lambdanets", way], 2), *cells])
    return _with_legend(markdown_table(["case", "pass", "ours, ms", *COLUMNS.values()], lines))


def compact_table(rows: Sequence[Row], names: Collection[str] | None = None) -> str:
    """Return, by case, our time and how many times longer the others take, forward / forward+backward, in Markdown.

    Args:
        rows: of the benchmark.
        names: the cases of the table; None for all.
    """
    compared, lines = comparisons(rows), []
    for case, found in _by_case(rows).items():
        if names is not None and case not in names:
            continue
        both = compared[case].values()
        ours = " / ".join(_milliseconds(found["lambdanets", way]) for way in PASSES)
        cells = [" / ".join(times(others[name]) for others in both if name in others) for name in COLUMNS]
        kept = [int(found[name, PASSES[0]]["saved_bytes"]) for name in PEERS if (name, PASSES[0]) in found]
        own = int(found["lambdanets", PASSES[0]]["saved_bytes"])
        lines.append([f"`{case}`", ours, *cells, f"{min(kept) / own:.1f}x" if kept else ""])
    return _with_legend(markdown_table(["case", "ours, ms", *COLUMNS.values(), "memory kept by the others"], lines))


def growth_table(rows: Sequence[Row]) -> str:
    """Return milliseconds by number of positions, and the fitted exponents, in Markdown."""
    names = ["lambdanets", "lucidrains", "timm", "attention"]
    found = {(int(row["positions"]), str(row["contender"]), str(row["pass"])): row for row in rows}
    lines = []
    for n in sorted({int(row["positions"]) for row in rows}):
        both = ([found.get((n, name, way)) for way in PASSES] for name in names)
        lines.append([f"{n:,}", *(" / ".join(_milliseconds(row) for row in cells if row) for cells in both)])
    slopes = exponents(rows)
    cells = []
    for name in names:
        both_slopes = [slopes.get((name, way)) for way in PASSES]
        cells.append(" / ".join("" if slope is None else f"n^{slope:.2f}" for slope in both_slopes))
    left_out = any(int(row["positions"]) >= LEAST_POSITIONS and row["noisy"] for row in rows)
    lines.append([f"fit from n = {LEAST_POSITIONS}" + (f", without {NOISY}" if left_out else ""), *cells])
    return _with_legend(markdown_table(["n", *(LABELS.get(name, name) for name in names)], lines))


def plot_growth(rows: Sequence[Row], path: Path) -> None:
    """Draw time against n, log-log, one panel for each pass; noisy points are hollow and not fitted."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.2, 4.6))
    axes = figure.subplots(1, len(PASSES))
    slopes = exponents(rows)
    for axis, way in zip(axes, PASSES, strict=True):
        for name in ("lambdanets", "lucidrains", "timm", "attention"):
            points = sorted(
                (int(row["positions"]), float(row["median_ms"]), bool(row["noisy"]))
                for row in rows
                if row["contender"] == name and row["pass"] == way
            )
            if points:
                slope = slopes.get((name, way))
                label = LABELS.get(name, name) + ("" if slope is None else f", n^{slope:.2f}")
                n, ms, _ = zip(*points, strict=True)
                axis.loglog(n, ms, marker="o", markersize=4, color=COLOURS[name], label=label)
                hollow = [(x, y) for x, y, is_noisy in points if is_noisy]
                if hollow:
                    style = {"marker": "o", "markersize": 4, "linestyle": "", "zorder": 3}
                    axis.loglog(*zip(*hollow, strict=True), color="white", markeredgecolor=COLOURS[name], **style)
        axis.set_title(way)
        axis.set_xlabel("positions n")
        axis.set_ylabel("milliseconds")
        axis.grid(alpha=0.3, which="both")
        axis.legend()
    _save(figure, path)


def plot_bench(rows: Sequence[Row], path: Path) -> None:
    """Draw each contender's time over ours by case, as bars that start at 1, one panel for each pass."""
    from matplotlib.figure import Figure

    cases = _by_case(rows)
    names = ("lucidrains", "timm", "attention", "convolution")
    figure = Figure(figsize=(13, 1.8 + 0.42 * len(cases)))
    axes = figure.subplots(1, len(PASSES))
    bars = {}
    for axis, way in zip(axes, PASSES, strict=True):
        for place, name in enumerate(names):
            points = [
                (index, float(found[name, way]["ratio_median"]))
                for index, found in enumerate(cases.values())
                if (name, way) in found
            ]
            if points:
                places, values = zip(*points, strict=True)
                offsets = [p + 0.18 * (place - 1.5) for p in places]
                widths = [value - 1 for value in values]
                bars[LABELS.get(name, name)] = axis.barh(offsets, widths, height=0.17, left=1, color=COLOURS[name])
        axis.axvline(1, color="#1f2933", linewidth=1)
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter("{x:g}x")
        axis.xaxis.set_minor_formatter("")
        axis.set_yticks(range(len(cases)), list(cases) if way == PASSES[0] else [""] * len(cases))
        axis.set_ylim(len(cases) - 0.4, -0.6)
        axis.set_xlabel("time over ours (right of 1x: we are faster)")
        axis.set_title(way)
        axis.grid(alpha=0.3, axis="x")
        axis.set_axisbelow(True)
    _save(figure, path, legend=bars)


def _save(figure: Any, path: Path, legend: Mapping[str, Any] | None = None) -> None:
    # Above the panels, outside of the bars' area.
    height = 0.4 / figure.get_figheight() if legend else 0.0
    if legend:
        figure.legend(legend.values(), legend, loc="upper center", ncols=len(legend), frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 1 - height))
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130)
