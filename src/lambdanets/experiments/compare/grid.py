"""The run of a study: cells that are done are read, the others run, several at a time, and can be stopped."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from lambdanets.console import one_line, print_whole
from lambdanets.experiments.compare.cell import (
    Cell,
    Config,
    Done,
    OtherFormatError,
    cell_file,
    cell_key,
    label,
    read_cell,
    study_version,
    write_cell,
)
from lambdanets.experiments.compare.measured import available_memory
from lambdanets.experiments.compare.one_cell import Failed, Ran, allocated, lack_of_room, log_file, run_cell, told
from lambdanets.experiments.compare.study import CellsFailedError, Needs, Options, StoppedError, Study
from lambdanets.experiments.compare.time_left import seconds_left
from lambdanets.experiments.compare.workers import (
    Cluster,
    ClusterExecutor,
    check_stopped,
    cluster_jobs,
    processes,
    stop_cells,
)
from lambdanets.files import check_folder, make_folder
from lambdanets.training.display.progress import format_seconds
from lambdanets.training.engine.signals import StopSignal
from lambdanets.training.runs.lock import locked

__all__ = ["run_cells"]


@dataclass(frozen=True)
class _Task:
    """A cell with its whole configuration, the name of its file, and its folder for what it has so far."""

    cell: Cell
    config: Config
    key: str
    place: Path


def run_cells(
    study: Study, options: Options, folder: Path, jobs: int, console: Console, cluster: Cluster | None = None
) -> list[Done]:
    """Run the cells of a study that are not in its folder yet.

    A cell that fails is told, and those that do not come after it run.

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
        CellsFailedError: if cells failed, or need more memory or disk than there is.
        OtherFormatError: if a cell has the format of another version: it may have cost hours, and is not run again.
        ValueError: if another process works in the folder, something else lies where a file or folder of the study is
            to be, or the cluster takes no jobs.
        ChildProcessError: if the system ended the process of a cell.
    """
    for place in (folder, *(folder / name for name in ("cells", "work", "jobs"))):
        check_folder(place)
    make_folder(folder)
    grid = None
    try:
        with stop_cells() as signals, ExitStack() as stack:
            stack.enter_context(locked(folder))
            grid = _Grid(study, options, folder, jobs, console, cluster, signals)
            return grid.run()
    except (StoppedError, KeyboardInterrupt, OSError) as error:  # the last as of a full disk
        left = f" with {len(grid.cells) - len(grid.done)} of {len(grid.cells)} cells left" if grid else ""
        mended = " once this is mended" if isinstance(error, OSError) else ""
        print_whole(console, f"Stopped{left}; the same command goes on{mended}.")
        raise (StoppedError(signal.SIGINT) if isinstance(error, KeyboardInterrupt) else error) from None


@dataclass
class _Grid:
    """The cells of a study and how far they are; arguments as of ``run_cells``, and the signals that came."""

    study: Study
    options: Options
    folder: Path
    jobs: int
    console: Console
    cluster: Cluster | None
    signals: StopSignal
    cells: list[Cell] = field(init=False)
    tasks: dict[Cell, _Task] = field(init=False, default_factory=dict)
    needs: dict[Cell, Needs] = field(init=False, default_factory=dict)
    done: dict[Cell, Done] = field(init=False, default_factory=dict)
    failed: set[Cell] = field(init=False, default_factory=set)
    running: dict[Cell, float] = field(init=False, default_factory=dict)  # and since when

    def __post_init__(self) -> None:
        self.cells = _ordered(self.study.cells(self.options))
        self.version = study_version(self.study.version)
        self.fingerprint = self.options.data.fingerprint if self.options.data else ""

    def run(self) -> list[Done]:
        for cell in self.cells:
            self._task(cell)  # those that are done tell how long the others will take
        try:
            if self.cluster is not None:
                with cluster_jobs(self.cluster, self.jobs, self.folder / "jobs") as executor:
                    self._show_start()
                    self._run_one_by_one(executor, alone=True)
                    self._run_beside(executor, here=False)
            else:
                self._show_start()
                self._run_one_by_one(None, alone=self.jobs > 1)
                waits = self.jobs > 1
                while waits:
                    with processes(self.jobs) as executor:
                        waits = self._run_beside(executor, here=True)
        except BrokenProcessPool as error:
            running = "; ".join(label(self.tasks[cell].config) for cell in self.running)
            raise ChildProcessError(
                f"the system ended the process of a cell, perhaps for want of memory, while these ran: {running}. The "
                "same command goes on, with fewer --jobs it takes less"
            ) from error
        if self.failed:
            waiting = len(self.cells) - len(self.done) - len(self.failed)
            others = f", {waiting} that come after them did not run" if waiting else ""
            raise CellsFailedError(
                f"{len(self.failed)} of {len(self.cells)} cells failed{others}, {len(self.done)} are done. The same "
                "command runs again what is not done; with --report it shows what is"
            )
        return [self.done[cell] for cell in self.cells]

    def _run_one_by_one(self, executor: ClusterExecutor | None, alone: bool) -> None:
        """Run cells one by one.

        Args:
            executor: that runs them; None for this process.
            alone: True to run only those beside which nothing else may run.
        """
        for cell in self.cells:
            task = self._task(cell)
            if task is None or (alone and not cell.alone):
                continue
            call = self._begin(task, threads=None, look=True)
            self._end(task, run_cell(*call) if executor is None else _outcome(executor.submit_alone(run_cell, *call)))

    def _run_beside(self, executor: Executor, here: bool) -> bool:
        """Run cells beside each other; one that has no room beside those that run waits for them.

        Args:
            executor: that runs them.
            here: True if on this machine, of which each has a share.

        Returns:
            True if a cell has no room beside what idle processes hold, and wants fresh ones.
        """
        threads = max(1, torch.get_num_threads() // self.jobs) if here else None
        futures: dict[Future[Ran | Failed], _Task] = {}
        fresh = True
        while True:
            waits = False
            for cell in self.cells:
                if len(futures) == self.jobs:
                    break
                task = self._task(cell)
                if task is None:
                    continue
                lack = self._lack(task) if here else None
                if lack is None:
                    futures[executor.submit(run_cell, *self._begin(task, threads, look=not here))] = task
                    fresh = False
                elif fresh:
                    self._end(task, Failed(lack))
                else:
                    waits = True
            if not futures:
                return waits
            finished, _ = wait(futures, return_when=FIRST_COMPLETED)
            for future in finished:
                self._end(futures.pop(future), _outcome(future))

    def _task(self, cell: Cell) -> _Task | None:
        """Return what is to be run of a cell; None if it is done, failed or runs, or others must run before it."""
        if cell in self.done or cell in self.failed or cell in self.running:
            return None
        if cell not in self.tasks:
            if not all(before in self.done for before in cell.after):
                return None
            config = cell.config
            if cell.complete is not None:
                config = cell.complete(config, [self.done[before] for before in cell.after])
            key = cell_key(config, self.fingerprint, self.version)
            file = cell_file(self.folder, key)
            if file.is_dir():
                raise ValueError(f"{file} is a folder, and a cell is to be written there; move it away")
            place = self.folder / "work" / key
            try:
                self.done[cell] = read_cell(file)
                shutil.rmtree(place, ignore_errors=True)  # of a run that was ended between the two
                return None
            except FileNotFoundError:
                pass
            except OtherFormatError:
                raise
            except ValueError as error:
                print_whole(self.console, one_line(f"{error}; it is run again"))
            self.tasks[cell] = _Task(cell, config, key, place)
        return self.tasks[cell]

    def _lack(self, task: _Task) -> str | None:
        """Return what a cell lacks beside those that run, of which each may still allocate the rest of its needs."""
        try:
            if task.cell not in self.needs:
                self.needs[task.cell] = self.study.needs(task.config)
        except StoppedError:
            raise
        except Exception as error:
            return told(error)
        memory, disk = available_memory(), shutil.disk_usage(self.folder).free
        for cell in self.running:
            memory -= max(0, self.needs[cell].memory - allocated(self.tasks[cell].place))
            disk -= self.needs[cell].disk
        return lack_of_room(self.needs[task.cell], memory, disk)

    def _begin(self, task: _Task, threads: int | None, look: bool) -> tuple[Any, ...]:
        """Return the arguments with which a cell runs."""
        make_folder(task.place)
        self.running[task.cell] = time.monotonic()
        data = self.options.data.spec if self.options.data else None
        return self.study, task.config, task.place, data, threads, look

    def _end(self, task: _Task, outcome: Ran | Failed) -> None:
        self.running.pop(task.cell, None)
        if isinstance(outcome, Ran):
            data = self.options.data.to_dict() if self.options.data else {}
            done = Done(task.config, data, self.version, outcome.result, outcome.environment, round(outcome.seconds, 1))
            try:
                write_cell(self.folder, task.key, done)
            except (TypeError, ValueError) as error:  # a result that JSON has no values for
                outcome = Failed(told(error))
            else:
                self.done[task.cell] = done
                shutil.rmtree(task.place, ignore_errors=True)
                self._show(done)
        # It may have been dropped, or have come as the error of a cell.
        check_stopped(self.signals)
        if isinstance(outcome, Failed):
            self.failed.add(task.cell)
            log = log_file(task.place)
            where = f"; its log is {log}" if log.exists() and log.stat().st_size else ""
            print_whole(self.console, one_line(f"{label(task.config)} failed: {outcome.text}{where}"))

    def _show_start(self) -> None:
        """Say what will run, where one can watch it, and how it can be stopped: the first cell may take an hour."""
        count = f"{len(self.done)} of {len(self.cells)} cells of the study {self.study.name} are done"
        if len(self.done) < len(self.cells):
            left = f"; {self._time_left()} left" if self.done else ""
            place = one_line(self.folder / "work" / "*" / "log.txt")
            count += f"{left}. Those that run tell their progress in {place}. Ctrl-C stops, the same command goes on"
        print_whole(self.console, f"{count}.")

    def _show(self, done: Done) -> None:
        line = self.study.line(done.result)
        print_whole(
            self.console,
            f"[{len(self.done)}/{len(self.cells)}] {label(done.config)}{': ' if line else ''}{line} "
            f"({format_seconds(done.seconds)}); {self._time_left()} left",
        )

    def _time_left(self) -> str:
        now = time.monotonic()
        left = {
            cell: now - self.running.get(cell, now)
            for cell in self.cells
            if cell not in self.done and self.failed.isdisjoint((cell, *cell.after))
        }
        return format_seconds(seconds_left(self.study, self.done, left, self.jobs))


def _outcome(future: Future[Ran | Failed]) -> Ran | Failed:
    """Return what a cell came to elsewhere; a job that ended without a result failed."""
    try:
        return future.result()
    except ChildProcessError as error:
        return Failed(str(error))


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
