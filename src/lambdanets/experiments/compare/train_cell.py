"""A cell that is a training: it goes on where it was stopped, and its scores are read when it is finished."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from lambdanets.console import one_line, print_whole
from lambdanets.experiments.compare.study import Place, StoppedError
from lambdanets.training import Recipe, TrainingDivergedError, resume, train
from lambdanets.training.engine.checkpoint import find_checkpoint
from lambdanets.training.runs.folder import Run
from lambdanets.training.runs.schema import read_finished, read_metrics, read_result

__all__ = ["run_bytes", "train_cell"]

# Records, pictures and logs of a run.
_FILES_BYTES = 50 << 20
# Three checkpoints at once, two that are kept and one that is being written, each with the weights, their moving
# average, two moments of the optimizer and the best weights; and three files of weights: best, last and one that is
# being written.
_COPIES = 3 * 5 + 3


def run_bytes(weights: int) -> int:
    """Return the bytes of disk that a run takes at most.

    Args:
        weights: bytes of the model's parameters.
    """
    return _FILES_BYTES + _COPIES * weights


def train_cell(recipe: Recipe, place: Place) -> dict[str, Any]:
    """Train a model, or go on where that was stopped, and return its scores.

    What cannot be gone on from, as a run that was killed before its first checkpoint was whole, one with damaged files
    or one of images that lie elsewhere now, is trained anew.

    Args:
        recipe: all choices.
        place: where the run is kept until it is finished.

    Raises:
        StoppedError: if it was stopped by a signal.
    """
    run = place.folder / "run"
    if (scores := _scores(run, place)) is not None:
        return scores
    try:
        if _goes_on(run, recipe, place):
            result = resume(run, console=place.console)
        else:
            shutil.rmtree(run, ignore_errors=True)
            result = train(recipe, output=run, console=place.console)
    except TrainingDivergedError as error:
        content = read_result(run) or {}
        return {"diverged": str(error), "validation_top1": 0.0, "device": content.get("device", "")}
    if result.stopped_by is not None:
        raise StoppedError(result.stopped_by)
    scores = _scores(run, place)
    if scores is None:
        raise ValueError(f"{run} has no result of a finished training; the same command trains it anew")
    return scores


def _scores(run: Path, place: Place) -> dict[str, Any] | None:
    """Return the scores of a finished run; None of one that is not, or whose files are damaged."""
    try:
        content = read_finished(run)
        if content is None:
            return None
        rows = read_metrics(run / "metrics.csv", content["epochs"])
    except (ValueError, FileNotFoundError) as error:
        _tell(place, error)
        return None
    return {
        "test_top1": content["test"]["top1"],
        "validation_top1": content["validation"]["top1"],
        "best_epoch": content["best_epoch"],
        "train_loss": [round(row["train_loss"], 4) for row in rows],
        "validation_by_epoch": [round(row["validation_top1"], 4) for row in rows],
        "device": content["device"],
    }


def _goes_on(run: Path, recipe: Recipe, place: Place) -> bool:
    """Return True if a run that was stopped can go on."""
    if not run.exists():
        return False
    try:
        find_checkpoint(run)
        begun = Run.open(run)
    except (ValueError, FileNotFoundError) as error:
        _tell(place, error)
        return False
    if begun.data_spec != recipe.data:
        _tell(place, f"it was begun on the images in {begun.data_spec}, and these lie in {recipe.data}")
        return False
    return True


def _tell(place: Place, why: object) -> None:
    print_whole(place.console, one_line(f"The training that was begun cannot go on: {why}. It is begun anew."))
