"""A training from beginning to end: data, run folder, loop, test."""

from __future__ import annotations

import re
import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, set_seed
from rich.console import Console

from lambdanets.console import make_console, shell_word
from lambdanets.files import check_folder, make_folder, replacing, write_json
from lambdanets.layers.arguments import check_bool
from lambdanets.training.data import ArrayImages, FileImages, ImageData, Part, load_data
from lambdanets.training.data.skipping import check_skipping, skip_bad_images
from lambdanets.training.data.transforms import InputTransform
from lambdanets.training.display.profile import print_profile
from lambdanets.training.display.progress import TrainingProgress, print_notes, print_start
from lambdanets.training.engine import state
from lambdanets.training.engine.checkpoint import (
    find_checkpoint,
    list_checkpoints,
    remove_checkpoints,
    split_checkpoint,
)
from lambdanets.training.engine.devices import computing_threads, make_accelerator
from lambdanets.training.engine.faults import how_to_go_on, how_to_take_less, told_faults
from lambdanets.training.engine.intervals import DEFAULT, Interval
from lambdanets.training.engine.loaders import input_transform, measuring_loader
from lambdanets.training.engine.loop import Trainer, TrainingDivergedError
from lambdanets.training.engine.metrics import Scores, measure
from lambdanets.training.engine.optimisation import freeze_stages
from lambdanets.training.engine.peers import (
    TIMEOUT,
    PeerWatch,
    begun_before_restart,
    remember,
    waiting_for_main,
)
from lambdanets.training.engine.profiling import ProfiledBatches
from lambdanets.training.engine.sharding import check_sharding, load_state
from lambdanets.training.engine.signals import StopSignal
from lambdanets.training.engine.start import (
    Start,
    check_batches,
    check_choices,
    check_data,
    check_training_step,
    describe_without_effect,
    initial_model,
    inspect_data,
    list_bad_images,
)
from lambdanets.training.engine.weights import Source, open_source
from lambdanets.training.recipes.recipe import Recipe
from lambdanets.training.rules import number
from lambdanets.training.runs.folder import Run, check_entries, check_new, new_run_folder, versions
from lambdanets.training.runs.lock import locked
from lambdanets.training.runs.model import check_model_name, read_weights
from lambdanets.training.runs.schema import read_finished
from lambdanets.training.runs.stored import stored_data

_SAMPLES = 10


@dataclass(frozen=True)
class TrainingResult:
    """Result of a training.

    Attributes:
        run: its folder.
        stopped_by: the signal (2 for Ctrl-C, 15 for SIGTERM) that ended it early, or None.
        epochs: epochs finished.
        best_epoch: the epoch of the best weights, None if none was finished.
        validation_top1: their accuracy on the validation images, 0 to 1, None if no epoch was finished.
        test: their scores on the test images; None if it ended early or there are no test images.
        seconds: time it took, all included; of the parts before a resumption the time of their steps.
        example: an image to try ``lambdanets predict`` on, if there is one.
        main_process: False on all processes but one of a parallel training.
        processes: how many trained together.
        steps: steps done of the epoch after the finished ones.
        saved: False if the last step was not finite, so that the last checkpoint is of a step before it.
    """

    run: Run
    stopped_by: int | None
    epochs: int
    best_epoch: int | None
    validation_top1: float | None
    test: Scores | None
    seconds: float
    example: Path | None
    main_process: bool
    processes: int = 1
    steps: int = 0
    saved: bool = True


