"""Files of the experiments: written whole or not at all, and read back."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lambdanets.experiments.bench.bench import Row
from lambdanets.experiments.report import bench_report, goals
from lambdanets.files import check_folder, make_folder, write_csv, write_json, write_text
from lambdanets.files import read_rows as read_table
from lambdanets.kernels.grid import costs

__all__ = [
    "merged",
    "noisy_rows",
    "open_folder",
    "read_rows",
    "table_of",
    "write_bench",
    "write_calibration",
    "write_cuda",
    "write_growth",
]


def open_folder(folder: Path) -> None:
    """Make the folder of the results and try to write in it, before anything is measured.

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
    """Write the benchmark of the layer: ``bench.csv``, tables in ``bench.md``, the plot ``bench.png``."""
    files = [folder / f"bench.{suffix}" for suffix in ("csv", "md", "png")]
    write_csv(files[0], rows)
    parts = [bench_report.environment_line(rows), bench_report.bench_table(rows), goals.goals_table(rows)]
    write_text(files[1], "\n\n".join(filter(None, parts)) + "\n")
    bench_report.plot_bench(rows, files[2])
    return files


def write_growth(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write time against n: ``growth.csv``, the table ``growth.md`` and the plot ``growth.png``."""
    files = [folder / f"growth.{suffix}" for suffix in ("csv", "md", "png")]
    write_csv(files[0], rows)
    write_text(files[1], f"{bench_report.environment_line(rows)}\n\n{bench_report.growth_table(rows)}\n")
    bench_report.plot_growth(rows, files[2])
    return files


def write_cuda(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write the benchmark on a GPU: ``bench-cuda.csv``."""
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
    make_folder(path.parent)
    write_json(path, constants)
    costs.reload()
    return path


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a CSV that an experiment wrote, every value as text.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, or not a result file.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; 'lambdanets bench' writes bench-results/bench.csv")
    rows: list[Row] = list(read_table(path))
    columns = set(rows[0]) if rows else set()
    if "contender" not in columns or not columns & {"machine", "card"}:
        raise ValueError(f"{path} is not a result file of 'lambdanets bench': it has no columns contender and machine")
    return rows


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn the error for a column or a row that is missing, or a number that is none, into one that names the file."""
    try:
        yield
    except (KeyError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f"{path} is damaged: its rows do not read as results ({error!r})") from error


def _subject(row: Row) -> str:
    """Return the column that says what a row is about."""
    return "case" if "case" in row else "positions"


def noisy_rows(rows: Sequence[Row]) -> list[Row]:
    """Return the rows that are marked as noisy and enter a table: those of our single kernels do not."""
    return [row for row in rows if row["noisy"] and not row["contender"].startswith("lambdanets:")]


def merged(old: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """Return old rows with those of the cases that were measured again replaced.

    Args:
        old: rows that :func:`read_rows` returned.
        new: rows of the same experiment.

    Raises:
        ValueError: if they were measured under other conditions than the new ones.
    """
    remedy = "measure all cases again, without --noisy"
    if set(old[0]) != set(new[0]):
        raise ValueError(f"the rows to be kept were written by an earlier version; {remedy}")
    for name in ("machine", "card", "threads", "precision", "torch", "timm"):
        before, now = (str(rows[0].get(name)) for rows in (old, new))
        if before != now:
            raise ValueError(f"the rows to be kept were measured with {name} {before}, now it is {now}; {remedy}")
    key = _subject(new[0])
    again: dict[str, list[Row]] = {}
    for row in new:
        again.setdefault(str(row[key]), []).append(row)
    rows: list[Row] = []
    for row in old:
        case = str(row[key])
        if case not in again:
            rows.append(row)
        elif again[case]:
            rows += again[case]
            again[case] = []
    return rows


def table_of(path: Path) -> str:
    """Return the table of a result file in Markdown, with its environment.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a result file of the benchmark on a CPU.
    """
    rows = read_rows(path)
    if "machine" not in rows[0]:
        raise ValueError(f"{path} is of the benchmark on a GPU, of which no table is made; it can be read as it is")
    with _naming(path):
        table = bench_report.compact_table(rows) if "case" in rows[0] else bench_report.growth_table(rows)
        return f"{bench_report.environment_line(rows)}\n\n{table}"
