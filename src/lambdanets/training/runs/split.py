"""The split of a run: which image files it learns from, chooses by and tests with, fixed when the training begins.

``split.csv`` has a line for each image: part, class, fingerprint and the file's name relative to the data folder. The
order of the lines is the order of the images. An evaluation and a resumed training take the images from there, so an
image that is added to the folder later belongs to no part, and one that is deleted or changed is noticed.
``config.json`` keeps a digest of the file and the number of images of each part. Data that are no folders of files are
split anew in the same way each time; ``config.json`` keeps a digest of each of their parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from lambdanets.files import digest_file, read_rows, write_csv
from lambdanets.training.data import FileImages, ImageData, load_data
from lambdanets.training.data.folders import check_data_folder
from lambdanets.training.data.inspection import fingerprint_files
from lambdanets.training.data.listing import count, first, list_images

if TYPE_CHECKING:
    from lambdanets.training.runs.folder import Run

FILE = "split.csv"
_PARTS = ("train", "validation", "test")
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
    return {name: part.fingerprint() for name, part in data.parts.items() if hasattr(part, "fingerprint")}


def read_split(run: Run) -> dict[str, FileImages]:
    """The images of a run by part, with their fingerprints.

    Raises:
        FileNotFoundError: the data folder does not exist.
        ValueError: the run has no stored split, it is damaged, or it is not what ``config.json`` says; the message
            names the file, and the line where there is one.
    """
    root = Path(run.data_spec.partition(":")[2])
    file = run.path / FILE
    # Runs of earlier versions have no digest.
    digest = run.config["data"].get("split")
    if not file.exists() and digest is not None:
        raise ValueError(f"{file} is missing, {_REMEDY}")
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
    counts = {part: len(paths) for part, (paths, _, _) in found.items()}
    told = run.config["data"].get("images")
    if told is not None and counts != {part: told.get(part, 0) for part in _PARTS}:
        raise ValueError(f"{file} has {_numbers(counts)} images, and config.json says {_numbers(told)}: {_CHANGED}")
    if digest is not None and digest_file(file) != digest:
        raise ValueError(f"{file} is not the file that the training wrote, by its digest in config.json: {_CHANGED}")
    return {
        part: FileImages(paths, labels, root=root, fingerprints=marks)
        for part, (paths, labels, marks) in found.items()
        if paths
    }


def _numbers(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{counts.get(part, 0):,} {part}" for part in _PARTS)


def stored_data(run: Run, parts: Sequence[str] | None = None) -> ImageData:
    """The data of a run, in the parts in which it was trained.

    Args:
        run: the run.
        parts: the parts that will be used, which must be as they were. Default: all.

    Returns:
        The data; its notes say what lies in the folder and belongs to no part, and which images of other parts are
        gone.

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
    notes = _differences(root, split)
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


def _differences(root: Path, split: dict[str, FileImages]) -> tuple[str, ...]:
    """Sentences about images that lie in the folder and in no part, and about those of a part that are gone."""
    inside = {name for part in split.values() for name in part.names}
    there = [path.relative_to(root).as_posix() for path in list_images(root).files]
    notes = []
    outside = [name for name in there if name not in inside]
    if outside:
        belong, are = ("belongs", "is") if len(outside) == 1 else ("belong", "are")
        notes.append(
            f"{count(len(outside), 'image', 'images')} in {root} {belong} to no part of this run, added since it began "
            f"or left out then, and {are} not used: {first(outside)}."
        )
    found = set(there)
    for name, part in split.items():
        gone = [file for file in part.names if file not in found and not (root / file).is_file()]
        if gone:
            what = count(len(gone), f"{name} image of this run is", f"{name} images of this run are")
            notes.append(f"{what} no longer in {root}, and not needed here: {first(gone)}.")
    return tuple(notes)


def _same_data(run: Run, parts: Sequence[str] | None) -> ImageData:
    recipe = run.recipe
    data = load_data(
        run.data_spec, batch_size=recipe.batch_size, seed=recipe.seed, validation_share=recipe.validation_share
    )
    run.check_classes(data.class_names, run.data_spec)
    marks, counts = (run.config["data"].get(key, {}) for key in ("fingerprints", "images"))
    # With a part that the data have gained another one would be held out.
    gained = [name for name in data.parts if counts and name not in counts]
    for name in dict.fromkeys([*marks, *counts, *gained]):
        part: Any = data.parts.get(name)
        now = part.fingerprint() if hasattr(part, "fingerprint") else None
        changed = name in marks and now != marks[name]
        changed |= name in counts and (0 if part is None else len(part)) != counts[name]
        if name in gained or (changed and (parts is None or name in parts)):
            raise ValueError(
                f"the {name} images of {run.data_spec!r} are not those that the run {run.path} was trained with "
                "(other images, labels or numbers of them). Bring the data back; without them, `lambdanets evaluate "
                "--data DATA` scores other images, and `lambdanets train` begins a new run."
            )
    return data


def seen_in_training(run: Run, images: FileImages) -> tuple[str, ...]:
    """Sentences about images that the run was trained on or chosen by, found by their content."""
    if not (run.path / FILE).exists() and "split" not in run.config["data"]:
        return ()
    try:
        split = read_split(run)
    except ValueError as error:  # other images can be scored without it
        return (f"Whether the run was trained on some of these images is not known: {error}",)
    notes = []
    for name, what in (("train", "trained on"), ("validation", "chosen by")):
        marks = set(split[name].fingerprints or []) if name in split else set()
        seen = [file for file, mark in zip(images.names, images.fingerprints or [], strict=True) if mark in marks]
        if seen:
            of = f"{len(seen):,} of these {count(len(images), 'image', 'images')}"
            are = "is an image" if len(seen) == 1 else "are images"
            notes.append(f"{of} {are} that the run was {what}: {first(seen)}.")
    return tuple(notes)