def train(
    recipe: Recipe,
    *,
    output: str | Path | None = None,
    console: Console | None = None,
    checkpoint_every: str = DEFAULT,
    timeout: float = TIMEOUT,
    profile: bool = False,
) -> TrainingResult:
    """Train a model as ``recipe`` says and test its best weights.

    Restarted by torchrun (``--max-restarts``) after a fault, it goes on with the run that it had begun.

    Args:
        recipe: model, data and all choices; its ``data`` must be given.
        output: the run folder to make. Default: ``runs/<model>-<data>-<date>-<time>``.
        console: where to show the progress. Default: the terminal.
        checkpoint_every: steps (``"500"``) or minutes (``"10m"``) between two checkpoints; each epoch ends with one.
        timeout: seconds without an answer after which a data worker, or another process of the training, counts as
            dead.
        profile: True writes a trace of some of the first steps (``profile/trace.json``) and shows where their time
            goes.

    Returns:
        The run and its scores.

    Raises:
        FileNotFoundError: the data are missing.
        OSError: the machine refused or lost something; the last checkpoint is whole.
        ValueError: the data, the model's name or another choice does not work; the message says what would.
        TrainingDivergedError: the loss became NaN or infinite.
    """
    started = time.monotonic()
    check_bool("profile", profile)
    every = _interval(checkpoint_every, timeout)
    before = begun_before_restart()
    if before is not None:
        return resume(before, console=console, checkpoint_every=checkpoint_every, timeout=timeout, profile=profile)
    console = console or make_console()
    data, source, transform = _opened(recipe, output)
    accelerator = make_accelerator(recipe)
    with ExitStack() as stack:
        watch = stack.enter_context(PeerWatch(accelerator.process_index, accelerator.num_processes, timeout))
        notes = [*data.notes, *check_batches(accelerator, data, recipe)]
        check_sharding(accelerator, recipe)
        set_seed(recipe.seed)
        start = initial_model(recipe, data, transform, source)
        check_training_step(start.model, start.recipe, data, transform.image_size, accelerator.num_processes)
        with waiting_for_main(accelerator.process_index, accelerator.num_processes):
            begun: Path | None = None
            bad: list[str] = []
            if accelerator.is_main_process:
                begun, bad = _begin(start, data, transform, output, notes, console, stack)
        # All processes must mean the same folder, though their clocks differ.
        run = Run.open(broadcast_object_list([begun])[0])
        skip_bad_images(data, run.path, run.recipe.skip_bad_images)
        list_bad_images(data, bad)
        watch.advice = how_to_go_on(run.path, accelerator.num_processes)
        trainer = Trainer(accelerator, run, data, start.model, every=every, timeout=timeout)
        set_seed(recipe.seed, device_specific=True)
        trainer.start()
        if accelerator.is_main_process:
            remember(run.path)
        return _run(trainer, data, started, console, profile)


def _opened(recipe: Recipe, output: str | Path | None) -> tuple[ImageData, Source | None, InputTransform]:
    """The data, the weights to start from and the input transform, after all checks that need no work."""
    if recipe.data is None:
        raise ValueError(f"the recipe {recipe.name!r} has no data of its own; give --data")
    check_model_name(recipe.model)
    if output is not None:
        check_new(Path(output))
    data = load_data(recipe.data, validation_share=recipe.validation_share)
    check_data(data)
    check_skipping(data, recipe.skip_bad_images)
    source = None if recipe.init_from is None else open_source(recipe.init_from)
    transform = input_transform(data, recipe, None if source is None else source.transform)
    check_choices(recipe, transform)
    return data, source, transform


def _begin(
    start: Start,
    data: ImageData,
    transform: InputTransform,
    output: str | Path | None,
    notes: list[str],
    console: Console,
    stack: ExitStack,
) -> tuple[Path, list[str]]:
    """Look at all images and make the run folder, locked until ``stack`` ends; returns it and the unreadable images."""
    bad, told = inspect_data(data, start.recipe.skip_bad_images)
    path = new_run_folder(start.recipe.model, data.spec) if output is None else Path(output)
    make_folder(path)
    stack.enter_context(locked(path))
    Run.create(path, start.recipe, data, transform, start.weights)
    _save_samples(path / "samples", data)
    print_notes(console, [*notes, *told, *start.notes, *describe_without_effect(start.recipe)])
    return path, bad


