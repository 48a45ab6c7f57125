"""Runs the cells of a study: those that are done are read, the others run, several at a time, and can be stopped."""

from __future__ import annotations

import multiprocessing
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from lambdanets.console import one_line, print_whole
from lambdanets.experiments.bench.bench import environment
from lambdanets.experiments.compare.cell import (
    Cell,
    Config,
    Done,
    cell_file,
    cell_key,
    label,
    read_cell,
    study_version,
    write_cell,
)
from lambdanets.experiments.compare.measured import available_memory
from lambdanets.experiments.compare.study import Needs, Options, Place, StoppedError, Study
from lambdanets.files import check_folder, make_folder
from lambdanets.training.display.progress import format_seconds
from lambdanets.training.runs.lock import locked

__all__ = ["run_cells"]


@dataclass(frozen=True)
class _Task:
    """A cell with its whole configuration, and where it runs."""

    cell: Cell
    config: Config
    key: str


def run_cells(study: Study, options: Options, folder: Path, jobs: int, console: Console) -> list[Done]:
    """Run the cells of a study that are not in its folder yet.

    Args:
        study: the study.
        options: the user's choices.
        folder: of the study; cells are kept in ``cells/``, what an unfinished one has so far in ``work/``.
        jobs: cells that run at the same time.
        console: where to show a line for each finished cell.

    Returns:
        All cells, in the study's order.

    Raises:
        StoppedError: if a signal stopped it; the same call goes on.
        ValueError: if another process works in the folder, or a cell needs more memory or disk than there is.
    """
    check_folder(folder)
    make_folder(folder)
    with _alone_in(folder):
        return _Grid(study, options, folder, jobs, console).run()


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    lock = locked(folder)
    try:
        lock.__enter__()
    except ValueError as error:
        raise ValueError(
            f"another `lambdanets compare` works in {folder}; wait for its end, or give another --output"
        ) from error
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


