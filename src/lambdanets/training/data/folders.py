"""One's own images: a folder for each class, or such folders in train/, val/ and test/."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from timm.data.readers.img_extensions import get_img_extensions
from timm.data.readers.reader_image_folder import ReaderImageFolder

from lambdanets.training.data.core import FileImages, ImageData, split_by_class

_TRAIN = ("train", "training")
_VALIDATION = ("val", "valid", "validation")
_TEST = ("test", "testing")
_LAYOUT = "A data folder holds one folder of images for each class, or such folders in train/, val/, test/"


def load_image_folder(folder: Path) -> ImageData:
    """Finds the images below ``folder`` and splits them where the folder does not.

    With ``train/`` and ``val/`` the folders are the split, and ``test/`` is used if it is there. With
    ``train/`` and ``test/`` a tenth of the training images, always the same, is for validation. Otherwise
    every subfolder is a class: 80 % of its images to train on, 10 % for validation, 10 % to test, always the
    same.

    Args:
        folder: the data folder.

    Returns:
        Images of three channels with ImageNet's mean and deviation. They are decoded when they are needed.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it is empty or no folder, or a class has no images or too few to split.
    """
    if not folder.exists():
        raise FileNotFoundError(f"the data folder {folder} does not exist. {_LAYOUT}.")
    if not folder.is_dir():
        raise ValueError(f"the data folder {folder} is a file. {_LAYOUT}.")
    return ImageData.photographs(f"imagefolder:{folder.resolve()}", *_find_parts(folder))


def _find_parts(folder: Path) -> tuple[tuple[str, ...], FileImages, FileImages, FileImages | None]:
    train_folder = _subfolder(folder, _TRAIN)
    validation_folder = _subfolder(folder, _VALIDATION)
    test_folder = _subfolder(folder, _TEST)
    if train_folder is None:
        for other in (validation_folder, test_folder):
            if other is not None:
                raise ValueError(f"the data folder {folder} has {other.name}/ but no train/. {_LAYOUT}.")
        names, images = _read_classes(folder)
        train, validation, test = _split(images, names, 0.1, 0.1)
        return names, train, validation, test
    if validation_folder is None and test_folder is None:
        raise ValueError(
            f"the data folder {folder} has {train_folder.name}/ but neither val/ nor test/. Add one, or give "
            f"{train_folder}, which is then split."
        )
    names, train = _read_classes(train_folder)
    test_images = None if test_folder is None else _read_classes(test_folder, names)[1]
    if validation_folder is None:
        train, validation = _split(train, names, 0.1)
    else:
        validation = _read_classes(validation_folder, names)[1]
    return names, train, validation, test_images


def _subfolder(folder: Path, names: Sequence[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_dir()), None)


def _read_classes(folder: Path, expected: Sequence[str] | None = None) -> tuple[tuple[str, ...], FileImages]:
    """The classes and images of one part, by timm's reader; every subfolder must be a class with images."""
    class_folders = {path.name for path in folder.iterdir() if path.is_dir() and path.name[0] not in "._"}
    if not class_folders:
        raise ValueError(f"the data folder {folder} has no class folders. {_LAYOUT}.")
    if expected is not None and class_folders != set(expected):
        extra, missing = sorted(class_folders - set(expected)), sorted(set(expected) - class_folders)
        raise ValueError(
            f"the classes in {folder} are not those of the training folder"
            + (f"; unknown there: {', '.join(extra[:8])}" if extra else "")
            + (f"; missing: {', '.join(missing[:8])}" if missing else "")
        )
    labels: list[int] = []
    paths: list[Path] = []
    names = tuple(sorted(class_folders)) if expected is None else tuple(expected)
    for label, name in enumerate(names):
        found = _images_below(folder / name)
        paths += found
        labels += [label] * len(found)
    return names, FileImages(paths, labels)


def _images_below(folder: Path) -> list[Path]:
    """All images in a class folder and its subfolders, in a fixed order."""
    try:
        return [Path(path) for path, _ in ReaderImageFolder(str(folder)).samples]
    except RuntimeError as error:  # what timm raises when there are none
        endings = ", ".join(get_img_extensions())
        raise ValueError(
            f"the class folder {folder} holds no images ({endings}). Add some, or remove the folder."
        ) from error


def _split(images: FileImages, names: Sequence[str], *shares: float) -> list[FileImages]:
    counts = [images.labels.count(label) for label in range(len(names))]
    fewest = min(counts)
    if fewest < len(shares) + 1:
        path = images.paths[images.labels.index(counts.index(fewest))].parent
        raise ValueError(
            f"the class folder {path} holds {fewest} images; at least {len(shares) + 1} are needed to split "
            "them. Add some, or make train/, val/ and test/ folders."
        )
    parts = split_by_class(images.labels, *shares)
    return [
        FileImages([images.paths[i] for i in part], [images.labels[i] for i in part], images.mode) for part in parts
    ]
