"""Reading result files back."""

from __future__ import annotations

import csv
from pathlib import Path

from lambdanets.experiments.bench import Row

__all__ = ["read_rows"]


def read_rows(path: Path) -> list[Row]:
    """Rows of a CSV that an experiment wrote, every value as text.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a result file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; 'lambdanets bench' writes bench-results/bench.csv")
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or "contender" not in rows[0] or "machine" not in rows[0]:
        raise ValueError(f"{path} is not a result file of 'lambdanets bench': it has no columns contender and machine")
    return rows
