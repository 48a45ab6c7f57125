"""The state from which a training goes on, to the step: data in a folder that is there whole or not at all.

``checkpoint/epoch-EEEEE-batch-BBBBBBB`` holds ``checkpoint.json`` (facts, and a digest of each other file), safetensors
files (see ``trees``) and the best weights until then. ``checkpoint/latest.json`` names the folder to go on from, with a
digest of its ``checkpoint.json``; it is moved only when that folder is on the disk, and only then are older folders
removed. The last two stay.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

from lambdanets.console import shell_word
from lambdanets.files import (
    digest_file,
    make_folder,
    naming_failed_writes,
    read_json,
    remove_folder,
    replacing_folder,
    write_json,
)
from lambdanets.training.engine.faults import from_weights
from lambdanets.training.engine.trees import load_tree, save_tree
from lambdanets.training.rules import Rule, entries, fields, maybe, number, text, whole
from lambdanets.training.runs.schema import CHECKPOINT

LATEST = "latest.json"
_FACTS = "checkpoint.json"
_FORMAT = 2
_KEPT = 2
_NAME = re.compile(r"epoch-(\d{5,})-batch-(\d{7,})", re.ASCII)
# What a training that was killed may leave of its own files.
_LEFT = re.compile(r"\.(best|last|metrics|curves|result|latest|skipped)\.\d+\.\w+", re.ASCII)

_finite = number(-1e300, 1e300, "use a finite number")
_DIGEST = fields({"bytes": whole(0), "digest": text})
_BEST = fields({"epoch": whole(1), "digest": maybe(text)})
_RULES: dict[str, Rule] = {
    "format": whole(_FORMAT, _FORMAT),
    "epoch": whole(0),
    "batch": whole(0),
    "batches": whole(1),
    "processes": whole(1),
    "seconds": _finite,
    "waited": _finite,
    "rows": text,
    "best": maybe(_BEST),
    "scaler": maybe(entries(_finite)),
    "config": text,
    "versions": entries(lambda value, name: None if value == "" else text(value, name)),
    "device": text,
    "files": entries(_DIGEST),
}
_POINTER = fields({"checkpoint": text, "digest": text})


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found whole.

    Attributes:
        folder: where it lies.
        facts: the content of ``checkpoint.json``.
    """

    folder: Path
    facts: Mapping[str, Any]

    @property
    def epoch(self) -> int:
        """Epochs that were finished."""
        return self.facts["epoch"]

    @property
    def batch(self) -> int:
        """Batches of the epoch after them that were done."""
        return self.facts["batch"]

    def part(self, name: str) -> Any:
        """The tree that was saved under that name.

        Raises:
            ValueError: the checkpoint has none.
        """
        if f"{name}.safetensors" not in self.facts["files"]:
            raise ValueError(f"the checkpoint {self.folder} has no {name}.safetensors")
        return load_tree(self.folder / f"{name}.safetensors")


def save_checkpoint(run: Path, facts: Mapping[str, Any], parts: Mapping[str, Any], best: Path | None = None) -> None:
    """Write a checkpoint, make it the latest, and remove all but the last two; one process calls it.

    Args:
        run: the run folder.
        facts: the position (``epoch``, ``batch``) and other plain values.
        parts: trees of tensors and plain values by name.
        best: the file of the best weights so far, which is kept too: one goes on from an earlier checkpoint, and a
            later epoch has replaced it. Default: there is none.

    Raises:
        OSError: the machine refused; the checkpoint before is still the latest.
    """
    parent = run / CHECKPOINT
    make_folder(parent)
    final = parent / f"epoch-{facts['epoch']:05d}-batch-{facts['batch']:07d}"
    if final.exists():
        if (parent / LATEST).exists() and read_json(parent / LATEST)["checkpoint"] == final.name:
            return  # no step was taken since
        remove_folder(final)
    with naming_failed_writes(final), replacing_folder(final) as folder:
        files = {}
        for name, tree in parts.items():
            file = folder / f"{name}.safetensors"
            save_tree(file, tree)
            files[file.name] = _fingerprint(file)
        if best is not None:
            shutil.copyfile(best, folder / best.name)
            files[best.name] = _fingerprint(folder / best.name)
        content = {"format": _FORMAT, **facts, "files": files}
        (folder / _FACTS).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    _point(final)
    for older in list_checkpoints(run)[:-_KEPT]:
        remove_folder(older)


def _fingerprint(file: Path) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, "digest": digest_file(file)}


def _point(folder: Path) -> None:
    write_json(folder.parent / LATEST, {"checkpoint": folder.name, "digest": digest_file(folder / _FACTS)})