def resume(
    path: str | Path,
    *,
    console: Console | None = None,
    checkpoint_every: str = DEFAULT,
    timeout: float = TIMEOUT,
    profile: bool = False,
) -> TrainingResult:
    """Continue a training that was stopped, from its last checkpoint.

    The result is the same as if it had not been stopped.

    Args:
        path: the run folder, or one of the folders in its ``checkpoint/`` to go on from that one.
        console: where to show the progress. Default: the terminal.
        checkpoint_every: as of ``train``.
        timeout: as of ``train``.
        profile: as of ``train``.

    Returns:
        The run and its scores.

    Raises:
        FileNotFoundError: there is no such run, it has no checkpoint, or the data are missing.
        OSError: as of ``train``.
        ValueError: the run is finished, another process trains it, the number of processes is another than before, a
            file of it is missing, damaged or a link, or its images are not those it was started with: one is gone or
            changed. Images that were added are counted and not used.
        TrainingDivergedError: the loss became NaN or infinite.
    """
    started = time.monotonic()
    check_bool("profile", profile)
    every = _interval(checkpoint_every, timeout)
    folder, chosen = split_checkpoint(Path(path))
    run = Run.open(folder)
    check_entries(run.path)
    _refuse_finished(run)
    check_folder(run.path)
    recipe = run.recipe
    console = console or make_console()
    accelerator = make_accelerator(recipe)
    with ExitStack() as stack:
        watch = stack.enter_context(PeerWatch(accelerator.process_index, accelerator.num_processes, timeout))
        watch.advice = how_to_go_on(run.path, accelerator.num_processes)
        if accelerator.is_main_process:
            stack.enter_context(locked(run.path))
        accelerator.wait_for_everyone()
        _refuse_finished(run)  # by another process, until the lock was free
        checkpoint = find_checkpoint(run.path, chosen)
        data = stored_data(run)
        skip_bad_images(data, run.path, recipe.skip_bad_images)
        notes = [*data.notes, *check_batches(accelerator, data, recipe)]
        model = run.new_model()
        freeze_stages(model, recipe.frozen_stages)
        trainer = Trainer(accelerator, run, data, model, every=every, timeout=timeout)
        trainer.resume(checkpoint)
        started -= trainer.seconds + sum(row["seconds"] for row in trainer.rows)
        notes += state.changes(checkpoint, accelerator.device)
        if trainer.batch:
            notes.append(
                f"Goes on in epoch {trainer.epoch + 1}, after {trainer.batch:,} of {len(trainer.batches):,} steps."
            )
        if accelerator.is_main_process:
            print_notes(console, notes)
        return _run(trainer, data, started, console, profile)


def _interval(checkpoint_every: str, timeout: float) -> Interval:
    number(1, 1e6, "use a number of seconds from 1 to 1000000")(timeout, "timeout")
    return Interval.parse(checkpoint_every)


def _run(trainer: Trainer, data: ImageData, started: float, console: Console, profile: bool) -> TrainingResult:
    accelerator, run, recipe = trainer.accelerator, trainer.run, trainer.recipe
    if accelerator.is_main_process:
        print_start(console, recipe, trainer.epoch)
        if profile:
            report = partial(print_profile, console)
            trainer.batches = ProfiledBatches(trainer.batches, trainer.model, run.path, accelerator.device, report)
    steps = len(trainer.batches)
    is_main = accelerator.is_main_process
    done = trainer.epoch * steps + trainer.batch
    progress = TrainingProgress(console, recipe.epochs, steps, done, is_main, recipe.workers)
    with computing_threads(recipe.cpu_threads):
        stopped_by, test, seconds = _fit_and_test(trainer, progress, data, console, started)
    accelerator.wait_for_everyone()
    if stopped_by is None and is_main:
        remove_checkpoints(run.path)
    best = trainer.best_row
    result = TrainingResult(
        run=run,
        stopped_by=stopped_by,
        epochs=trainer.epoch,
        best_epoch=None if best is None else int(best["epoch"]),
        validation_top1=None if best is None else best["validation_top1"],
        test=test,
        seconds=seconds,
        example=_example(run, data),
        main_process=is_main,
        processes=accelerator.num_processes,
        steps=trainer.batch,
        saved=not trainer.is_spoilt(),
    )
    if accelerator.num_processes > 1:
        accelerator.end_training()
    return result


