"""Images to evaluate a model on, from any source: all that the source holds for the purpose, and nothing is split.

One rule says which images are scored:

1. a source with a test part: that part;
2. else, a source with a validation part: that part;
3. else, all images of the source; a folder that has a training part alone is refused: its name says what it is for.

A folder whose name is that of a part and of a class of the model is a part if it holds class folders, and a class if it
holds images.

Labels are matched to the model's classes by name. A source may lack classes of the model; one that has others is
refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lambdanets.names import count, did_you_mean, first_of
from lambdanets.training.data.core import ArrayImages, Part
from lambdanets.training.data.digits import load_digits_images
from lambdanets.training.data.fashion_mnist import CLASS_NAMES, DEFAULT_FOLDER, load_test_images
from lambdanets.training.data.folders import LAYOUT, PART_FOLDERS, check_data_folder, part_folders, read_classes
from lambdanets.training.data.listing import beside, class_folders, describe_skipped, image_extensions
from lambdanets.training.data.load import resolve_data
from lambdanets.training.data.readers import open_reader_exam
from lambdanets.training.data.spec import DataSpec


@dataclass(frozen=True)
class Exam:
    """Labelled images to score a model on.

    Attributes:
        spec: the data specification, with absolute paths.
        part: ``"test"``, ``"validation"``, ``"train"``, or ``"all"`` for a source without parts.
        images: the images; their labels are the model's class indices.
        notes: sentences for the user about what is left out.
    """

    spec: str
    part: str
    images: Part
    notes: tuple[str, ...] = ()


def load_exam(spec: str, class_names: Sequence[str]) -> Exam:
    """Open the images that ``spec`` offers for an evaluation.

    Args:
        spec: a data specification, see ``lambdanets.training.data``. A folder may hold class folders, or parts
            (``test/``, ``val/``) of class folders; with any number of images for each class.
        class_names: the model's classes, in the order of its outputs.

    Returns:
        The images by the rule of this module.

    Raises:
        FileNotFoundError: a folder or file is missing.
        ValueError: there are no images, or the source has a class that the model does not have.
    """
    found = resolve_data(spec)
    if found.kind == "digits":
        names, images = load_digits_images()
        return Exam(str(found), "all", _relabelled(images, names, class_names, spec))
    if found.kind == "fashion-mnist":
        folder = DEFAULT_FOLDER if found.place is None else Path(found.place).expanduser()
        images = _relabelled(load_test_images(folder), CLASS_NAMES, class_names, spec)
        return Exam(str(DataSpec(found.kind, str(folder.resolve()))), "test", images)
    if found.kind == "imagefolder":
        return _folder(Path(found.place or spec).expanduser(), class_names)
    part, read, names, notes = open_reader_exam(found)
    read.labels_to = class_indices(names, class_names, spec)
    return Exam(str(found), part, read, notes)


def class_indices(names: Sequence[str], class_names: Sequence[str], source: str) -> list[int]:
    """The model's index for each class of a source.

    Raises:
        ValueError: the model does not have a class; all such are named, with the nearest names for the first.
    """
    unknown = [name for name in names if name not in class_names]
    if unknown:
        what = f"{count(len(unknown), 'class', 'classes')} that the model does not have: {first_of(unknown, 8)}"
        hint = did_you_mean(unknown[0], class_names, f"its classes are {first_of(class_names, 8)}")
        remedy = "Rename what is misspelt, or give a model of these classes."
        raise ValueError(f"the data {source!r} have {what}; {hint} {remedy}")
    return [class_names.index(name) for name in names]


def _relabelled(images: ArrayImages, names: Sequence[str], class_names: Sequence[str], spec: str) -> ArrayImages:
    indices = class_indices(names, class_names, spec)
    images.labels = [indices[label] for label in images.labels]
    return images


def _folder(folder: Path, class_names: Sequence[str]) -> Exam:
    check_data_folder(folder)
    part, scored = _scored_folder(folder, class_names)
    names = class_folders(scored)
    skipped = beside(scored, names)
    if scored != folder:
        skipped += beside(folder, [scored.name])
    if not names:
        raise ValueError(
            f"the folder {scored} has no class folders, and without classes nothing can be scored. {LAYOUT}. "
            "`lambdanets predict` takes images without classes."
        )
    indices = class_indices(names, class_names, str(scored))
    labels = dict(zip(names, indices, strict=True))
    images, others = read_classes(scored, names, labels, root=folder, empty=True)
    if not images.paths:
        raise ValueError(f"the folder {scored} holds no images in its class folders {first_of(names, 8)}. Add some.")
    present = {class_names[label] for label in images.labels}
    missing = [name for name in class_names if name not in present]
    notes = describe_skipped(skipped + others, folder)
    if missing:
        notes += (f"No images of {count(len(missing), 'class', 'classes')} of the model: {first_of(missing, 8)}.",)
    return Exam(str(DataSpec("imagefolder", str(folder.resolve()))), part, images, notes)


def _scored_folder(folder: Path, class_names: Sequence[str]) -> tuple[str, Path]:
    """The part that is scored, and the folder that holds its class folders."""
    classes = [name for name in class_folders(folder) if name in class_names and _is_class(folder / name, class_names)]
    parts = part_folders(folder, classes)
    if not parts:
        return "all", folder
    if classes:
        raise ValueError(
            f"the folder {folder} holds parts ({first_of([path.name + '/' for path in parts.values()])}) and classes "
            f"({first_of(classes, 8)}) side by side; give the folder of those that are meant"
        )
    for part in ("test", "validation"):
        if part in parts:
            return part, parts[part]
    raise ValueError(
        f"the folder {folder} has {parts['train'].name}/ but neither test/ nor val/; give {parts['train']} to score "
        "the images in it"
    )


def _is_class(folder: Path, class_names: Sequence[str]) -> bool:
    """False for a folder that is named as a class of the model and is a part of the data nevertheless."""
    if not any(folder.name.lower() in names for names in PART_FOLDERS.values()):
        return True
    endings = image_extensions()
    images = any(path.suffix.lower() in endings and path.is_file() for path in folder.iterdir())
    inside = class_folders(folder)
    known = [name for name in inside if name in class_names]
    if bool(known) != images:
        return images
    if not inside:
        return True
    what = f"images beside the class folders {first_of(known)}" if known else f"folders of no class, {first_of(inside)}"
    raise ValueError(
        f"the folder {folder} can be a part of the data or the class {folder.name!r} of the model: it holds {what}. "
        "Let it hold class folders alone, or images alone"
    )
