"""A cell of a study: one configuration and seed, and its result as a file named by what it depends on."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lambdanets.files import make_folder, read_json, write_json
from lambdanets.provenance import package_version

__all__ = [
    "Cell",
    "Config",
    "Done",
    "OtherFormatError",
    "Wanted",
    "best_rate",
    "cell_file",
    "cell_key",
    "coherent",
    "label",
    "read_cell",
    "read_cells",
    "study_version",
    "write_cell",
]

FORMAT = 2
_FIELDS = {"format", "key", "config", "data", "version", "result", "environment", "seconds", "digest"}

Config = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Cell:
    """One unit of work of a study.

    Args:
        config: all that the result depends on beside the data and the version, as values of JSON. It has ``study``,
            ``kind``, ``row`` and ``scale`` ("quick" or "full"), and ``seed`` where there is one.
        after: cells that run before, from whose results the configuration is completed.
        complete: takes ``config`` and the cells of ``after`` that were run; returns the whole configuration. Default:
            ``config`` is whole.
        weight: time that it takes, in the unit of the other cells of its study. Default 1.
        alone: True if nothing else may run beside it, as where it measures time. Default False.
    """

    config: Config
    after: tuple[Cell, ...] = ()
    complete: Callable[[Config, Sequence[Done]], Config] | None = None
    weight: float = 1.0
    alone: bool = False


def label(config: Config) -> str:
    """Return a name of a configuration for messages."""
    seed = f", seed {config['seed']}" if "seed" in config else ""
    rate = f", learning rate {config['lr']:g}" if "lr" in config else ""
    return f"{config['kind']} of {config['row']}{seed}{rate}"


@dataclass(frozen=True)
class Done:
    """The result of a cell.

    Args:
        config: its configuration.
        data: specification and fingerprint of the data, {} without data.
        version: of this package and of the study.
        result: what came out.
        environment: machine, versions, date.
        seconds: time it took.
    """

    config: Config
    data: Mapping[str, Any]
    version: Mapping[str, Any]
    result: Mapping[str, Any]
    environment: Mapping[str, Any]
    seconds: float

    @property
    def row(self) -> str:
        """The row of the study's table that it belongs to."""
        return self.config["row"]

    @property
    def kind(self) -> str:
        """Name of what was done: "train", "search", "speed", "memory" and others."""
        return self.config["kind"]


class OtherFormatError(ValueError):
    """The file of a cell has a format that this version does not read, and may be whole."""


def study_version(number: int) -> dict[str, Any]:
    """Return the version that a cell depends on: this package's, and the study's own number."""
    return {"lambdanets": package_version("lambdanets"), "study": number}


def cell_key(config: Config, fingerprint: str, version: Mapping[str, Any]) -> str:
    """Return the name of a cell's file: a digest of its configuration, the data's fingerprint and the version."""
    return _digest({"config": config, "data": fingerprint, "version": version})


