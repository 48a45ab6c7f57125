"""Fills the tables of README.md and docs/ from the files in results/: ``python scripts/make_tables.py [--check]``.

A table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``; what is between them is made, not written.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean

from lambdanets.experiments.report import report
from lambdanets.experiments.report.results import read_rows

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
BLOCK = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def bench() -> str:
    """Our layer beside the others, by shape."""
    rows = read_rows(RESULTS / "bench.csv")
    return f"{report.compact_table(rows)}\n\n{report.environment_line(rows)}."


def growth() -> str:
    """Time against n."""
    rows = read_rows(RESULTS / "growth.csv")
    return f"{report.growth_table(rows)}\n\n{report.environment_line(rows)}."


def training() -> str:
    """Test accuracies by recipe, with seeds and spread."""
    by_recipe: dict[str, list[dict]] = {}
    for run in json.loads((RESULTS / "training.json").read_text(encoding="utf-8")):
        by_recipe.setdefault(run["command"], []).append(run)
    lines = []
    for command, runs in by_recipe.items():
        scores = [100 * run["test_top1"] for run in runs]
        lines.append(
            [
                f"`{command}`",
                f"{mean(scores):.2f} %" + (f" ({min(scores):.2f} to {max(scores):.2f})" if len(scores) > 1 else ""),
                ", ".join(str(run["seed"]) for run in runs),
                f"{mean(run['seconds'] for run in runs):.0f} s",
                f"{runs[0]['machine']}, {runs[0]['threads']} thread{'s' if runs[0]['threads'] > 1 else ''}",
            ]
        )
    return report.markdown(["command", "test accuracy", "seeds", "time", "machine"], lines)


def _models(kind: str) -> list[dict[str, str]]:
    with open(RESULTS / "models.csv", encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if row["table"] == kind]


def _millions(row: dict[str, str]) -> tuple[str, str]:
    """Our parameters and the paper's in millions; in bold where they differ by more than rounding to a tenth."""
    ours, paper = int(row["parameters"]) / 1e6, row["paper_parameters_m"]
    # The paper gives whole millions for the family, tenths for the comparison.
    digits = 0 if row["table"] == "family" and not row["model"].startswith("lambda_resnet50") else 1
    differs = paper and abs(ours - float(paper)) > 0.501 * 10**-digits
    return f"{ours:.2f}", f"**{paper}**" if differs else paper


def models() -> str:
    """The registered models with their costs and the paper's parameters."""
    lines = []
    for row in _models("family"):
        ours, paper = _millions(row)
        gigas, activations = int(row["multiply_adds"]) / 1e9, int(row["activations"]) / 1e6
        lines.append(
            [f"`{row['model']}`", row["stages"], row["image_size"], ours, paper, f"{gigas:.2f}", f"{activations:.1f}"]
        )
    header = ["model", "stages", "image", "parameters, M", "paper, M", "multiply-adds, G", "activations, M"]
    return report.markdown(header, lines)


def ablation() -> str:
    """The paper's ablation of k, h and u in an all-lambda ResNet-50."""
    lines = []
    for row in _models("ablation"):
        sizes = [part.split("=")[1] for part in row["model"].split()]
        lines.append([*sizes, *_millions(row), f"{int(row['multiply_adds']) / 1e9:.2f}"])
    return report.markdown(["k", "h", "u", "parameters, M", "paper, M", "multiply-adds, G"], lines)


def placement() -> str:
    """Where lambda layers go in a ResNet-50."""
    lines = [[row["stages"], *_millions(row), f"{int(row['multiply_adds']) / 1e9:.2f}"] for row in _models("placement")]
    return report.markdown(["stages", "parameters, M", "paper, M", "multiply-adds, G"], lines)


TABLES: dict[str, Callable[[], str]] = {
    "ablation": ablation,
    "bench": bench,
    "growth": growth,
    "models": models,
    "placement": placement,
    "training": training,
}


def filled(text: str) -> str:
    """The text with every table made anew."""
    return BLOCK.sub(lambda match: f"{match[1]}{TABLES[match[2]]()}\n{match[3]}", text)


def main(check: bool) -> int:
    """Fill the tables, or say which files are not up to date."""
    stale = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = path.read_text(encoding="utf-8")
        new = filled(text)
        if new != text:
            stale.append(path.relative_to(ROOT))
            if not check:
                path.write_text(new, encoding="utf-8")
    for path in stale:
        print(f"{path}: {'not up to date, run python scripts/make_tables.py' if check else 'filled'}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
