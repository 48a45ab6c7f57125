"""The file of a split: which image files a run learns from, chooses by and tests with, fixed when the training begins.

``split.csv`` has a line for each image: part, class, fingerprint and the file's name relative to the data folder. The
order of the lines is the order of the images. An evaluation and a resumed training take the images from there, so an
image that is added to the folder later belongs to no part, and one that is deleted or changed is noticed.
``config.json`` keeps a digest of the file and the number of images of each part. Data that are no folders of files are
split anew in the same way each time; ``config.json`` keeps a digest of each of their parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lambdanets.files import digest_file, read_rows, write_csv
from lambdanets.training.data import FileImages, ImageData
from lambdanets.training.data.inspection import fingerprint_files
from lambdanets.training.data.spec import DataSpec
from lambdanets.training.rules import is_inside

FILE = "split.csv"
PARTS = ("train", "validation", "test")
_COLUMNS = ("part", "class", "fingerprint", "image")
_REMEDY = (
    "so which images the run was trained on is not known. Bring the whole file back; without it, `lambdanets evaluate "
    "--data FOLDER` scores other images, and `lambdanets train` begins a new run."
)
_CHANGED = f"it was cut off or edited, {_REMEDY}"


def write_split(folder: Path, data: ImageData) -> str | None:
    """Write ``split.csv`` for data in files, and nothing for other data; return the digest of the file, or None."""
    rows = []
    for name, part in data.parts.items():
        if isinstance(part, FileImages):
            marks = part.fingerprints or fingerprint_files(part.paths)
            for label, mark, file in zip(part.labels, marks, part.names, strict=True):
                rows.append(dict(zip(_COLUMNS, (name, data.class_names[label], mark, file), strict=True)))
    if not rows:
        return None
    write_csv(folder / FILE, rows)
    return digest_file(folder / FILE)


def fingerprints(data: ImageData) -> dict[str, str]:
    """The digest of each part of data that are not in files; a stream has none."""
    marks = {name: part.fingerprint() for name, part in data.parts.items()}
    return {name: mark for name, mark in marks.items() if mark is not None}


def read_split(folder: Path, config: Mapping[str, Any]) -> dict[str, FileImages]:
    """The images of a run by part, with their fingerprints.

    Args:
        folder: the run folder.
        config: the content of its ``config.json``.

    Raises:
        ValueError: the run has no stored split, it is damaged, or it is not what ``config.json`` says; the message
            names the file, and the line where there is one.
    """
    data = config["data"]
    root = Path(DataSpec.parse(data["spec"]).place or "")
    file = folder / FILE
    if not file.exists():
        raise ValueError(f"{file} is missing, {_REMEDY}")
    rows = read_rows(file)
    if not rows or tuple(rows[0]) != _COLUMNS:
        raise ValueError(f"{file} is damaged: its columns are not {', '.join(_COLUMNS)}, or it has no rows")
    indices = {name: index for index, name in enumerate(config["class_names"])}
    seen: set[str] = set()
    found: dict[str, tuple[list[Path], list[int], list[str]]] = {part: ([], [], []) for part in PARTS}
    for line, row in enumerate(rows, start=2):
        name = row["image"]
        if row["part"] not in PARTS:
            raise ValueError(f"{file}: part is {row['part']!r} in line {line}; use one of {', '.join(PARTS)}")
        if row["class"] not in indices:
            raise ValueError(f"{file}: class is {row['class']!r} in line {line}, which is none of config.json")
        if not is_inside(name):
            raise ValueError(f"{file}: image is {name!r} in line {line}; use a path inside of the data folder")
        if name in seen:
            raise ValueError(f"{file}: image is {name!r} in line {line} and in one before; each has one part")
        seen.add(name)
        paths, labels, marks = found[row["part"]]
        paths.append(root / name)
        labels.append(indices[row["class"]])
        marks.append(row["fingerprint"])
    counts = {part: len(paths) for part, (paths, _, _) in found.items()}
    told = data["images"]
    if counts != {part: told.get(part, 0) for part in PARTS}:
        raise ValueError(f"{file} has {_numbers(counts)} images, and config.json says {_numbers(told)}: {_CHANGED}")
    if digest_file(file) != data.get("split"):
        raise ValueError(f"{file} is not the file that the training wrote, by its digest in config.json: {_CHANGED}")
    return {
        part: FileImages(paths, labels, root=root, fingerprints=marks)
        for part, (paths, labels, marks) in found.items()
        if paths
    }


def _numbers(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{counts.get(part, 0):,} {part}" for part in PARTS)
