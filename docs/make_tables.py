"""Fills the tables of README.md and docs/ from the files in results/: ``python docs/make_tables.py [--check]``.

A table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``; what is between them is made, not written.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean

from lambdanets.experiments import report
from lambdanets.experiments.results import read_rows

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


TABLES: dict[str, Callable[[], str]] = {"bench": bench, "growth": growth, "training": training}


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
        print(f"{path}: {'not up to date, run python docs/make_tables.py' if check else 'filled'}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
