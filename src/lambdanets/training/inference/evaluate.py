"""Measure a finished run on images that it has not learnt from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lambdanets.files import check_folder, write_json, write_table
from lambdanets.names import count
from lambdanets.training.data import FileImages
from lambdanets.training.data.core import Part
from lambdanets.training.data.exam import Exam, load_exam
from lambdanets.training.data.inspection import inspect_images
from lambdanets.training.data.listing import first_of
from lambdanets.training.data.skipping import SkipList, skip_bad_images
from lambdanets.training.display.plots import frequent_mistakes, plot_confusion
from lambdanets.training.engine.devices import computing_threads, make_accelerator
from lambdanets.training.engine.faults import told_faults
from lambdanets.training.engine.loaders import check_parallel, measuring_loader
from lambdanets.training.engine.metrics import Scores, measure
from lambdanets.training.engine.peers import TIMEOUT, PeerWatch
from lambdanets.training.rules import whole
from lambdanets.training.runs.folder import Run, check_entries, versions
from lambdanets.training.runs.stored import seen_in_training, stored_data

FILES = ("evaluation.json", "confusion.csv", "confusion.png")


@dataclass(frozen=True)
class Evaluation:
    """Scores and where they were written.

    Attributes:
        part: the part of the data: ``"test"``, ``"validation"``, ``"train"``, or ``"all"`` of data without parts.
        spec: the data.
        source: what was scored, in words: number of images, part and data.
        scores: loss, accuracies and confusion matrix.
        mistakes: the most frequent ones as (true class, predicted class, images).
        files: what was written.
        main_process: False on all processes but one of a parallel evaluation.
        notes: sentences for the user: what of the data was left out, and whether the run has seen the images before.
    """

    part: str
    spec: str
    source: str
    scores: Scores
    mistakes: list[tuple[str, str, int]]
    files: list[Path]
    main_process: bool
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The scores and where they come from, for JSON."""
        return {
            "data": self.spec,
            "part": self.part,
            "source": self.source,
            **self.scores.to_dict(),
            "notes": list(self.notes),
        }


def evaluate_run(
    path: str | Path,
    *,
    data: str | None = None,
    output: str | Path | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
) -> Evaluation:
    """Measure a run's best weights on images that it has not learnt from.

    Without ``data``, and with the run's own data, these are the test images of the split that is stored with the run
    (the validation images where it has no test images). Other data are a source of their own, of which nothing is held
    back: their test part if they have one (a folder ``test/``, a reader's test split), else their validation part, else
    all of their images, any number for each class. Classes are matched by name.

    Writes ``evaluation.json``, ``confusion.csv`` and ``confusion.png``.

    Args:
        path: the run folder, or the name of weights that come with the package.
        data: a data specification, see ``lambdanets.training.data``. Default: the data of the run.
        output: folder for the files. Default: the run folder; ``runs/NAME`` for a name.
        batch_size: images a step. Default: that of the training.
        workers: processes that read images. Default: as in the training.

    Returns:
        The scores, and what they are the scores of.

    Raises:
        FileNotFoundError: the run, its weights or the data are missing.
        ValueError: they are damaged or changed, or the data have a class that the run does not have.
    """
    run = Run.open_trained(path)
    batch_size = run.recipe.batch_size if batch_size is None else batch_size
    workers = run.recipe.workers if workers is None else workers
    whole(1, 10**6)(batch_size, "batch_size")
    whole(0, 256)(workers, "workers")
    folder = run.output if output is None else Path(output)
    check_folder(folder)
    check_entries(folder, FILES, folders=())
    exam = _own_images(run) if data is None else _other_images(run, data)
    accelerator = make_accelerator(run.recipe, measuring=True)
    check_parallel(accelerator, batch_size)
    model = run.load_model().to(accelerator.device)
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
    loader = measuring_loader(accelerator, exam.images, run.transform, batch_size, workers, TIMEOUT)
    processes = accelerator.num_processes
    with (
        computing_threads(run.recipe.cpu_threads),
        PeerWatch(accelerator.process_index, processes, TIMEOUT),
        told_faults(processes, "Evaluate again.", "Give a smaller --batch-size."),
    ):
        scores = measure(accelerator, model, loader, len(run.class_names))
    if not math.isfinite(scores.loss):
        raise ValueError(
            f"the loss of {run.path} on {exam.spec} is {scores.loss}: some outputs are no finite numbers, so the "
            "scores would mean nothing; train again, with a lower learning rate or in fp32"
        )
    word = "" if exam.part == "all" else f"{exam.part} "
    evaluation = Evaluation(
        part=exam.part,
        spec=exam.spec,
        source=f"{count(scores.images, f'{word}image', f'{word}images')} of {exam.spec}",
        scores=scores,
        mistakes=frequent_mistakes(scores.confusion.numpy(), run.class_names, 5),
        files=[folder / name for name in FILES],
        main_process=accelerator.is_main_process,
        notes=exam.notes + _count_again(exam, scores),
    )
    if accelerator.is_main_process:
        _write(run, evaluation)
    return evaluation


