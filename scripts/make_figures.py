"""Draw the figures of the README and the docs: ``python scripts/make_figures.py``.

The plots of the benchmark and of the studies are drawn from the files in results/.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, Rectangle

from lambdanets.experiments.report import bench_report
from lambdanets.experiments.report.chart import save_plot
from lambdanets.experiments.report.results import read_rows
from lambdanets.experiments.studies import read_outcome

ROOT = Path(__file__).parents[1]
IMAGES, RESULTS = ROOT / "docs" / "images", ROOT / "results"
INK, CONTENT, POSITION, QUERY, CONTEXT = "#1f2933", "#2f6fde", "#d9822b", "#c23030", "#f2e3cd"


def matrix(ax, x, y, rows, columns, cell, colour, seed=0, label=None, below=None):
    """Draw a small matrix of shaded cells with its lower left corner at (x, y)."""
    shade = np.random.default_rng(seed).uniform(0.15, 0.95, (rows, columns))
    for i in range(rows):
        for j in range(columns):
            ax.add_patch(
                Rectangle(
                    (x + j * cell, y + i * cell),
                    cell,
                    cell,
                    facecolor=colour,
                    alpha=shade[i, j],
                    edgecolor="white",
                    linewidth=0.8,
                )
            )
    if label:
        ax.text(
            x + columns * cell / 2,
            y + rows * cell + 0.12,
            label,
            ha="center",
            va="bottom",
            fontsize=12,
            color=INK,
        )
    if below:
        ax.text(x + columns * cell / 2, y - 0.12, below, ha="center", va="top", fontsize=9.5, color="#52606d")


def arrow(ax, start, end, colour=INK, bend=0.0):
    """Draw a thin arrow."""
    ax.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=13,
            color=colour,
            linewidth=1.4,
            connectionstyle=f"arc3,rad={bend}",
        )
    )


def lambda_layer(path: Path) -> None:
    """Draw a lambda layer: a context becomes a small matrix, the matrix is applied to a query."""
    fig, ax = plt.subplots(figsize=(11.2, 4.5))
    ax.set_xlim(0, 14)
    ax.set_ylim(0.5, 5.6)
    ax.set_aspect("equal")
    ax.axis("off")

    # The feature map with a query: the content term sees all of it, the position term the scope around the query.
    for i in range(7):
        for j in range(7):
            inside = abs(i - 3) <= 2 and abs(j - 3) <= 2
            colour = QUERY if (i, j) == (3, 3) else CONTEXT if inside else "#e4ecfb"
            ax.add_patch(Rectangle((0.3 + j * 0.42, 1.25 + i * 0.42), 0.42, 0.42, facecolor=colour, edgecolor="white"))
    ax.text(1.77, 4.32, "feature map X", ha="center", va="bottom", fontsize=12, color=INK)
    for first, side, colour in ((0, 7, CONTENT), (1, 5, POSITION)):
        corner, length = (0.3 + first * 0.42, 1.25 + first * 0.42), side * 0.42
        ax.add_patch(Rectangle(corner, length, length, fill=False, edgecolor=colour, linewidth=1.6))
    ax.text(1.77, 1.1, "query n (red) in its scope (orange)", ha="center", va="top", fontsize=9.5, color="#52606d")

    # Content and position lambdas.
    matrix(ax, 4.35, 3.45, 3, 5, 0.27, CONTENT, 1, r"$\bar{K}^{\top} V=\lambda^{c}$", "shared by all queries")
    matrix(ax, 4.35, 0.95, 3, 5, 0.27, POSITION, 2, r"$E_n^{\top} V=\lambda^{p}_n$", "one for each query")
    arrow(ax, (3.3, 3.4), (4.2, 3.85), CONTENT, -0.1)
    arrow(ax, (2.86, 2.0), (4.2, 1.4), POSITION, 0.1)
    ax.text(6.55, 2.7, "+", fontsize=22, ha="center", va="center", color=INK)
    arrow(ax, (5.85, 3.8), (6.5, 3.0), CONTENT, -0.15)
    arrow(ax, (5.85, 1.5), (6.4, 2.4), POSITION)

    matrix(ax, 7.35, 2.3, 3, 5, 0.27, "#6a4fb3", 3, r"lambda $\lambda_n$", r"$k\times v$ numbers")
    arrow(ax, (6.75, 2.7), (7.25, 2.7))
    arrow(ax, (8.8, 2.7), (9.5, 2.7))

    # Queries and output.
    matrix(ax, 9.65, 2.17, 4, 3, 0.27, QUERY, 4, r"queries $q_n^1 \ldots q_n^h$", r"$h\times k$")
    ax.text(10.78, 2.7, r"$\cdot\,\lambda_n\;=$", fontsize=15, ha="left", va="center", color=INK)
    matrix(ax, 12.15, 2.17, 4, 5, 0.27, "#3a7d44", 5, r"output $y_n$", r"$h\times v=d$")

    ax.text(
        7.0,
        5.35,
        r"$y_n^h=\left(\bar{K}^{\top}V+E_n^{\top}V\right)^{\top} q_n^h$   with   $\bar{K}=\mathrm{softmax}_m(K)$:"
        "   no attention map",
        ha="center",
        va="center",
        fontsize=14,
        color=INK,
    )
    fig.savefig(path, dpi=140, bbox_inches="tight", facecolor="white")
    plt.close(fig)


def studies() -> None:
    """Draw those plots of the studies in results/compare/ that a page shows."""
    pages = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")))
    for folder in sorted((RESULTS / "compare").glob("*/")):
        for plot in read_outcome(folder.name, folder).plots:
            name = f"compare-{folder.name}-{plot.name}.png"
            if name in pages:
                save_plot(plot, [IMAGES / name])


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    lambda_layer(IMAGES / "lambda-layer.png")
    bench_report.plot_bench(read_rows(RESULTS / "bench.csv"), IMAGES / "bench.png")
    bench_report.plot_growth(read_rows(RESULTS / "growth.csv"), IMAGES / "growth.png")
    studies()