def _digest(content: Mapping[str, Any]) -> str:
    """Return a digest of values of JSON."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=10).hexdigest()


def cell_file(folder: Path, key: str) -> Path:
    """Return where the cell with a key is kept in the folder of a study."""
    return folder / "cells" / f"{key}.json"


def write_cell(folder: Path, key: str, done: Done) -> None:
    """Write a cell, whole or not at all, with a digest of its content.

    Raises:
        TypeError: if the result holds what JSON has no value for.
        ValueError: if it holds NaN or infinity.
    """
    file = cell_file(folder, key)
    # As it will be read: JSON turns tuples into lists, and numbers that are keys of objects into text.
    content = json.loads(json.dumps({"format": FORMAT, "key": key, **vars(done)}))
    digest = _digest(content)
    make_folder(file.parent)
    write_json(file, {**content, "digest": digest})


def read_cell(file: Path) -> Done:
    """Read a cell.

    Raises:
        FileNotFoundError: if there is no such file.
        OtherFormatError: if another version wrote it, in another format.
        ValueError: if it is damaged: not what was written, or not what its name says.
    """
    content = read_json(file)
    if isinstance(content, dict) and content.get("format", FORMAT) != FORMAT:
        raise OtherFormatError(
            f"{file} has the format {content['format']!r} of a cell, and this version reads {FORMAT}; move the file "
            "away to have its cell run again, or use the version that wrote it"
        )
    if not isinstance(content, dict) or set(content) != _FIELDS:
        raise ValueError(f"{file} is damaged: a cell has the fields {', '.join(sorted(_FIELDS))}")
    for name in ("config", "data", "version", "result", "environment"):
        if not isinstance(content[name], dict):
            raise ValueError(f"{file} is damaged: {name} is no object")
    seconds = content["seconds"]
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not math.isfinite(seconds):
        raise ValueError(f"{file} is damaged: seconds is {seconds!r}, which is no number")
    try:
        key = cell_key(content["config"], content["data"].get("fingerprint", ""), content["version"])
        digest = _digest({name: content[name] for name in _FIELDS - {"digest"}})
    except ValueError as error:  # 1e999 is read as infinity
        raise ValueError(f"{file} is damaged: {error}") from error
    if not content["key"] == key == file.stem:
        raise ValueError(f"{file} is damaged: its content belongs to {key}.json")
    if content["digest"] != digest:
        raise ValueError(f"{file} is damaged: its content is not what was written, by its digest")
    return Done(**{name: content[name] for name in _FIELDS - {"format", "key", "digest"}})


def read_cells(folder: Path) -> tuple[list[Done], list[str]]:
    """Read all cells in the folder of a study.

    Returns:
        The cells, in the order of their files' names, and a message for each file that is damaged.
    """
    cells, damaged = [], []
    for file in sorted((folder / "cells").glob("[!.]*.json")):
        try:
            cells.append(read_cell(file))
        except ValueError as error:
            damaged.append(str(error))
    return cells, damaged


def best_rate(searches: Sequence[Done]) -> float:
    """Return the learning rate with the best mean validation accuracy over the seeds of a search, within its error.

    Few validation images do not tell rates apart, and a row would be judged by the luck of its rate. So of the rates
    whose accuracy is at most one standard error below the best, √(p (1 - p) / images), the one nearest to the middle of
    all that were tried is taken; of two as near the better one, of equals the lower. Breiman et al. 1984, section
    3.4.3, take the simplest model within one standard error; no rate is simpler than another. A rate whose training
    diverged counts with an accuracy of 0.
    """
    scores: dict[float, list[float]] = {}
    for done in searches:
        scores.setdefault(done.config["lr"], []).append(done.result["validation_top1"])
    mean = {rate: statistics.fmean(scores[rate]) for rate in sorted(scores)}
    best = max(mean.values())
    least = best - math.sqrt(best * (1 - best) / searches[0].data["images"][1])
    middle = (len(mean) - 1) / 2
    near = [(abs(place - middle), -mean[rate], rate) for place, rate in enumerate(mean) if mean[rate] >= least]
    return min(near)[-1]


@dataclass(frozen=True)
class Wanted:
    """Properties that the cells of a report shall have: a scale, a fingerprint of the data, epochs; None for any."""

    scale: str | None = None
    fingerprint: str | None = None
    epochs: int | None = None

    def has(self, done: Done) -> bool:
        """Return True if a cell may be in the report."""
        return (
            self.scale in (None, done.config["scale"])
            and self.fingerprint in (None, done.data.get("fingerprint", ""))
            and self.epochs in (None, done.config.get("epochs", self.epochs))
        )


def coherent(
    cells: Sequence[Done], like: Sequence[Done] = (), wanted: Wanted | None = None
) -> tuple[list[Done], list[Done]]:
    """Part cells into those that may stand in one report, and the others.

    They are of one scale, one data set, one version, as long trainings, and a row's are with one learning rate, that of
    the best search: a search among other rates may leave trainings with another one.

    Args:
        cells: of a study.
        like: the report is of their kind. Default: of the kind of which there are most.
        wanted: what else they shall have. Default: nothing.

    Returns:
        Those of the report, and the others.
    """

    def kind(done: Done) -> str:
        depends_on = (done.config["scale"], done.data.get("fingerprint", ""), done.version)
        return json.dumps(depends_on, sort_keys=True)

    def most(found: Sequence[Any]) -> Any:
        return max(sorted(set(found)), key=found.count, default=None)

    allowed = [done for done in cells if wanted is None or wanted.has(done)]
    kinds = most([kind(done) for done in like or allowed])
    own = [done for done in allowed if kind(done) == kinds]
    # Data that a study brings itself are a part of the configuration.
    brought: dict[str | None, list[str | None]] = {}
    for done in like or own:
        brought.setdefault(done.config.get("data"), []).append(done.config.get("fingerprint"))
    usual = {name: most(found) for name, found in brought.items()}
    own = [done for done in own if done.config.get("fingerprint") == usual.get(done.config.get("data"))]
    told = [done for done in like or own if "epochs" in done.config]
    # Before the first training those of the searches.
    epochs = most([done.config["epochs"] for done in [one for one in told if one.kind == "train"] or told])
    own = [done for done in own if done.config.get("epochs", epochs) == epochs]
    trained = [done for done in own if done.kind == "train"]
    rates = _rates(trained, own) | {done.config["row"]: done.config.get("lr") for done in like if done.kind == "train"}
    others = {id(done) for done in trained if done.config.get("lr") != rates.get(done.row, done.config.get("lr"))}
    chosen = [done for done in own if id(done) not in others]
    left = {id(done) for done in cells} - {id(done) for done in chosen}
    return chosen, [done for done in cells if id(done) in left]


def _rates(trained: Sequence[Done], cells: Sequence[Done]) -> dict[str, float]:
    """The rate of each row: of its search, or the best of those that it was trained with while that one is missing."""
    tried = {(done.config["row"], done.config.get("lr")) for done in trained}
    searches: dict[str, list[Done]] = {}
    for done in cells:
        if done.kind == "search" and "lr" in done.config:
            searches.setdefault(done.config["row"], []).append(done)
    rates = {}
    for row, found in searches.items():
        own = [done for done in found if (row, done.config["lr"]) in tried]
        if own:
            rate = best_rate(found)
            rates[row] = rate if (row, rate) in tried else best_rate(own)
    return rates
