"""The files of the experiments: written whole or not at all, and read back."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lambdanets.experiments.bench.bench import Row
from lambdanets.experiments.report import report
from lambdanets.files import check_folder, write_csv, write_json, write_text
from lambdanets.kernels.grid import costs

__all__ = [
    "open_folder",
    "read_rows",
    "table_of",
    "write_bench",
    "write_calibration",
    "write_cuda",
    "write_growth",
]


def open_folder(folder: Path) -> None:
    """Makes the folder of the results and tries it, so that no measurement is lost for want of a place.

    Raises:
        ValueError: if it is a file, or inside of one.
        OSError: if it cannot be made or written into.
    """
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        error.filename = str(folder)
        raise


def write_bench(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Writes the benchmark of the layer: ``bench.csv``, the table ``bench.md`` and the plot ``bench.png``."""
    files = [folder / f"bench.{suffix}" for suffix in ("csv", "md", "png")]
    write_csv(files[0], rows)
    write_text(files[1], f"{report.environment_line(rows)}\n\n{report.bench_table(rows)}\n")
    report.plot_bench(rows, files[2])
    return files


def write_growth(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Writes time against n: ``growth.csv``, the table ``growth.md`` and the plot ``growth.png``."""
    files = [folder / f"growth.{suffix}" for suffix in ("csv", "md", "png")]
    write_csv(files[0], rows)
    write_text(files[1], f"{report.environment_line(rows)}\n\n{report.growth_table(rows)}\n")
    report.plot_growth(rows, files[2])
    return files


def write_cuda(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Writes the benchmark on a GPU: ``bench-cuda.csv``."""
    file = folder / "bench-cuda.csv"
    write_csv(file, rows)
    return [file]


def write_calibration(constants: dict[str, Any], path: Path | None = None) -> Path:
    """Write a machine's constants in the form of the package's ``costs.json``.

    Args:
        constants: as ``calibrate`` returns them.
        path: the file; default None is the cache folder's, which the planner reads from then on.

    Returns:
        The file.
    """
    path = path or costs.cache_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, constants)
    costs.reload()
    return path


def read_rows(path: Path) -> list[Row]:
    """Rows of a CSV that an experiment wrote, every value as text; earlier versions' lack the column ``commit``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a result file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; 'lambdanets bench' writes bench-results/bench.csv")
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows: list[Row] = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error):
        rows = []
    columns = set(rows[0]) if rows else set()
    if "contender" not in columns or not columns & {"machine", "card"}:
        raise ValueError(f"{path} is not a result file of 'lambdanets bench': it has no columns contender and machine")
    return rows


def table_of(path: Path) -> str:
    """The table of a result file in Markdown, with its environment.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a result file of the benchmark on a CPU.
    """
    rows = read_rows(path)
    if "machine" not in rows[0]:
        raise ValueError(f"{path} is of the benchmark on a GPU, of which no table is made; it can be read as it is")
    table = report.compact_table(rows) if "case" in rows[0] else report.growth_table(rows)
    return f"{report.environment_line(rows)}\n\n{table}"
