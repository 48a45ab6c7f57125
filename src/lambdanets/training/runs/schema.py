"""The files of a run folder as input: each is checked whole when it is read, against what a training writes.

``CONFIG`` describes ``config.json``, ``RESULT`` describes ``result.json``. The recipe and the input transform check
themselves, by the rules that stand beside their fields. A run folder may come from a stranger, so it can name neither
commands nor addresses nor weights: the data it names are of this machine or a data set's name, its model is of timm's
registry, and none of the model's arguments names a file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import timm

from lambdanets.files import read_csv, read_json
from lambdanets.names import count
from lambdanets.training.data.load import resolve_data
from lambdanets.training.data.readers import READERS
from lambdanets.training.data.spec import DataSpec
from lambdanets.training.data.transforms import InputTransform
from lambdanets.training.recipes.recipe import MAX_SEED, PRECISIONS, Recipe
from lambdanets.training.rules import (
    Rule,
    class_names,
    entries,
    fields,
    maybe,
    model_arguments,
    number,
    one_of,
    refuse,
    short,
    text,
    whole,
)

FORMAT = 1
# The folder of what an interrupted training continues from; a finished one removes it.
CHECKPOINT = "checkpoint"
METRICS = (
    "epoch",
    "train_loss",
    "train_top1",
    "learning_rate",
    "gradient_norm",
    "images_per_second",
    "seconds",
    "validation_loss",
    "validation_top1",
    "validation_top5",
    "waiting_share",
    "memory_gib",
)


def _registered(value: object, name: str) -> None:
    text(value, name)
    if not timm.is_model(str(value)):
        raise refuse(value, name, "use a name of timm's registry; lambdanets models lists the LambdaResNets")


def _version(value: object, name: str) -> None:
    if value != "":  # the commit of a package that is installed and no clone
        text(value, name)


def _data(value: object, name: str) -> None:
    text(value, name)
    spec = DataSpec.parse(str(value))
    remedy = "a run has digits, fashion-mnist:FOLDER, imagefolder:FOLDER or READER/NAME[:ROOT], of this machine"
    if spec.kind in ("fashion-mnist", "imagefolder"):
        place = spec.place or ""
        if not (PurePosixPath(place).is_absolute() or PureWindowsPath(place).is_absolute()):
            raise refuse(value, name, f"{remedy}, with a whole path")
        return
    if spec != DataSpec("digits") and spec.kind.partition("/")[0].lower() not in READERS:
        raise refuse(value, name, remedy)
    try:
        resolve_data(str(spec))
    except (ValueError, OSError) as error:
        raise refuse(value, name, f"{remedy} ({error})") from error


def _recipe(value: object, name: str) -> None:
    _made(Recipe.from_dict, value, name)


def _transform(value: object, name: str) -> None:
    _made(InputTransform.from_dict, value, name)


def _made(make: Any, value: object, name: str) -> None:
    if not isinstance(value, Mapping):
        raise refuse(value, name, "use an object with its fields")
    try:
        make(value)
    except ValueError as error:
        raise ValueError(f"{name}.{error}") from error


_COUNTS = fields(
    {"train": whole(0), "validation": whole(0), "test": whole(0)}, optional=("train", "validation", "test")
)
_MARKS = fields({"train": text, "validation": text, "test": text}, optional=("train", "validation", "test"))
CONFIG: dict[str, Rule] = {
    "format": whole(FORMAT, FORMAT),
    "model": fields({"name": _registered, "kwargs": model_arguments, "weights": text}, optional=("weights",)),
    "data": fields(
        {"spec": _data, "images": _COUNTS, "fingerprints": _MARKS, "split": text},
        optional=("split",),
    ),
    "input": _transform,
    "class_names": class_names,
    "recipe": _recipe,
    "seed": whole(0, MAX_SEED),
    "versions": entries(_version),
}
_OPTIONAL = ("seed", "versions")
STATUS = ("finished", "interrupted", "diverged")
_finite = number(-1e300, 1e300, "a training writes finite numbers")
_SCORES = {**dict.fromkeys(("top1", "top5"), number(0, 1, "use a share from 0 to 1")), "loss": _finite}
RESULT: dict[str, Rule] = {
    "status": one_of(STATUS),
    "epochs": whole(0),
    "best_epoch": maybe(whole(1)),
    "validation": maybe(fields(_SCORES)),
    "test": maybe(fields({**_SCORES, "images": whole(1)})),
    "seconds": number(0, 1e300, "use a number of seconds"),
    "parameters": whole(0),
    "device": text,
    "processes": whole(1),
    "threads": whole(1),
    "precision": one_of(PRECISIONS),
    "versions": entries(_version),
}
_ADVICE = "Give a folder that `lambdanets train` wrote"


def is_config(file: Path) -> bool:
    """True if a ``config.json`` is a run's, damaged or not; False for one of other programs, as of timm's models."""
    try:
        config = read_json(file)
    except ValueError:
        return True
    return not isinstance(config, dict) or "recipe" in config or "format" in config


def read_config(file: Path) -> dict[str, Any]:
    """The content of a run's ``config.json``.

    Raises:
        ValueError: the file is damaged, or not what a training writes; the message names file, field and value.
    """
    try:
        config = read_json(file)
    except ValueError as error:
        raise ValueError(f"{error}. {_ADVICE}.") from error
    needed = [key for key in CONFIG if key not in _OPTIONAL]
    missing = [key for key in needed if not isinstance(config, dict) or key not in config]
    if missing:
        raise ValueError(f"{file} is not a run's configuration: {', '.join(missing)} missing. {_ADVICE}.")
    found = config["format"]
    if found != FORMAT or isinstance(found, bool):
        raise ValueError(f"{file} has format {short(found)}; this version of lambdanets reads format {FORMAT}")
    try:
        fields(CONFIG, optional=_OPTIONAL)(config, "")
    except ValueError as error:
        stop = "" if str(error).endswith("?") else "."
        raise ValueError(f"{file}: {error}{stop} {_ADVICE}.") from error
    return config


def read_result(run: Path) -> dict[str, Any] | None:
    """The content of a run's ``result.json``; None while there is none.

    Raises:
        ValueError: the file is damaged, or not what a training writes; the message names file, field and value.
    """
    file = run / "result.json"
    if not file.exists():
        return None
    result = read_json(file)
    try:
        fields(RESULT)(result, "")
    except ValueError as error:
        raise ValueError(f"{file}: {error}. Bring back the file that the training wrote") from error
    return result


def read_finished(run: Path) -> dict[str, Any] | None:
    """The content of the ``result.json`` of a finished training; None of one that is not.

    One that was killed at its end has its checkpoint beside the result, and continues from it.

    Raises:
        ValueError: as of ``read_result``.
    """
    result = None if (run / CHECKPOINT).is_dir() else read_result(run)
    return result if result is not None and result["status"] == "finished" else None


def best_row(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The row of the highest validation accuracy, of equals that with the lowest loss; None if there are none.

    With a few validation images many epochs are equal, and the earliest of them is far from trained.
    """
    return max(rows, key=lambda row: (row["validation_top1"], -row["validation_loss"]), default=None)


