"""Kill trainings at random moments, resume them, and compare their results with an uninterrupted training's.

    python scripts/kill_harness.py --kills 20 [--workers 2] [--processes 2 [--shard]] [--output kills.json]
    python scripts/kill_harness.py --power-cuts 20      # needs root: mounts an ext4 image, and copies of it

Half of the kills come at a random moment of a random step (or before the first one), half in the next write after it. A
training is killed with SIGKILL, all of its processes at once, and goes on with ``resume`` to its end. Compared bit by
bit are the weights (best and last), ``metrics.csv`` but for its times, and the scores in ``result.json``. Lost work is
what was done since the checkpoint that the next process found.

The trainings are processes forked from this one, which has imported PyTorch already; they take seconds. Two processes
train together over gloo. For a power cut the training is stopped and the image copied as it lies on the disk, without
what was not flushed; the copy is mounted, which replays its journal, and the training goes on there.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from rich.console import Console

from lambdanets.files import read_csv, read_json
from lambdanets.training import Augmentation, Recipe, resume, train
from lambdanets.training.display.progress import TrainingProgress
from lambdanets.training.engine.loop import Trainer

TIMES = ("seconds", "images_per_second", "waiting_share", "memory_gib")
# A training that takes longer than this hangs.
_DEADLINE = 300.0


@dataclass
class Tally:
    """Outcomes of the kills.

    Attributes:
        kills: how many there were; ``inside_writes`` of them while a file was written.
        before_first: kills before the first checkpoint, after which the training is begun again.
        trainings: trainings that were killed once or more and went on to their end.
        bit_equal: those of them that ended as the uninterrupted one, bit by bit.
        lost_steps: for each kill, steps that had to be done again.
        differences: what differed.
    """

    kills: int = 0
    inside_writes: int = 0
    before_first: int = 0
    trainings: int = 0
    bit_equal: int = 0
    lost_steps: list[int] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)

    def line(self) -> str:
        """The tally in one line."""
        steps = sorted(self.lost_steps) or [0]
        return (
            f"{self.kills} kills ({self.inside_writes} inside a write, {self.before_first} before the first checkpoint)"
            f" of {self.trainings} trainings: {self.bit_equal} bit-equal; steps done again: median "
            f"{steps[len(steps) // 2]}, at most {steps[-1]}"
        )


def write_images(folder: Path, images: int = 16) -> None:
    """Noisy pictures of three colours, a folder each."""
    generator = np.random.default_rng(0)
    for channel, name in ((2, "blue"), (1, "green"), (0, "red")):
        (folder / name).mkdir(parents=True)
        for index in range(images):
            pixels = generator.integers(0, 120, (10, 12, 3))
            pixels[..., channel] += 100
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{index:03d}.png")


def small_recipe(data: Path | str, workers: int, epochs: int = 3) -> Recipe:
    """A second of training with all that draws random numbers: augmentation, mixing, drop path, dropout."""
    return Recipe(
        name="kill",
        model="lambda_resnet_tiny",
        data=str(data),
        image_size=8,
        epochs=epochs,
        batch_size=8,
        accumulate=2,
        lr=5e-3,
        ema_decay=0.8,
        drop_rate=0.1,
        drop_path_rate=0.1,
        workers=workers,
        augmentation=Augmentation(
            crop="padded", padding=1, horizontal_flip=0.5, rotation=5, random_erasing=0.1, mixup=0.2, cutmix=0.2
        ),
        cpu_threads=1,
    )


class Training:
    """A training in forked processes, which can be killed.

    Args:
        work: what each process does.
        processes: how many train together.
        log: the file for what they print.
    """

    def __init__(self, work: Callable[[], Any], processes: int, log: Path) -> None:
        self.failed = False
        self.done = multiprocessing.Value(ctypes.c_long, 0)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        sys.stdout.flush()
        self.pids = [self._fork(work, rank, processes, port, log) for rank in range(processes)]

    def _fork(self, work: Callable[[], Any], rank: int, processes: int, port: int, log: Path) -> int:
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            # Where these are files of a test runner.
            sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
            if processes > 1:
                ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
                place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
                os.environ.update({name: str(value) for name, value in (ranks | place).items()})
            # What this process or an earlier training in it knows of its place is not the child's.
            AcceleratorState._reset_state(reset_partial_state=True)
            Trainer._draw = lambda trainer: None  # type: ignore[method-assign]  # takes longer than the training
            step = TrainingProgress.step

            def counted(progress: TrainingProgress, completed: int, *rest: Any) -> None:
                self.done.value = max(self.done.value, completed)
                step(progress, completed, *rest)

            TrainingProgress.step = counted  # type: ignore[method-assign]
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def send(self, number: int) -> None:
        """Send a signal to all processes."""
        for pid in self.pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self) -> None:
        """Kill all processes and wait for their end."""
        self.send(signal.SIGKILL)
        self.wait()

    def running(self) -> bool:
        """True while a process runs; the ended ones are taken note of."""
        for pid in list(self.pids):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self.pids.remove(pid)
                self.failed = self.failed or status != 0
        return bool(self.pids)

    def wait(self, until: Callable[[], bool] = lambda: False) -> bool:
        """Wait for the end of all processes, or for ``until``; True if they ended by themselves."""
        deadline = time.monotonic() + _DEADLINE
        while self.running():
            if until():
                return False
            if time.monotonic() > deadline:
                self.send(signal.SIGKILL)
                raise TimeoutError(f"a training did not end within {_DEADLINE:g} seconds")
            time.sleep(0.0005)
        return True


def is_writing(run: Path) -> bool:
    """True if there is a half written file or folder."""
    for folder in (run, run / "checkpoint"):
        try:
            if any(name.startswith(".") and name != ".lock" for name in os.listdir(folder)):
                return True
        except FileNotFoundError:
            pass
    return False


def saved_steps(run: Path) -> int | None:
    """Steps in the checkpoint from which a run would go on; None if it has none."""
    pointer = run / "checkpoint" / "latest.json"
    if not pointer.exists():
        return None
    facts = read_json(pointer.parent / read_json(pointer)["checkpoint"] / "checkpoint.json")
    return facts["epoch"] * facts["batches"] + facts["batch"]


def differences(run: Path, reference: Path) -> list[str]:
    """Return the differences between two finished runs, but for times and folders."""
    found = [
        f"{name} differs"
        for name in ("best.safetensors", "last.safetensors")
        if (run / name).read_bytes() != (reference / name).read_bytes()
    ]
    one, other = ([_learnt(row) for row in read_csv(path / "metrics.csv")] for path in (run, reference))
    if one != other:
        found.append("metrics.csv differs")
    one, other = (read_json(path / "result.json") for path in (run, reference))
    keys = ("status", "epochs", "best_epoch", "validation", "test", "processes")
    return found + [f"{key} of result.json differs" for key in keys if one[key] != other[key]]


def _learnt(row: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name not in TIMES}


def silent_console() -> Console:
    """A console that shows nothing."""
    return Console(file=open(os.devnull, "w", encoding="utf-8"))


def _begin(recipe: Recipe, run: Path, every: str) -> Callable[[], Any]:
    return lambda: train(recipe, output=run, console=silent_console(), checkpoint_every=every)


def _go_on(run: Path, every: str) -> Callable[[], Any]:
    return lambda: resume(run, console=silent_console(), checkpoint_every=every)


def kill_trainings(
    folder: Path, recipe: Recipe, kills: int, *, processes: int = 1, seed: int = 0, every: str = "2"
) -> Tally:
    """Kill trainings until there were enough kills, and compare their results with an uninterrupted training's.

    Args:
        folder: where the runs lie.
        recipe: what is trained.
        kills: how many there should be, at least.
        processes: how many train together.
        seed: of the moments.
        every: steps between two checkpoints.

    Returns:
        What came of them.
    """
    chance, tally, log = random.Random(seed), Tally(), folder / "log.txt"
    steps_in_all, pace = _reference(folder, recipe, processes, every, log)
    while tally.kills < kills:
        run = folder / f"run-{tally.trainings}"
        before = tally.kills
        work = _begin(recipe, run, every)
        # Some trainings are killed more than once; all of them end.
        for _ in range(chance.randint(1, 3)):
            training = Training(work, processes, log)
            step = chance.randrange(steps_in_all)
            training.wait(lambda training=training, step=step: training.done.value >= step)
            begins = time.monotonic() + chance.random() * 2 * pace
            if training.wait(_moment(begins, run if chance.random() < 0.5 else None)):
                break
            training.kill()
            tally.kills += 1
            tally.inside_writes += is_writing(run)
            steps = saved_steps(run)
            if steps is None and (run / "result.json").exists():
                training.failed = False  # its work was done
                break
            if steps is None:
                tally.before_first += 1
                shutil.rmtree(run, ignore_errors=True)
            else:
                tally.lost_steps.append(max(0, training.done.value - steps))
                work = _go_on(run, every)
        else:
            training = Training(work, processes, log)
            training.wait()
        if training.failed:
            tally.differences.append(f"{run.name}: {log.read_text()[-2000:]}")
            shutil.rmtree(run, ignore_errors=True)
        if tally.kills > before:
            tally.trainings += 1
            found = differences(run, folder / "reference") if not training.failed else ["failed"]
            tally.bit_equal += not found
            tally.differences += [f"{run.name}: {what}" for what in found]
        shutil.rmtree(run, ignore_errors=True)
    return tally


def _reference(folder: Path, recipe: Recipe, processes: int, every: str, log: Path) -> tuple[int, float]:
    """Train without interruption; returns the steps, and the seconds of one with its share of all else."""
    started = time.monotonic()
    reference = Training(_begin(recipe, folder / "reference", every), processes, log)
    reference.wait()
    if reference.failed:
        raise RuntimeError(f"the uninterrupted training failed: {log.read_text()}")
    return reference.done.value, (time.monotonic() - started) / reference.done.value


def _moment(begins: float, writing: Path | None) -> Callable[[], bool]:
    """True from a time on; with a run, then while it is writing."""
    return lambda: time.monotonic() > begins and (writing is None or is_writing(writing))


def cut_power(folder: Path, recipe: Recipe, cuts: int, *, seed: int = 0, every: str = "2") -> Tally:
    """Copy a mounted ext4 image at moments as of ``kill_trainings``, and let the training go on in each copy.

    Args:
        folder: where the images lie.
        recipe: what is trained; its data lie elsewhere.
        cuts: how many there should be.
        seed: of the moments.
        every: steps between two checkpoints.

    Returns:
        What came of them.
    """
    chance, tally, log = random.Random(seed), Tally(), folder / "log.txt"
    steps_in_all, pace = _reference(folder, recipe, 1, every, log)
    image, copy, place = folder / "disk.img", folder / "copy.img", folder / "mounted"
    place.mkdir()
    for _ in range(cuts):
        _command("truncate", "-s", "128M", image)
        _command("mkfs.ext4", "-q", "-F", image)
        # Nothing but what is flushed reaches the disk by itself during the training.
        _command("mount", "-o", "loop,commit=600", image, place)
        try:
            training = Training(_begin(recipe, place / "run", every), 1, log)
            step = chance.randint(0, steps_in_all)
            training.wait(lambda training=training, step=step: training.done.value >= step)
            begins = time.monotonic() + chance.random() * 2 * pace
            training.wait(_moment(begins, place / "run" if chance.random() < 0.5 else None))
            training.send(signal.SIGSTOP)
            tally.inside_writes += is_writing(place / "run")
            shutil.copyfile(image, copy)
            done = training.done.value
            training.kill()
        finally:
            _command("umount", place)
        _command("mount", "-o", "loop", copy, place)
        try:
            tally.kills += 1
            run, steps = place / "run", saved_steps(place / "run")
            if steps is None and not (run / "result.json").exists():
                tally.before_first += 1
                continue
            tally.trainings += 1
            training.failed = False  # killed: what counts is how it goes on, or that its work was done
            if steps is not None:
                tally.lost_steps.append(max(0, done - steps))
                training = Training(_go_on(run, every), 1, log)
                training.wait()
            found = [log.read_text()[-2000:]] if training.failed else differences(run, folder / "reference")
            tally.bit_equal += not found
            tally.differences += found
        finally:
            _command("umount", place)
    return tally


def _command(*words: object) -> None:
    subprocess.run([str(word) for word in words], check=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the harness as its command line says; 1 if a training did not end as it should."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--power-cuts", type=int, default=0, help="cut the power instead; needs root")
    parser.add_argument("--workers", type=int, default=0, help="processes that read images")
    parser.add_argument("--processes", type=int, default=1, help="processes that train together")
    parser.add_argument("--shard", action="store_true", help="with several processes: share out the weights to them")
    parser.add_argument("--data", default="", help="data to train on; default: 48 small images")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--every", default="2", help="steps or minutes between two checkpoints")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--output", type=Path, help="a JSON file for the figures")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if not chosen.data:
            write_images(folder / "images")
        recipe = small_recipe(chosen.data or folder / "images", chosen.workers, chosen.epochs)
        recipe = recipe.override(shard=chosen.shard)
        if chosen.power_cuts:
            tally = cut_power(folder, recipe, chosen.power_cuts, seed=chosen.seed, every=chosen.every)
        else:
            tally = kill_trainings(
                folder, recipe, chosen.kills, processes=chosen.processes, seed=chosen.seed, every=chosen.every
            )
    print(tally.line())
    for what in tally.differences:
        print(what)
    if chosen.output is not None:
        choices = {key: value for key, value in vars(chosen).items() if key != "output"}
        chosen.output.write_text(json.dumps({**choices, **asdict(tally)}, indent=2) + "\n", encoding="utf-8")
    return int(bool(tally.differences))


if __name__ == "__main__":
    sys.exit(main())
