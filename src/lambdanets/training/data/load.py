"""From the word after ``--data`` to images."""

from __future__ import annotations

import re
from pathlib import Path

from lambdanets.names import unknown_name
from lambdanets.training.data.core import ImageData
from lambdanets.training.data.digits import load_digits_data
from lambdanets.training.data.fashion_mnist import DEFAULT_FOLDER, load_fashion_mnist
from lambdanets.training.data.folders import load_image_folder
from lambdanets.training.data.holdout import hold_out
from lambdanets.training.data.readers import READERS, load_with_reader
from lambdanets.training.data.spec import DataSpec
from lambdanets.training.rules import local

NAMES = ("digits", "fashion-mnist", "imagefolder")
_DATA_NAME = re.compile(r"[\w./-]*", re.ASCII)


def resolve_data(spec: str) -> DataSpec:
    """Find out what a data specification means, and check what can be checked without opening anything.

    Args:
        spec: see ``lambdanets.training.data``. A path to something that exists is an image folder.

    Returns:
        Its kind and its place, of a reader as a whole path; the place is None where none is given.

    Raises:
        FileNotFoundError: it looks like a path, and nothing is there.
        ValueError: it is empty, or no known name; the message shows the nearest.
    """
    if not spec:  # a path would mean the folder one is in
        raise ValueError("data '' name nothing; give a name or a folder of images")
    given = DataSpec.parse(spec)
    kind, place = given.kind, given.place or None
    if kind in NAMES or kind.partition("/")[0].lower() in READERS:
        if kind not in NAMES and place is not None and place.startswith("//"):
            raise ValueError(f"data {spec!r} are an address, which is not opened; download them, and give the folder")
        if kind == "imagefolder" and place is None:
            raise ValueError(f"data {spec!r} names no folder; give imagefolder:DIR")
        if kind == "digits" and given.place is not None:
            raise ValueError(f"data {spec!r}: digits come with scikit-learn and take no folder; give 'digits'")
        if kind not in NAMES:
            check_reader_name(kind, place)
            # A run is read from other folders too.
            place = None if place is None else str(Path(place).expanduser().resolve())
        return DataSpec(kind, place)
    if Path(spec).expanduser().exists():
        return DataSpec("imagefolder", spec)
    if "/" in spec or "\\" in spec or spec.startswith((".", "~")):
        raise FileNotFoundError(f"the data folder {spec} does not exist")
    raise unknown_name("data", spec, NAMES, "A folder of images can be given by its path.")


def check_reader_name(kind: str, root: str | None) -> None:
    """Raise a ValueError if a reader's data name or root is a command or an address, which readers would open."""
    if not _DATA_NAME.fullmatch(kind):
        raise ValueError(
            f"data {kind!r} is no name of a data set; use READER/NAME of letters, digits, '-', '_', '.', '/'"
        )
    if root is not None:
        local(root, f"the root of data {kind!r}")


def recipe_for_data(spec: str) -> str:
    """The name of the recipe that suits the data when none is asked for."""
    kind = resolve_data(spec).kind
    return kind if kind in ("digits", "fashion-mnist") else "image-folder"


def load_data(spec: str, *, validation_share: float | None = None) -> ImageData:
    """Open the data that ``spec`` names and check what can be checked before any work.

    Args:
        spec: a data specification, see ``lambdanets.training.data``.
        validation_share: share of the training images to hold out, see ``lambdanets.training.data.holdout``; None
            for the data's own validation images.

    Returns:
        Train, validation and test images.

    Raises:
        FileNotFoundError: a folder or file is missing.
        ValueError: the specification is unknown, an argument is out of its range, or the data are empty or damaged.
    """
    data = _load(spec)
    return data if validation_share is None else hold_out(data, validation_share)


def _load(spec: str) -> ImageData:
    found = resolve_data(spec)
    if found.kind == "digits":
        return load_digits_data()
    if found.kind == "fashion-mnist":
        return load_fashion_mnist(DEFAULT_FOLDER if found.place is None else Path(found.place).expanduser())
    if found.kind == "imagefolder":
        return load_image_folder(Path(found.place or spec).expanduser())
    return load_with_reader(found)