def _own_images(run: Run) -> Exam:
    part = "test" if "test" in run.config["data"]["images"] else "validation"
    try:
        data = stored_data(run, (part,))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{str(error).rstrip('.')}. {run.path} was trained on these data; name where they are with --data."
        ) from None
    skip_bad_images(data, run.path, run.recipe.skip_bad_images, writable=False)
    part, images = data.held_out
    return Exam(run.data_spec, part, images, (*data.notes, *_replaced(run, images)))


def _replaced(run: Run, images: Part) -> tuple[str, ...]:
    """A sentence if some of the images cannot be read, and others are scored in their place."""
    most = run.recipe.skip_bad_images
    if not most:
        return ()
    listed = {row["image"] for row in SkipList(run.path, most, writable=False).rows()}
    if isinstance(images, FileImages):
        unreadable = set(inspect_images([images], most))
        listed |= {name for path, name in zip(images.paths, images.names, strict=True) if str(path) in unreadable}
    bad = [name for name in map(images.name, range(len(images))) if name in listed]
    if not bad:
        return ()
    told = count(len(bad), "of these images is", "of these images are")
    why = "not readable, and the next one is scored once more in its place (skip_bad_images)"
    return (f"{told} {why}: {first_of(bad)}",)


def _other_images(run: Run, data: str) -> Exam:
    exam = load_exam(data, run.class_names)
    if exam.spec == run.data_spec:
        own = _own_images(run)
        note = f"{data} is what the run was trained on: its own {own.part} images are scored, not all."
        return Exam(own.spec, own.part, own.images, (note, *own.notes))
    if isinstance(exam.images, FileImages):
        inspect_images([exam.images])
    return Exam(exam.spec, exam.part, exam.images, exam.notes + seen_in_training(run, exam))


def _count_again(exam: Exam, scores: Scores) -> tuple[str, ...]:
    """A sentence if a stream gave another number of images than it announced; of other data all images are scored."""
    announced = len(exam.images)
    if scores.images == announced:
        return ()
    if exam.images.streams:
        return (f"{exam.spec} announces {announced:,} images, and {scores.images:,} could be read.",)
    raise RuntimeError(f"{scores.images:,} images were scored of {announced:,}; this is a fault of lambdanets")


def _write(run: Run, evaluation: Evaluation) -> None:
    names, scores = run.class_names, evaluation.scores
    confusion = scores.confusion.numpy()
    write_json(evaluation.files[0], {"run": run.name, **evaluation.to_dict(), "versions": versions()})
    rows = [[name, *line] for name, line in zip(names, confusion.tolist(), strict=True)]
    write_table(evaluation.files[1], ["true class", *names], rows)
    word = "" if evaluation.part == "all" else f"{evaluation.part} "
    title = f"{run.recipe.model}: {scores.top1:.2%} of {scores.images:,} {word}images right"
    plot_confusion(evaluation.files[2], confusion, names, title)
