"""The runs below a folder, with what they have reached."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lambdanets.training.data.spec import DataSpec
from lambdanets.training.runs.folder import Run
from lambdanets.training.runs.lock import is_locked
from lambdanets.training.runs.schema import (
    best_row,
    is_config,
    read_all_metrics,
    read_finished,
    read_metrics,
    read_result,
)


@dataclass(frozen=True)
class Summary:
    """One run in a line.

    Attributes:
        run: its folder.
        status: ``"finished"``, ``"running"``, ``"interrupted"``, ``"diverged"``, or ``"damaged"``.
        problem: what is damaged, "" if nothing is.
        data: what it is trained on, without the folder.
        model: its model.
        epochs: finished epochs.
        all_epochs: epochs that it is to have.
        best_epoch: the epoch of the best weights, None if none is finished.
        validation_top1: their accuracy on the validation images, 0 to 1.
        test_top1: their accuracy on the test images, None before the end and without test images.
        seconds: training time of the finished epochs, without validations.
    """

    run: Path
    status: str
    problem: str = ""
    data: str = ""
    model: str = ""
    epochs: int = 0
    all_epochs: int = 0
    best_epoch: int | None = None
    validation_top1: float | None = None
    test_top1: float | None = None
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "run": str(self.run)}


def list_runs(folder: str | Path = "runs") -> list[Summary]:
    """The runs in a folder and its subfolders, or the folder itself if it is a run.

    Args:
        folder: where to look. Default ``"runs"``.

    Returns:
        Runs on the same data side by side, the best validation accuracy first.

    Raises:
        FileNotFoundError: there is no such folder, or no run in it.
        ValueError: it is a file.
    """
    folder = Path(folder)
    if not folder.exists():
        raise FileNotFoundError(f"the folder {folder} does not exist; give a folder of runs")
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file; give a folder of runs")
    found = []
    for name, folders, files in os.walk(folder):
        if "config.json" in files and is_config(Path(name) / "config.json"):
            found.append(Path(name))
            folders.clear()
        folders[:] = sorted(name for name in folders if not name.startswith("."))
    if not found:
        raise FileNotFoundError(f"the folder {folder} holds no runs; `lambdanets train` makes them")
    summaries = [summarise(path) for path in found]
    return sorted(summaries, key=lambda one: (one.data, -(one.validation_top1 or 0.0), str(one.run)))


def summarise(path: Path) -> Summary:
    """Return what one run has reached; a damaged one is told as such."""
    try:
        run = Run.open(path)
        rows, result = finished_epochs(path), read_result(path)
        best = best_row(rows)
        return Summary(
            run=path,
            status=_status(path, result),
            data=DataSpec.parse(run.data_spec).label,
            model=run.recipe.model,
            epochs=len(rows),
            all_epochs=run.recipe.epochs,
            best_epoch=None if best is None else int(best["epoch"]),
            validation_top1=None if best is None else best["validation_top1"],
            test_top1=result["test"]["top1"] if result is not None and result["test"] is not None else None,
            seconds=sum(row["seconds"] for row in rows),
        )
    except (ValueError, OSError) as error:  # one that may not be read must not hide the others
        return Summary(path, "damaged", str(error))


def finished_epochs(path: Path) -> list[dict[str, Any]]:
    """The rows of a run's ``metrics.csv``, checked.

    Raises:
        ValueError: the file is damaged, or a finished training has fewer rows than epochs.
    """
    result = None if is_locked(path) else read_finished(path)
    file = path / "metrics.csv"
    return read_all_metrics(file) if result is None else read_metrics(file, result["epochs"])


def _status(path: Path, result: Mapping[str, Any] | None) -> str:
    if is_locked(path):
        return "running"
    if read_finished(path) is not None:
        return "finished"
    return "diverged" if result is not None and result["status"] == "diverged" else "interrupted"
