"""The split of a run: which image files it learns from, chooses by and tests with, fixed when the training begins.

``split.csv`` has a line for each image: part, class, fingerprint and the file's name relative to the data folder. The
order of the lines is the order of the images. An evaluation and a resumed training take the images from there, so an
image that is added to the folder later belongs to no part, and one that is deleted or changed is noticed. Data that are
no folders of files are split anew in the same way each time; ``config.json`` keeps a digest of each of their parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from lambdanets.files import read_rows, write_csv
from lambdanets.training.data import FileImages, ImageData, load_data
from lambdanets.training.data.folders import check_data_folder
from lambdanets.training.data.inspection import fingerprint_files
from lambdanets.training.data.listing import count, first, list_images

if TYPE_CHECKING:
    from lambdanets.training.runs.folder import Run

FILE = "split.csv"
_PARTS = ("train", "validation", "test")
_COLUMNS = ("part", "class", "fingerprint", "image")


def write_split(folder: Path, data: ImageData) -> None:
    """Writes ``split.csv`` for data in files, and nothing for other data."""
    rows = []
    for name, part in data.parts.items():
        if isinstance(part, FileImages):
            marks = part.fingerprints or fingerprint_files(part.paths)
            for label, mark, file in zip(part.labels, marks, part.names, strict=True):
                rows.append(dict(zip(_COLUMNS, (name, data.class_names[label], mark, file), strict=True)))
    if rows:
        write_csv(folder / FILE, rows)


def fingerprints(data: ImageData) -> dict[str, str]:
    """The digest of each part of data that are not in files; a stream has none."""
    return {name: part.fingerprint() for name, part in data.parts.items() if hasattr(part, "fingerprint")}


def read_split(run: Run) -> dict[str, FileImages]:
    """The images of a run by part, with their fingerprints.

    Raises:
        FileNotFoundError: the data folder does not exist.
        ValueError: the run has no stored split, or it is damaged; the message names the file, and the line.
    """
    root = Path(run.data_spec.partition(":")[2])
    file = run.path / FILE
    if not file.exists():
        raise ValueError(
            f"the run {run.path} was written before runs stored their split, so which images of {root} it was trained "
            "on is not known. Give images that it has not seen to `lambdanets evaluate --data FOLDER`, or train again."
        )
    rows = read_rows(file)
    if not rows or tuple(rows[0]) != _COLUMNS:
        raise ValueError(f"{file} is damaged: its columns are not {', '.join(_COLUMNS)}, or it has no rows")
    indices = {name: index for index, name in enumerate(run.class_names)}
    seen: set[str] = set()
    found: dict[str, tuple[list[Path], list[int], list[str]]] = {part: ([], [], []) for part in _PARTS}
    for line, row in enumerate(rows, start=2):
        name = row["image"]
        path = PurePosixPath(name)
        if row["part"] not in _PARTS:
            raise ValueError(f"{file}: part is {row['part']!r} in line {line}; use one of {', '.join(_PARTS)}")
        if row["class"] not in indices:
            raise ValueError(f"{file}: class is {row['class']!r} in line {line}, which is none of config.json")
        if not name or path.is_absolute() or ".." in path.parts or "\0" in name:
            raise ValueError(f"{file}: image is {name!r} in line {line}; use a path inside of the data folder")
        if name in seen:
            raise ValueError(f"{file}: image is {name!r} in line {line} and in one before; each has one part")
        seen.add(name)
        paths, labels, marks = found[row["part"]]
        paths.append(root / name)
        labels.append(indices[row["class"]])
        marks.append(row["fingerprint"])
    return {
        part: FileImages(paths, labels, root=root, fingerprints=marks)
        for part, (paths, labels, marks) in found.items()
        if paths
    }


def stored_data(run: Run, parts: Sequence[str] | None = None) -> ImageData:
    """The data of a run, in the parts in which it was trained.

    Args:
        run: the run.
        parts: the parts that will be used, which must be as they were. Default: all.

    Returns:
        The data; its notes say what lies in the folder and belongs to no part.

    Raises:
        FileNotFoundError: the data are gone.
        ValueError: images of these parts are gone or changed.
    """
    if not run.data_spec.startswith("imagefolder:"):
        return _same_data(run, parts)
    root = Path(run.data_spec.partition(":")[2])
    check_data_folder(root)
    split = read_split(run)
    for name, part in split.items():
        if parts is None or name in parts:
            _check_files(run, name, part)
    train, validation, test = (split.get(name) for name in _PARTS)
    notes = _outside(root, split)
    return ImageData.photographs(run.data_spec, run.class_names, train, validation, test, notes)


def _check_files(run: Run, name: str, part: FileImages) -> None:
    missing = [file for file, path in zip(part.names, part.paths, strict=True) if not path.is_file()]
    changed = []
    if not missing:
        now = fingerprint_files(part.paths)
        changed = [file for file, old, new in zip(part.names, part.fingerprints or [], now, strict=True) if old != new]
    for files, what in ((missing, "missing"), (changed, "not the file that it was")):
        if files:
            raise ValueError(
                f"{count(len(files), f'{name} image', f'{name} images')} of the run {run.path} in {part.root} "
                f"{'is' if len(files) == 1 else 'are'} {what}: {first(files)}. Put the files back; without them, "
                "`lambdanets evaluate --data FOLDER` scores other images, and `lambdanets train` begins a new run."
            )


def _outside(root: Path, split: dict[str, FileImages]) -> tuple[str, ...]:
    inside = {name for part in split.values() for name in part.names}
    names = [path.relative_to(root).as_posix() for path in list_images(root).images]
    outside = [name for name in names if name not in inside]
    if not outside:
        return ()
    what = count(len(outside), "image", "images")
    return (
        f"{what} in {root} belong to no part of this run, added since it began or left out then, and are not used: "
        f"{first(outside)}.",
    )


def _same_data(run: Run, parts: Sequence[str] | None) -> ImageData:
    recipe = run.recipe
    data = load_data(
        run.data_spec, batch_size=recipe.batch_size, seed=recipe.seed, validation_share=recipe.validation_share
    )
    run.check_classes(data.class_names, run.data_spec)
    stored = run.config["data"].get("fingerprints", {})
    for name, mark in stored.items():
        part: Any = data.parts.get(name)
        now = part.fingerprint() if hasattr(part, "fingerprint") else None
        if (parts is None or name in parts) and now != mark:
            raise ValueError(
                f"the {name} images of {run.data_spec!r} are not those that the run {run.path} was trained with "
                "(other images, labels or numbers of them). Bring the data back; without them, `lambdanets evaluate "
                "--data DATA` scores other images, and `lambdanets train` begins a new run."
            )
    return data


def seen_in_training(run: Run, images: FileImages) -> tuple[str, ...]:
    """Sentences about images that the run was trained on or chosen by, found by their content."""
    if not (run.path / FILE).exists():
        return ()
    split = read_split(run)
    notes = []
    for name, what in (("train", "trained on"), ("validation", "chosen by")):
        marks = set(split[name].fingerprints or []) if name in split else set()
        seen = [file for file, mark in zip(images.names, images.fingerprints or [], strict=True) if mark in marks]
        if seen:
            of = f"{len(seen):,} of these {len(images):,} images"
            notes.append(f"{of} are images that the run was {what}: {first(seen)}.")
    return tuple(notes)