class _Grid:
    def __init__(self, study: Study, options: Options, folder: Path, jobs: int, console: Console) -> None:
        self.study, self.options, self.folder, self.jobs, self.console = study, options, folder, jobs, console
        self.cells = _ordered(study.cells(options))
        self.version = study_version(study.version)
        self.fingerprint = options.data.fingerprint if options.data else ""
        self.done: dict[Cell, Done] = {}
        self.started = time.monotonic()
        self.ran = 0.0  # weight of the cells that were run, not read

    def run(self) -> list[Done]:
        try:
            self._run_alone()
            if self.jobs == 1:
                self._run_here()
            else:
                self._run_beside()
        except StoppedError:
            left = len(self.cells) - len(self.done)
            print_whole(self.console, f"Stopped with {left} of {len(self.cells)} cells left; the same command goes on.")
            raise
        return [self.done[cell] for cell in self.cells]

    def _run_alone(self) -> None:
        """Run the cells beside which nothing else may run, and read those that are done."""
        for cell in self.cells:
            task = self._task(cell)
            if task is not None and cell.alone:
                self._finish(task, *_run(self.study, task.config, *self._prepare(task), threads=None))

    def _run_here(self) -> None:
        for cell in self.cells:
            task = self._task(cell)
            if task is not None:
                self._finish(task, *_run(self.study, task.config, *self._prepare(task), threads=None))

    def _run_beside(self) -> None:
        threads = max(1, torch.get_num_threads() // self.jobs)
        running: dict[Future[Any], _Task] = {}
        with _workers(self.jobs) as executor:
            while len(self.done) < len(self.cells):
                busy = {task.cell for task in running.values()}
                for cell in self.cells:
                    if len(running) == self.jobs:
                        break
                    task = None if cell in busy else self._task(cell)
                    if task is not None:
                        arguments = (self.study, task.config, *self._prepare(task))
                        running[executor.submit(_run, *arguments, threads=threads)] = task
                if running:
                    finished, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in finished:
                        self._finish(running.pop(future), *future.result())

    def _task(self, cell: Cell) -> _Task | None:
        """Return what is to be run of a cell; None if it is done, or others must run before it."""
        if cell in self.done or not all(before in self.done for before in cell.after):
            return None
        config = cell.config
        if cell.complete is not None:
            config = cell.complete(config, [self.done[before] for before in cell.after])
        key = cell_key(config, self.fingerprint, self.version)
        try:
            self.done[cell] = read_cell(cell_file(self.folder, key))
        except FileNotFoundError:
            return _Task(cell, config, key)
        except ValueError as error:
            print_whole(self.console, one_line(f"{error}; it is run again"))
            return _Task(cell, config, key)
        return None

    def _prepare(self, task: _Task) -> tuple[Path, str | None]:
        """Make the folder of a cell, after a look at the memory and the disk."""
        needs, place = self.study.needs(task.config), self.folder / "work" / task.key
        _check_room(label(task.config), needs, available_memory(), shutil.disk_usage(self.folder).free)
        make_folder(place)
        return place, self.options.data.spec if self.options.data else None

    def _finish(self, task: _Task, result: dict[str, Any], seconds: float) -> None:
        data = self.options.data.to_dict() if self.options.data else {}
        done = Done(task.config, data, self.version, result, environment(), round(seconds, 1))
        write_cell(self.folder, task.key, done)
        shutil.rmtree(self.folder / "work" / task.key, ignore_errors=True)
        self.done[task.cell] = done
        self.ran += task.cell.weight
        left = sum(cell.weight for cell in self.cells if cell not in self.done)
        time_left = (time.monotonic() - self.started) / self.ran * left
        line = self.study.line(result)
        print_whole(
            self.console,
            f"[{len(self.done)}/{len(self.cells)}] {label(task.config)}{': ' if line else ''}{line} "
            f"({format_seconds(seconds)}); {format_seconds(time_left)} left",
        )


def _ordered(cells: Sequence[Cell]) -> list[Cell]:
    """All cells once, each behind those that it comes after; those that run alone first."""
    ordered: dict[Cell, None] = {}

    def add(cell: Cell) -> None:
        for before in cell.after:
            add(before)
        ordered.setdefault(cell)

    for cell in cells:
        add(cell)
    return sorted(ordered, key=lambda cell: not cell.alone)


def _check_room(name: str, needs: Needs, memory: int, disk: int) -> None:
    for what, needed, there, remedy in (
        ("memory", needs.memory, memory, "end other programs, use fewer --jobs, or leave the row out with --only"),
        ("disk", needs.disk, disk, "make room, or give another --output"),
    ):
        if needed > there:
            raise ValueError(
                f"{name} needs {needed / 1e9:.1f} GB of {what}, and {there / 1e9:.1f} GB are free; {remedy}"
            )


def _run(study: Study, config: Config, place: Path, data: str | None, threads: int | None) -> tuple[Any, float]:
    """Run a cell in this process; return its result and the seconds that it took."""
    if threads is not None:
        torch.set_num_threads(threads)
    with open(place / "log.txt", "a", encoding="utf-8") as log:
        start = time.monotonic()
        result = study.run(config, Place(place, data, Console(file=log, width=160)))
        return result, time.monotonic() - start


@contextmanager
def _workers(jobs: int) -> Iterator[Executor]:
    """Processes that run cells. When this process is stopped they are, too, each at the end of a step."""
    executor = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _leave_interrupts_to_the_parent)
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        yield executor
        executor.shutdown()
    except KeyboardInterrupt:
        _end(executor)
        raise StoppedError(signal.SIGINT) from None
    except BaseException:
        _end(executor)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(executor: Executor) -> None:
    for child in multiprocessing.active_children():
        child.terminate()
    executor.shutdown(cancel_futures=True)


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _stop(number: int, frame: object) -> None:
    raise StoppedError(number)
