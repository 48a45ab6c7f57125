"""Runs the cells of a study: those that are done are read, the others run, several at a time, and can be stopped."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
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
from lambdanets.experiments.compare.workers import Cluster, cluster_jobs, processes
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


@dataclass(frozen=True)
class _Ran:
    """What a cell came to, the seconds that it took, and where it ran."""

    result: dict[str, Any]
    seconds: float
    environment: dict[str, Any]


def run_cells(
    study: Study, options: Options, folder: Path, jobs: int, console: Console, cluster: Cluster | None = None
) -> list[Done]:
    """Run the cells of a study that are not in its folder yet.

    Args:
        study: the study.
        options: the user's choices.
        folder: of the study; cells are kept in ``cells/``, what an unfinished one has so far in ``work/``.
        jobs: cells that run at the same time.
        console: where to show a line for each finished cell.
        cluster: where the cells are sent. Default: they run on this machine.

    Returns:
        All cells, in the study's order.

    Raises:
        StoppedError: if a signal stopped it; the same call goes on.
        ValueError: if another process works in the folder, or a cell needs more memory or disk than there is.
        ChildProcessError: if the system ended the process of a cell.
    """
    check_folder(folder)
    make_folder(folder)
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(folder))
        except ValueError as error:
            raise ValueError(
                f"another `lambdanets compare` works in {folder}; wait for its end, or give another --output"
            ) from error
        return _Grid(study, options, folder, jobs, console, cluster).run()


class _Grid:
    def __init__(
        self, study: Study, options: Options, folder: Path, jobs: int, console: Console, cluster: Cluster | None
    ) -> None:
        self.study, self.options, self.folder, self.jobs, self.console = study, options, folder, jobs, console
        self.cluster = cluster
        self.cells = _ordered(study.cells(options))
        self.version = study_version(study.version)
        self.fingerprint = options.data.fingerprint if options.data else ""
        self.done: dict[Cell, Done] = {}
        self.started = time.monotonic()
        self.ran = 0.0  # weight of the cells that were run, not read

    def run(self) -> list[Done]:
        try:
            if self.cluster is not None:
                with cluster_jobs(self.cluster, self.jobs, self.folder / "jobs") as executor:
                    self._run_one_by_one(executor, alone=True)
                    self._run_beside(executor, threads=None)
            else:
                self._run_one_by_one(None, alone=self.jobs > 1)
                if self.jobs > 1:
                    with processes(self.jobs) as executor:
                        self._run_beside(executor, threads=max(1, torch.get_num_threads() // self.jobs))
        except StoppedError:
            left = len(self.cells) - len(self.done)
            print_whole(self.console, f"Stopped with {left} of {len(self.cells)} cells left; the same command goes on.")
            raise
        except BrokenProcessPool as error:
            raise ChildProcessError(
                "the system ended the process of a cell, perhaps for want of memory; the same command goes on, with "
                "fewer --jobs it takes less"
            ) from error
        return [self.done[cell] for cell in self.cells]

    def _run_one_by_one(self, executor: Executor | None, alone: bool) -> None:
        """Run cells one by one, in this process or by an executor, and read those that are done.

        Args:
            executor: that runs them; None for this process.
            alone: True to run only those beside which nothing else may run.
        """
        for cell in self.cells:
            task = self._task(cell)
            if task is None or (alone and not cell.alone):
                continue
            arguments = (self.study, task.config, *self._prepare(task), None)
            self._finish(task, _run(*arguments) if executor is None else executor.submit(_run, *arguments).result())

    def _run_beside(self, executor: Executor, threads: int | None) -> None:
        running: dict[Future[_Ran], _Task] = {}
        while len(self.done) < len(self.cells):
            busy = {task.cell for task in running.values()}
            for cell in self.cells:
                if len(running) == self.jobs:
                    break
                task = None if cell in busy else self._task(cell)
                if task is not None:
                    arguments = (self.study, task.config, *self._prepare(task), threads)
                    running[executor.submit(_run, *arguments)] = task
            if running:
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    self._finish(running.pop(future), future.result())

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

    def _finish(self, task: _Task, ran: _Ran) -> None:
        data = self.options.data.to_dict() if self.options.data else {}
        done = Done(task.config, data, self.version, ran.result, ran.environment, round(ran.seconds, 1))
        write_cell(self.folder, task.key, done)
        shutil.rmtree(self.folder / "work" / task.key, ignore_errors=True)
        self.done[task.cell] = done
        self.ran += task.cell.weight
        left = sum(cell.weight for cell in self.cells if cell not in self.done)
        time_left = (time.monotonic() - self.started) / self.ran * left
        line = self.study.line(ran.result)
        print_whole(
            self.console,
            f"[{len(self.done)}/{len(self.cells)}] {label(task.config)}{': ' if line else ''}{line} "
            f"({format_seconds(ran.seconds)}); {format_seconds(time_left)} left",
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


def _run(study: Study, config: Config, place: Path, data: str | None, threads: int | None) -> _Ran:
    """Run a cell in this process."""
    if threads is not None:
        torch.set_num_threads(threads)
    with open(place / "log.txt", "a", encoding="utf-8") as log:
        start = time.monotonic()
        result = study.run(config, Place(place, data, Console(file=log, width=160)))
        return _Ran(result, time.monotonic() - start, environment())