def _refuse_finished(run: Run) -> None:
    if read_finished(run.path) is not None:
        command = f"lambdanets evaluate {shell_word(run.path)}"
        raise ValueError(f"the run {run.path} is finished, there is nothing to resume; try `{command}`")


def _fit_and_test(
    trainer: Trainer, progress: TrainingProgress, data: ImageData, console: Console, started: float
) -> tuple[int | None, Scores | None, float]:
    """Train and test, and write ``result.json``; returns the signal that ended it early, the scores, and the time."""
    accelerator, run = trainer.accelerator, trainer.run
    advice = how_to_go_on(run.path, accelerator.num_processes)
    with told_faults(accelerator.num_processes, advice, how_to_take_less(run.path)):
        try:
            with StopSignal() as stop:
                with progress:
                    finished = trainer.fit(progress, stop)
                # Not cut short by a signal, as a validation is not.
                test = _test(trainer, data.test) if finished and data.test is not None else None
        except TrainingDivergedError:
            _write_result(trainer, "diverged", None, time.monotonic() - started)
            raise
        except torch.OutOfMemoryError:
            raise
        except (Exception, KeyboardInterrupt):  # the second Ctrl-C
            # None are left where the run folder was removed.
            checkpoints = list_checkpoints(run.path)
            if accelerator.is_main_process and checkpoints:
                print_notes(console, [f"The last checkpoint is {checkpoints[-1].name}. {advice}"])
            raise
        seconds = time.monotonic() - started
        _write_result(trainer, "finished" if finished else "interrupted", test, seconds)
    return None if finished else stop.number or 2, test, seconds


def _test(trainer: Trainer, images: Part) -> Scores:
    """The scores of the best weights on the test images, read from the file that others will read."""
    accelerator, run, recipe = trainer.accelerator, trainer.run, trainer.recipe
    accelerator.wait_for_everyone()
    model = trainer.evaluated_model
    load_state(model, read_weights(model, run.path / "best.safetensors", run.class_names))
    loader = measuring_loader(accelerator, images, run.transform, recipe.batch_size, recipe.workers, trainer.timeout)
    return measure(accelerator, model, loader, len(run.class_names))


def _write_result(trainer: Trainer, status: str, test: Scores | None, seconds: float) -> None:
    accelerator, best = trainer.accelerator, trainer.best_row
    if not accelerator.is_main_process:
        return
    device = accelerator.device
    content: dict[str, Any] = {
        "status": status,
        "epochs": trainer.epoch,
        "best_epoch": None if best is None else int(best["epoch"]),
        "validation": None if best is None else {key: best[f"validation_{key}"] for key in ("top1", "top5", "loss")},
        "test": None if test is None else test.to_dict(),
        "seconds": round(seconds, 2),
        "parameters": sum(parameter.numel() for parameter in trainer.evaluated_model.parameters()),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "precision": trainer.recipe.precision,
        "versions": versions(),
    }
    write_json(trainer.run.path / "result.json", content)


def _save_samples(folder: Path, data: ImageData) -> None:
    """Some test images as files, a class each, so that there is something to predict; files need no copy."""
    _, images = data.held_out
    if not isinstance(images, ArrayImages):
        return
    folder.mkdir()
    for label, name in list(enumerate(data.class_names))[:_SAMPLES]:
        if label in images.labels:
            index = images.labels.index(label)
            word = re.sub(r"[^\w-]+", "-", name)
            with replacing(folder / f"{word}-{index:05d}.png") as temporary:
                images.image(index).save(temporary)


def _example(run: Run, data: ImageData) -> Path | None:
    _, images = data.held_out
    files = images.paths if isinstance(images, FileImages) else run.samples
    return files[0] if files else None
