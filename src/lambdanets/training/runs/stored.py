"""The data of a run as they were in its training: the images of its split, or data that are split as then."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lambdanets.names import count, first_of
from lambdanets.training.data import FileImages, ImageData, load_data
from lambdanets.training.data.exam import Exam
from lambdanets.training.data.folders import check_data_folder
from lambdanets.training.data.inspection import fingerprint_files
from lambdanets.training.data.listing import list_images
from lambdanets.training.data.spec import DataSpec
from lambdanets.training.runs.folder import Run
from lambdanets.training.runs.split import FILE, PARTS, read_split


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
    spec = DataSpec.parse(run.data_spec)
    if spec.kind != "imagefolder":
        return _same_data(run, parts)
    root = Path(spec.place or "")
    check_data_folder(root)
    split = read_split(run.path, run.config)
    for name, part in split.items():
        if parts is None or name in parts:
            _check_files(run, name, part)
    for name in PARTS[:2]:
        if name not in split:
            raise ValueError(f"{run.path / FILE} has no {name} images, and a training has some; bring the file back")
    train, validation, test = split["train"], split["validation"], split.get("test")
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
                f"{'is' if len(files) == 1 else 'are'} {what}: {first_of(files)}. Put the files back; without them, "
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
            f"or left out then, and {are} not used: {first_of(outside)}."
        )
    found = set(there)
    for name, part in split.items():
        gone = [file for file in part.names if file not in found and not (root / file).is_file()]
        if gone:
            what = count(len(gone), f"{name} image of this run is", f"{name} images of this run are")
            notes.append(f"{what} no longer in {root}, and not needed here: {first_of(gone)}.")
    return tuple(notes)


def _same_data(run: Run, parts: Sequence[str] | None) -> ImageData:
    data = load_data(run.data_spec, validation_share=run.recipe.validation_share)
    run.check_classes(data.class_names, run.data_spec)
    marks, counts = (run.config["data"][key] for key in ("fingerprints", "images"))
    # With a part that the data have gained another one would be held out.
    gained = [name for name in data.parts if name not in counts]
    for name in dict.fromkeys([*marks, *counts, *gained]):
        part = data.parts.get(name)
        changed = False
        if parts is None or name in parts:
            changed = name in counts and (0 if part is None else len(part)) != counts[name]
            changed = changed or (name in marks and (None if part is None else part.fingerprint()) != marks[name])
        if changed or name in gained:
            raise ValueError(
                f"the {name} images of {run.data_spec!r} are not those that the run {run.path} was trained with "
                "(other images, labels or numbers of them). Bring the data back; without them, `lambdanets evaluate "
                "--data DATA` scores other images, and `lambdanets train` begins a new run."
            )
    return data


_ROLES = (("train", "trained on"), ("validation", "chosen by"))


def seen_in_training(run: Run, exam: Exam) -> tuple[str, ...]:
    """Sentences about images that the run was trained on or chosen by, by their content, or that this is not known.

    Files must have been inspected.
    """
    images, own = exam.images, DataSpec.parse(run.data_spec)
    if not isinstance(images, FileImages) or own.kind != "imagefolder":
        return _seen_parts(run, own, exam)
    try:
        split = read_split(run.path, run.config)
    except ValueError as error:  # other images can be scored without it
        return (f"Whether the run was trained on some of these images is not known: {error}",)
    notes = []
    for name, what in _ROLES:
        marks = set(split[name].fingerprints or []) if name in split else set()
        seen = [file for file, mark in zip(images.names, images.fingerprints or [], strict=True) if mark in marks]
        if seen:
            of = f"{len(seen):,} of these {count(len(images), 'image', 'images')}"
            are = "is an image" if len(seen) == 1 else "are images"
            notes.append(f"{of} {are} that the run was {what}: {first_of(seen)}.")
    return tuple(notes)


def _seen_parts(run: Run, own: DataSpec, exam: Exam) -> tuple[str, ...]:
    """The same where images have no fingerprints of their own: the part as a whole may be one of the run's."""
    kind = DataSpec.parse(exam.spec).kind
    mark = exam.images.fingerprint() if kind == own.kind else None
    marks = run.config["data"]["fingerprints"]
    for name, what in _ROLES:
        if mark is not None and mark == marks.get(name):
            return (f"These are the {name} images that the run was {what}.",)
    if mark is not None and mark == marks.get("test"):
        return ()
    # Shards have no name but their folder.
    if kind == own.kind and exam.part == "train" and not kind.endswith("/"):
        return (f"The train images of {kind} are scored, and the run was trained on these or some of them.",)
    which = f"the run's own data {run.data_spec}" if isinstance(exam.images, FileImages) else f"the data {exam.spec}"
    return (
        f"Whether the run was trained on some of these images is not known: {which} are no image files to compare.",
    )
