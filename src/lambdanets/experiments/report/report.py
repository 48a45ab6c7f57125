"""Tables and plots from the rows of the experiments; the README's and the docs' are made of them too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lambdanets.experiments.bench.bench import PEERS, Row
from lambdanets.experiments.bench.growth import exponents
from lambdanets.files import replacing

__all__ = [
    "bench_table",
    "compact_table",
    "environment_line",
    "growth_table",
    "markdown",
    "plot_bench",
    "plot_growth",
    "ratios",
]

PASSES = ("forward", "forward+backward")
LABELS = {"lambdanets": "ours", "attention": "attention (SDPA)", "convolution": "3x3 convolution"}
COLOURS = {
    "lambdanets": "#2f6fde",
    "lucidrains": "#d9822b",
    "timm": "#c23030",
    "attention": "#6a4fb3",
    "convolution": "#3a7d44",
}


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def environment_line(rows: Sequence[Row]) -> str:
    """Machine, versions, threads and precision of a result, in one line."""
    row = rows[0]
    # Files of earlier versions do not tell the commit.
    own = f", lambdanets {row['lambdanets']} ({row['commit']})" if row.get("commit") else ""
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


def _milliseconds(row: Row | None) -> float | None:
    return None if row is None else float(row["median_ms"])


def ratios(rows: Sequence[Row]) -> dict[str, dict[str, dict[str, float]]]:
    """Case -> pass -> what we are compared with -> its time over ours (above 1: we are faster).

    "peers" is the best of lucidrains and timm; "kernels" the best of our own kernels, which tells how well the planner
    chose.
    """
    result: dict[str, dict[str, dict[str, float]]] = {}
    for case, found in _by_case(rows).items():
        for way in PASSES:
            ours = _milliseconds(found.get(("lambdanets", way)))
            if ours is None:
                continue
            groups: dict[str, list[Row | None]] = {
                "peers": [found.get((peer, way)) for peer in PEERS],
                "attention": [found.get(("attention", way))],
                "convolution": [found.get(("convolution", way))],
                "kernels": [row for (name, w), row in found.items() if w == way and name.startswith("lambdanets:")],
            }
            result.setdefault(case, {})[way] = {
                name: min(float(row["median_ms"]) for row in members if row) / ours
                for name, members in groups.items()
                if any(members)
            }
    return result


def bench_table(rows: Sequence[Row]) -> str:
    """Every contender's milliseconds and memory by case, in Markdown."""
    lines = [
        [
            str(row["case"]),
            str(row["contender"]),
            str(row["pass"]),
            f"{float(row['median_ms']):.2f}",
            f"{float(row['q1_ms']):.2f}-{float(row['q3_ms']):.2f}",
            f"{float(row['floor_ms']):.2f}",
            f"{int(row['saved_bytes']) / 1e6:.1f}",
            f"{int(row['peak_bytes']) / 1e6:.1f}",
            str(row["note"]),
        ]
        for row in rows
    ]
    header = ["case", "contender", "pass", "ms", "quartiles", "floor", "kept MB", "peak MB", "note"]
    return markdown(header, lines)


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}x" if ratio < 10 else f"{ratio:.0f}x"


def compact_table(rows: Sequence[Row]) -> str:
    """By case: our time, and how many times longer the others take, forward / forward+backward."""
    table, cases = ratios(rows), _by_case(rows)
    lines = []
    for case, found in cases.items():
        both = [table[case].get(way, {}) for way in PASSES]
        ours = " / ".join(f"{float(found['lambdanets', way]['median_ms']):.1f}" for way in PASSES)
        cells = [
            " / ".join(_times(way[name]) for way in both if way.get(name) is not None)
            for name in ("peers", "attention", "convolution")
        ]
        kept = [int(found[name, PASSES[0]]["saved_bytes"]) for name in PEERS if (name, PASSES[0]) in found]
        own = int(found["lambdanets", PASSES[0]]["saved_bytes"])
        lines.append([f"`{case}`", ours, *cells, f"{min(kept) / own:.1f}x" if kept else ""])
    header = ["case", "ours, ms", "best of lucidrains and timm", "attention", "3x3 convolution", "peers' kept memory"]
    return markdown(header, lines)


def growth_table(rows: Sequence[Row]) -> str:
    """Milliseconds by number of positions, and the fitted exponent, in Markdown."""
    names = ["lambdanets", "lucidrains", "timm", "attention"]
    found = {(int(row["positions"]), str(row["contender"]), str(row["pass"])): row for row in rows}
    lines = []
    for n in sorted({int(row["positions"]) for row in rows}):
        cells = []
        for name in names:
            both = [_milliseconds(found.get((n, name, way))) for way in PASSES]
            cells.append("" if both[0] is None else " / ".join(f"{ms:.1f}" for ms in both if ms is not None))
        lines.append([f"{n:,}", *cells])
    slopes = exponents(rows)
    cells = []
    for name in names:
        both = [slopes.get((name, way)) for way in PASSES]
        cells.append(" / ".join("" if slope is None else f"n^{slope:.2f}" for slope in both))
    lines.append(["fit from n = 700", *cells])
    return markdown(["n", *(LABELS.get(name, name) for name in names)], lines)


def _figure(columns: int) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt.subplots(1, columns, figsize=(5.6 * columns, 4.6), squeeze=False)


def plot_growth(rows: Sequence[Row], path: Path) -> None:
    """Time against n, log-log, one panel for each pass."""
    figure, axes = _figure(2)
    slopes = exponents(rows)
    for axis, way in zip(axes[0], PASSES, strict=True):
        for name in ("lambdanets", "lucidrains", "timm", "attention"):
            points = sorted(
                (int(row["positions"]), float(row["median_ms"]))
                for row in rows
                if row["contender"] == name and row["pass"] == way
            )
            if points:
                slope = slopes.get((name, way))
                label = LABELS.get(name, name) + ("" if slope is None else f", n^{slope:.2f}")
                axis.loglog(*zip(*points, strict=True), marker="o", markersize=4, color=COLOURS[name], label=label)
        axis.set_title(way)
        axis.set_xlabel("positions n")
        axis.set_ylabel("milliseconds")
        axis.grid(alpha=0.3, which="both")
        axis.legend()
    _save(figure, path)


def plot_bench(rows: Sequence[Row], path: Path) -> None:
    """Each contender's time over ours by case, as bars to the left or to the right of 1, one panel for each pass."""
    figure, axes = _figure(2)
    cases = _by_case(rows)
    names = ("lucidrains", "timm", "attention", "convolution")
    figure.set_size_inches(13, 1.8 + 0.42 * len(cases))
    bars = {}
    for axis, way in zip(axes[0], PASSES, strict=True):
        for place, name in enumerate(names):
            points = [
                (index, float(found[name, way]["median_ms"]) / float(found["lambdanets", way]["median_ms"]))
                for index, found in enumerate(cases.values())
                if (name, way) in found and ("lambdanets", way) in found
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
    import matplotlib.pyplot as plt

    # Above the panels, where no bar can be.
    height = 0.4 / figure.get_figheight() if legend else 0.0
    if legend:
        figure.legend(legend.values(), legend, loc="upper center", ncols=len(legend), frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 1 - height))
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130)
    plt.close(figure)