def read_metrics(file: Path, epochs: int) -> list[dict[str, Any]]:
    """The first ``epochs`` rows of a run's ``metrics.csv``; errors as of ``read_all_metrics``, and for fewer rows."""
    rows = read_all_metrics(file)[:epochs]
    if len(rows) < epochs:
        finished = count(epochs, "epoch", "epochs")
        raise ValueError(
            f"{file} has {count(len(rows), 'row', 'rows')}, and this run has finished {finished}; bring the whole file "
            "back"
        )
    return rows


def read_all_metrics(file: Path) -> list[dict[str, Any]]:
    """The rows of a run's ``metrics.csv``; none if it is not there.

    Raises:
        ValueError: the file is damaged, or its rows are not those that a training writes.
    """
    rows: list[dict[str, Any]] = list(read_csv(file))
    # A training that is resumed before its first epoch ends has written an empty file.
    if not rows and file.exists() and file.stat().st_size:
        raise ValueError(f"{file} is damaged: it has no rows")
    for epoch, row in enumerate(rows, start=1):
        if tuple(row) != METRICS:
            raise ValueError(f"{file} has the columns {', '.join(map(str, row))}, not {', '.join(METRICS)}")
        if row["epoch"] != epoch:
            raise ValueError(f"{file}: epoch is {row['epoch']} in row {epoch}; the rows are those of epochs 1, 2, ...")
        for name, value in row.items():
            try:
                _finite(value, name)
            except ValueError as error:
                raise ValueError(f"{file}: {error} (row {epoch})") from error
    return rows
