"""The benchmark of the layer, of its growth, of whole networks and of the planner."""

from __future__ import annotations

from collections.abc import Callable
from statistics import mean

from lambdanets import files
from lambdanets.experiments.bench.contenders import LARGEST_TABLE_BYTES
from lambdanets.experiments.bench.measure import PASSES
from lambdanets.experiments.report import bench_report, goals
from lambdanets.experiments.report.results import noisy_rows, read_rows
from lambdanets.markdown_text import markdown_table
from result_tables import RESULTS

__all__ = ["FIGURES", "TABLES"]


# The benchmark's cases in the README; docs/benchmarks.md has all of them.
README_CASES = (
    "global-7x7-d512-b8",
    "global-14x14-d256-b8",
    "global-28x28-d128-b4",
    "global-56x56-d64-b2",
    "scope7-28x28-d128-b4",
    "scope23-28x28-d128-b4",
    "global-14x14-d256-b8-u4",
)


def _published(name: str) -> list[dict]:
    """The rows of a result file, none of them noisy.

    Raises:
        ValueError: naming those that are.
    """
    rows = read_rows(RESULTS / f"{name}.csv")
    noisy = [f"{row.get('case', row.get('positions'))} {row['contender']} {row['pass']}" for row in noisy_rows(rows)]
    if noisy:
        growth = " --growth" if name == "growth" else ""
        raise ValueError(
            f"results/{name}.csv has rows that are marked as noisy: {'; '.join(noisy)}. No table is made of them: "
            f"lambdanets bench{growth} --noisy --max-seconds 60 --output results"
        )
    return rows


def bench() -> str:
    """Our layer beside the others, the README's cases."""
    rows = _published("bench")
    return f"{bench_report.compact_table(rows, README_CASES)}\n\n{bench_report.environment_line(rows)}."


def bench_all() -> str:
    """Our layer beside the others, every case and pass, with intervals."""
    rows = _published("bench")
    return f"{bench_report.pass_table(rows)}\n\n{bench_report.environment_line(rows)}."


def bench_goals() -> str:
    """Table of the goals and how far the results reach them."""
    return goals.goals_table(_published("bench"))


def bench_memory() -> str:
    """Memory kept for the backward pass and peaks, every case."""
    found = {(row["case"], row["contender"], row["pass"]): row for row in read_rows(RESULTS / "bench.csv")}
    names = ("lambdanets", *bench_report.PEERS, "attention", "convolution")
    lines = []
    for case in dict.fromkeys(case for case, _, _ in found):
        cells = []
        for name in names:
            row = found.get((case, name, "forward+backward"))
            cells.append(f"{int(row['saved_bytes']) / 1e6:.1f} / {int(row['peak_bytes']) / 1e6:.1f}" if row else "")
        lines.append([f"`{case}`", *cells])
    return markdown_table(["case", *(bench_report.LABELS.get(name, name) for name in names)], lines)


def growth() -> str:
    """Time against n."""
    rows = _published("growth")
    return f"{bench_report.growth_table(rows)}\n\n{bench_report.environment_line(rows)}."


def rates() -> str:
    """Images per second of whole networks beside ResNet-50's."""
    rows = files.read_rows(RESULTS / "rates.csv")
    lines: dict[str, list[str]] = {}
    for row in rows:
        line = lines.setdefault(row["network"], [f"`{row['network']}`", row["image_size"]])
        ratio, low, high = (float(row[name]) for name in ("ratio", "low", "high"))
        line += [f"{float(row['images_per_second']):.1f}", f"{ratio:.2f}x ({low:.2f} to {high:.2f})"]
    columns = ["network", "image size"]
    columns += [f"{way}, {what}" for way in PASSES for what in ("images/s", "of ResNet-50's")]
    return f"{markdown_table(columns, list(lines.values()))}\n\n{bench_report.environment_line(rows)}."


def planner() -> str:
    """Distance of the planner's choices from the fastest kernel, by instruction set."""
    rows = files.read_rows(RESULTS / "planner.csv")
    lines = []
    for level in dict.fromkeys(row["instruction_set"] for row in rows):
        own = [row for row in rows if row["instruction_set"] == level]
        ratios = [float(row["ratio"]) for row in own]
        worst = max(own, key=lambda row: float(row["ratio"]))
        counts = [f"{sum(ratio <= most for ratio in ratios)} of {len(ratios)}" for most in (1.1, 1.25)]
        lost = f"{mean(ratios) - 1:.1%}"
        where = f"{float(worst['ratio']):.2f}x, `{worst['case']}` {worst['direction']}"
        lines.append([level, *counts, lost, where])
    columns = [
        "instruction set",
        "within 1.1x of the fastest",
        "within 1.25x",
        "slower than the fastest, mean",
        "furthest",
    ]
    return f"{markdown_table(columns, lines)}\n\n{bench_report.environment_line(rows)}."


def _trees() -> str:
    """Findings of the comparison of two trees, in words."""
    rows = files.read_rows(RESULTS / "trees.csv")
    counts = ", ".join(
        f"{sum(row['verdict'] == word for row in rows)} {word}" for word in ("not slower", "slower", "undecided")
    )
    ratios = [float(row["ratio"]) for row in rows]
    return f"{counts}; the median ratios are from {min(ratios):.2f} to {max(ratios):.2f}"


TABLES: dict[str, Callable[[], str]] = {
    "bench": bench,
    "bench-all": bench_all,
    "bench-goals": bench_goals,
    "bench-memory": bench_memory,
    "growth": growth,
    "planner": planner,
    "rates": rates,
}
FIGURES: dict[str, Callable[[], str]] = {
    "trees": _trees,
    # The multiply-adds of lambda first over those of query first at h 4, k 16, v 64.
    "orders": lambda: f"{16 * 64 / (4 * (16 + 64)):.1f}",
    "peers-limit": lambda: f"{LARGEST_TABLE_BYTES / 2**30:g} GiB",
}
