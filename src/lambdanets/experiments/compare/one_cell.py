"""One cell in the process where it runs: its room is looked at, its seconds are counted, its errors are told."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from lambdanets.console import one_line
from lambdanets.experiments.compare.cell import Config
from lambdanets.experiments.compare.measured import available_memory
from lambdanets.experiments.compare.study import Needs, Place, StoppedError, Study
from lambdanets.files import read_json, write_json
from lambdanets.provenance import environment
from lambdanets.training.engine.devices import computing_threads

__all__ = ["Failed", "Ran", "allocated", "lack_of_room", "log_file", "run_cell", "told"]

_PART = "part.json"


@dataclass(frozen=True)
class _Part:
    """Record of a cell that is not done: the seconds of its ended parts; begin and process of the part that runs.

    A part that was killed looks like one that runs.
    """

    seconds: float = 0.0
    begun: float | None = None
    process: int | None = None


@dataclass(frozen=True)
class Ran:
    """Result of a cell, the seconds that it took in all its parts, and where the last of them ran."""

    result: dict[str, Any]
    seconds: float
    environment: dict[str, Any]


@dataclass(frozen=True)
class Failed:
    """Error that ended a cell, in one line."""

    text: str


def run_cell(
    study: Study, config: Config, place: Path, data: str | None, threads: int | None, look: bool
) -> Ran | Failed:
    """Run a cell in this process.

    Args:
        study: that it belongs to.
        config: its whole configuration.
        place: its folder for what it has so far.
        data: specification of the data; None without.
        threads: that it computes with, unless the study says how many; None for as many as there are.
        look: True to look at the memory and the disk of this machine first.

    Returns:
        The result, or the error that ended it, whose traceback is in its log.

    Raises:
        StoppedError: if it was stopped by a signal.
    """
    with (
        computing_threads(study.threads(config) or threads),
        _counting_seconds(place) as seconds,
        open(log_file(place), "a", encoding="utf-8", errors="backslashreplace") as log,
    ):
        try:
            lack = _lack_here(study.needs(config), place) if look else None
            if lack is not None:
                return Failed(lack)
            result = study.run(config, Place(place, data, Console(file=log, width=160)))
            where = environment()
        except StoppedError:
            raise
        except Exception as error:
            log.write(traceback.format_exc())
            return Failed(told(error))
    return Ran(result, sum(seconds), where)


def log_file(place: Path) -> Path:
    """Return where a cell writes its progress and the traceback of its error."""
    return place / "log.txt"


def told(error: BaseException) -> str:
    """Return an error in one line, with its kind where its text alone may not tell."""
    kind = "" if isinstance(error, ValueError | OSError) and str(error) else f"{type(error).__name__}: "
    return one_line(f"{kind}{error}")


def lack_of_room(needs: Needs, memory: int, disk: int) -> str | None:
    """Return a message if a cell needs more bytes of memory or of disk than are free; else None."""
    for what, needed, free, remedy in (
        ("memory", needs.memory, memory, "end other programs, use fewer --jobs, or leave the row out with --only"),
        ("disk", needs.disk, disk, "make room, or give another --output"),
    ):
        if needed > free:
            return f"it needs {needed / 1e9:.1f} GB of {what}, and {max(0, free) / 1e9:.1f} GB are free; {remedy}"
    return None


def _lack_here(needs: Needs, place: Path) -> str | None:
    """Return what a cell of this process lacks; memory that the process holds already is a part of the need."""
    memory = available_memory() + psutil.Process().memory_info().rss
    return lack_of_room(needs, memory, shutil.disk_usage(place).free)


def allocated(place: Path) -> int:
    """Return the bytes of memory that the process of a running cell holds.

    Args:
        place: the cell's folder.

    Returns:
        The bytes; 0 if it does not run in a child of this process, or has not begun.
    """
    process = _read_part(place).process
    if process not in {child.pid for child in multiprocessing.active_children()}:
        return 0
    try:
        return psutil.Process(process).memory_info().rss
    except psutil.Error:
        return 0


@contextmanager
def _counting_seconds(place: Path) -> Iterator[list[float]]:
    """Count the seconds of a cell over all its parts, also of those that were killed.

    Yields:
        The seconds of the parts before; those of this one are added when it ends.
    """
    if os.environ.get("RANK", "0") != "0":  # of several tasks that run one cell together, one counts
        yield [0.0]
        return
    seconds = _seconds_before(place)
    start = time.monotonic()
    _write_part(place, _Part(sum(seconds), time.time(), os.getpid()))
    try:
        yield seconds
    finally:
        seconds.append(time.monotonic() - start)
        _write_part(place, _Part(sum(seconds)))


def _seconds_before(place: Path) -> list[float]:
    part = _read_part(place)
    if part.begun is None:
        return [part.seconds]
    # It was killed: the last that it wrote is the last that is known of it.
    last = max(path.lstat().st_mtime for path in place.rglob("*"))
    return [part.seconds, max(0.0, last - part.begun)]


def _read_part(place: Path) -> _Part:
    try:
        return _Part(**read_json(place / _PART))
    except (FileNotFoundError, TypeError, ValueError):  # without its seconds a cell still comes to its end
        return _Part()


def _write_part(place: Path, part: _Part) -> None:
    write_json(place / _PART, vars(part))
