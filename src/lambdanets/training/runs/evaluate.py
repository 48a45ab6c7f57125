"""Measuring a finished run on images it has not learnt from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lambdanets.files import check_folder, write_csv, write_json
from lambdanets.training.data import load_data
from lambdanets.training.data.loaders import check_parallel, measuring_loader
from lambdanets.training.display.plots import frequent_mistakes, plot_confusion
from lambdanets.training.engine.fit import computing_threads, make_accelerator
from lambdanets.training.engine.metrics import Scores, measure
from lambdanets.training.runs.folder import Run, versions


@dataclass(frozen=True)
class Evaluation:
    """Scores and where they were written.

    Attributes:
        part: ``"test"`` or ``"validation"``.
        spec: the data.
        scores: loss, accuracies and confusion matrix.
        mistakes: the most frequent ones as (true class, predicted class, images).
        files: what was written.
        main_process: False on all processes but one of a parallel evaluation.
    """

    part: str
    spec: str
    scores: Scores
    mistakes: list[tuple[str, str, int]]
    files: list[Path]
    main_process: bool


def evaluate_run(
    path: str | Path,
    *,
    data: str | None = None,
    output: str | Path | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
) -> Evaluation:
    """Measures a run's best weights on the test images (on the validation images where there is no test).

    Writes ``evaluation.json``, ``confusion.csv`` and ``confusion.png``.

    Args:
        path: the run folder.
        data: data with the same classes. Default: the data of the run.
        output: folder for the files. Default: the run folder.
        batch_size: images a step. Default: that of the training.
        workers: processes that read images. Default: as in the training.

    Returns:
        The scores.

    Raises:
        FileNotFoundError: the run, its weights or the data are missing.
        ValueError: they are damaged or do not belong together.
    """
    run = Run.open(path)
    batch_size = run.recipe.batch_size if batch_size is None else batch_size
    workers = run.recipe.workers if workers is None else workers
    folder = run.path if output is None else Path(output)
    check_folder(folder)
    images = load_data(data or run.data_spec, batch_size=batch_size)
    run.check_classes(images.class_names, images.spec)
    part, held_out = images.held_out
    accelerator = make_accelerator(run.recipe)
    check_parallel(accelerator, images, batch_size)
    model = run.load_model().to(accelerator.device)
    loader = measuring_loader(accelerator, held_out, run.transform, batch_size, workers)
    with computing_threads(run.recipe):
        scores = measure(accelerator, model, loader, len(run.class_names))
    files = []
    if accelerator.is_main_process:
        files = _write(folder, run, part, images.spec, scores)
    return Evaluation(
        part=part,
        spec=images.spec,
        scores=scores,
        mistakes=frequent_mistakes(scores.confusion.numpy(), run.class_names, 5),
        files=files,
        main_process=accelerator.is_main_process,
    )


def _write(folder: Path, run: Run, part: str, spec: str, scores: Scores) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    names, confusion = run.class_names, scores.confusion.numpy()
    files = [folder / "evaluation.json", folder / "confusion.csv", folder / "confusion.png"]
    write_json(
        files[0],
        {"run": str(run.path), "data": spec, "part": part, **scores.to_dict(), "versions": versions()},
    )
    rows = [
        {"true class": name, **dict(zip(names, line.tolist(), strict=True))}
        for name, line in zip(names, confusion, strict=True)
    ]
    write_csv(files[1], rows)
    title = f"{run.recipe.model}: {scores.top1:.2%} of {scores.images:,} {part} images right"
    plot_confusion(files[2], confusion, names, title)
    return files