def list_checkpoints(run: Path) -> list[Path]:
    """The folders of a run's checkpoints, the earliest first."""
    places = {path: _place(path.name) for path in (run / CHECKPOINT).glob("epoch-*") if path.is_dir()}
    return [path for path, place in sorted(places.items(), key=itemgetter(1)) if place]


def _place(name: str) -> tuple[int, ...]:
    """Epoch and batch in the name of a checkpoint's folder; () if it is no such name."""
    match = _NAME.fullmatch(name)
    return tuple(map(int, match.groups())) if match else ()


def split_checkpoint(path: Path) -> tuple[Path, Path | None]:
    """The run folder and, if ``path`` is one of its checkpoints, that checkpoint."""
    if path.parent.name == CHECKPOINT and _place(path.name):
        return path.parent.parent, path
    return path, None


def find_checkpoint(run: Path, chosen: Path | None = None) -> Checkpoint:
    """The latest checkpoint of a run, or a chosen one; all its files are read and compared with their digests.

    Raises:
        FileNotFoundError: the run has no checkpoint.
        ValueError: a file is missing, cut or changed; the message names it.
    """
    parent = run / CHECKPOINT
    digest = None
    if chosen is None and not (parent / LATEST).exists():
        raise _without_latest(run)
    try:
        if chosen is None:
            pointer = _checked(parent / LATEST, _POINTER)
            if not _place(pointer["checkpoint"]):
                raise ValueError(f"{parent / LATEST}: checkpoint is {pointer['checkpoint']!r}, which is none")
            chosen, digest = parent / pointer["checkpoint"], pointer["digest"]
        return _whole_checkpoint(chosen, digest)
    except (ValueError, FileNotFoundError) as error:
        found = list_checkpoints(run)
        others = found[: found.index(chosen)] if chosen in found else found
        remedy = f"`lambdanets train --resume {shell_word(others[-1])}` goes on from another one" if others else ""
        raise ValueError(f"{error}. The training cannot go on from it; {remedy or 'bring the file back'}.") from error


def _without_latest(run: Path) -> Exception:
    parent = run / CHECKPOINT
    found = list_checkpoints(run)
    if found:
        return ValueError(
            f"{parent / LATEST}, which names the checkpoint to go on from, is missing; "
            f"`lambdanets train --resume {shell_word(found[-1])}` goes on from the last one there is"
        )
    if (run / "best.safetensors").exists():  # "last" is there before the first step
        return ValueError(
            f"{parent}, which a training goes on from, is missing in the run {run}; bring the folder back. Evaluate, "
            f"predict and export take the run as it is, and a new training begins from its weights by "
            f"{from_weights(run)}."
        )
    return FileNotFoundError(
        f"the run {run} was stopped before its first checkpoint, so nothing was trained and there is nothing to go on "
        "from; remove the folder and train anew"
    )


def _whole_checkpoint(folder: Path, digest: str | None) -> Checkpoint:
    file = folder / _FACTS
    if digest is not None and file.is_file() and digest_file(file) != digest:
        raise ValueError(f"{file} is not the file that was written (its digest differs)")
    facts = _checked(file, fields(_RULES))
    for name, expected in facts["files"].items():
        path = folder / name
        if path.parent != folder or not path.is_file():
            raise ValueError(f"{path} is missing")
        size = path.stat().st_size
        if size != expected["bytes"]:
            raise ValueError(f"{path} has {size:,} bytes, and {expected['bytes']:,} were written")
        if digest_file(path) != expected["digest"]:
            raise ValueError(f"{path} is not the file that was written (its digest differs)")
    found = (facts["epoch"], facts["batch"])
    if _place(folder.name) != found:
        raise ValueError(f"{file} is of epoch {found[0]}, batch {found[1]}, which is not what the folder's name says")
    return Checkpoint(folder, facts)


def _checked(file: Path, rule: Rule) -> dict[str, Any]:
    content = read_json(file)
    try:
        rule(content, "")
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    return content


def keep_only_until(run: Path, checkpoint: Checkpoint) -> None:
    """Make a checkpoint the latest, and remove later ones and what a killed training left half written."""
    parent = run / CHECKPOINT
    _point(checkpoint.folder)
    found = list_checkpoints(run)
    for later in found[found.index(checkpoint.folder) + 1 :]:
        remove_folder(later)
    for path in [*parent.iterdir(), *run.iterdir()]:
        if path.name.startswith((".epoch-", f".{CHECKPOINT}.")):
            shutil.rmtree(path, ignore_errors=True)
    for path in [*run.iterdir(), *parent.iterdir()]:
        if _LEFT.fullmatch(path.name):
            path.unlink()


def remove_checkpoints(run: Path) -> None:
    """Remove what a finished training needs no more."""
    if (run / CHECKPOINT).is_dir():
        remove_folder(run / CHECKPOINT)
