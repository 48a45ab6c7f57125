"""Progress of a training on the console: a moving bar on a terminal, a line an epoch elsewhere."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from lambdanets.console import one_line, print_whole
from lambdanets.names import count
from lambdanets.provenance import usable_cores
from lambdanets.training.recipes.recipe import Recipe

# Columns of a terminal from which on the bar shows waiting and memory.
_WIDE = 110
# The share of the time spent waiting from which on advice is given.
_MUCH_WAITING = 0.1


def print_start(console: Console, recipe: Recipe, done: int = 0) -> None:
    """One line that says what is about to be trained, on what and how long.

    Args:
        console: where to print it.
        recipe: the choices.
        done: epochs that were finished before, when a training is resumed.
    """
    if done == recipe.epochs:
        print_whole(console, f"All {count(done, 'epoch', 'epochs')} of the training are done; its end follows.")
        return
    epochs = f"epochs {done + 1} to {recipe.epochs}" if done else count(recipe.epochs, "epoch", "epochs")
    rate = f"learning rate {recipe.scaled_lr:g}"
    if recipe.lr_batch_size is not None:
        rate += f" ({recipe.lr:g} per {recipe.lr_batch_size} images)"
    start = f"{recipe.optimizer}, {rate}, seed {recipe.seed}"
    what = f"Training {one_line(recipe.model)} on {one_line(recipe.data)}"
    parts = f" in {recipe.accumulate} parts" if recipe.accumulate > 1 else ""
    print_whole(console, f"{what}: {epochs}, batches of {recipe.batch_size}{parts}, {start}")


def print_notes(console: Console, notes: Sequence[str]) -> None:
    """A line for each note: what of the data is left out, and the like."""
    for note in notes:
        print_whole(console, one_line(note))


class TrainingProgress:
    """Display of how far a training is; only the main process shows anything.

    Args:
        console: where to show it.
        epochs: epochs in all.
        steps: steps an epoch.
        done: steps of all epochs that were done before, when a training is resumed.
        enabled: False shows nothing.
        workers: processes that read images, for advice.
    """

    def __init__(
        self, console: Console, epochs: int, steps: int, done: int = 0, enabled: bool = True, workers: int = 0
    ) -> None:
        self._console = console
        self._epochs, self._steps = epochs, steps
        self._enabled, self._workers = enabled, workers
        self._advised = False
        wide = console.width >= _WIDE
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:3.0f} %"),
            TextColumn("loss {task.fields[loss]:.3f}  accuracy {task.fields[top1]:6.2%}"),
            TextColumn("{task.fields[rate]:,.0f} images/s"),
            *([TextColumn("waiting {task.fields[waiting]:.0%}  {task.fields[memory]:.1f} GiB")] if wide else []),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            transient=True,
            disable=not (enabled and console.is_terminal),
        )
        self._task = self._bar.add_task(
            "",
            total=epochs * steps,
            completed=done,
            epoch=min(epochs, done // steps + 1),
            epochs=epochs,
            loss=float("nan"),
            top1=0.0,
            rate=0.0,
            waiting=0.0,
            memory=0.0,
        )
        self._started = time.monotonic()
        self._done = done

    def __enter__(self) -> TrainingProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def step(
        self,
        completed: int,
        epoch: int,
        loss: float,
        top1: float,
        rate: float,
        waiting: float = 0.0,
        memory: float = 0.0,
    ) -> None:
        """Move the bar.

        Args:
            completed: steps done in all.
            epoch: the current epoch, from 1.
            loss: mean training loss of the epoch so far.
            top1: training accuracy of the epoch so far, 0 to 1.
            rate: images a second over all processes.
            waiting: share of the epoch's time that the device waited for images.
            memory: the most memory so far in GiB.
        """
        shown: dict[str, Any] = {"loss": loss, "top1": top1, "rate": rate, "waiting": waiting, "memory": memory}
        self._bar.update(self._task, completed=completed, epoch=epoch, **shown)

    def epoch(self, row: Mapping[str, Any], best: bool) -> None:
        """Print the line of a finished epoch.

        Args:
            row: the epoch's line of ``metrics.csv``.
            best: True if its validation accuracy is the highest so far.
        """
        if not self._enabled:
            return
        epoch = int(row["epoch"])
        elapsed = time.monotonic() - self._started
        here = max(1, epoch * self._steps - self._done)
        left = format_seconds(elapsed / here * (self._epochs - epoch) * self._steps)
        width = len(str(self._epochs))
        self._console.print(
            f"epoch {epoch:{width}d}/{self._epochs}"
            f"  loss {row['train_loss']:.3f}  accuracy {row['train_top1']:6.2%}"
            f"  validation loss {row['validation_loss']:.3f}  accuracy {row['validation_top1']:6.2%}"
            f"  {row['images_per_second']:,.0f} images/s"
            f"  waiting {row['waiting_share']:.0%}  {row['memory_gib']:.1f} GiB  {left} left{'  *' if best else ''}",
            highlight=False,
            soft_wrap=True,
        )
        if row["waiting_share"] > _MUCH_WAITING and not self._advised:
            self._advised = True
            print_whole(self._console, advise_on_waiting(row["waiting_share"], self._workers))


def advise_on_waiting(share: float, workers: int) -> str:
    """A sentence on what can be done where the device waits for images."""
    cores = usable_cores()
    if workers * int(os.environ.get("LOCAL_WORLD_SIZE", "1")) < cores:  # each process of this machine has so many
        has = f"now {workers}; the machine has {count(cores, 'core', 'cores')}"
        remedy = f"in another training more --workers may help ({has})"
    else:
        remedy = "images stored smaller, a faster disk or a lighter augmentation may help"
    return f"The device waited {share:.0%} of the epoch for images; {remedy}."


def format_seconds(seconds: float) -> str:
    """A time to read: ``42 s``, ``3 min 05 s`` or ``2 h 07 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
