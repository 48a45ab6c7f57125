"""Fashion-MNIST: 70,000 greyscale photographs of clothes, 28x28 pixels, ten classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lambdanets.training.data.core import ArrayImages, ImageData, split_by_class
from lambdanets.training.data.idx import read_idx
from lambdanets.training.data.spec import DataSpec

# Where Debian's and Ubuntu's package dataset-fashion-mnist puts the files.
DEFAULT_FOLDER = Path("/usr/share/datasets/fashion-mnist")

CLASS_NAMES = (
    "T-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
_FILES = (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS)
# Where torchvision keeps the files below its root.
_SUBFOLDERS = ("", "raw", "FashionMNIST/raw")


def load_fashion_mnist(folder: Path = DEFAULT_FOLDER) -> ImageData:
    """Read the four IDX files; a twelfth of the training images, always the same, is for validation.

    Args:
        folder: holds the four files, gzipped or not. Default: where the Debian package puts them.

    Returns:
        55,000 images to train on, 5,000 for validation, and the 10,000 test images.

    Raises:
        FileNotFoundError: files are missing; the message says how to get them.
        ValueError: a file is damaged, or images and labels do not belong together.
    """
    paths = _find_files(folder)
    images, labels = _read_part(paths[TRAIN_IMAGES], paths[TRAIN_LABELS])
    test_images, test_labels = _read_part(paths[TEST_IMAGES], paths[TEST_LABELS])
    if images.shape[1:] != test_images.shape[1:]:
        raise ValueError(
            f"the images of {paths[TRAIN_IMAGES]} have {images.shape[1:]} pixels, "
            f"those of {paths[TEST_IMAGES]} {test_images.shape[1:]}; they must be alike"
        )
    train, validation = split_by_class(labels.tolist(), 1 / 12)
    return ImageData(
        spec=str(DataSpec("fashion-mnist", str(folder.resolve()))),
        class_names=CLASS_NAMES,
        train=ArrayImages(images[train], labels[train]),
        validation=ArrayImages(images[validation], labels[validation]),
        test=ArrayImages(test_images, test_labels),
        channels=1,
        image_size=images.shape[1],
        mean=(0.286,),
        std=(0.353,),
    )


def load_test_images(folder: Path = DEFAULT_FOLDER) -> ArrayImages:
    """The 10,000 test images; the files of the training images need not be there. Errors as ``load_fashion_mnist``."""
    paths = _find_files(folder, (TEST_IMAGES, TEST_LABELS))
    return ArrayImages(*_read_part(paths[TEST_IMAGES], paths[TEST_LABELS]))


def _find_files(folder: Path, names: Sequence[str] = _FILES) -> dict[str, Path]:
    best: dict[str, Path] = {}
    for subfolder in _SUBFOLDERS:
        found = {}
        for name in names:
            for candidate in (folder / subfolder / f"{name}.gz", folder / subfolder / name):
                if candidate.is_file():
                    found[name] = candidate
        if len(found) == len(names):
            return found
        best = max(best, found, key=len)
    missing = [name for name in names if name not in best]
    raise FileNotFoundError(
        f"Fashion-MNIST is not complete in {folder}: missing {', '.join(missing)} (with .gz or without). "
        "Install it with `apt-get install dataset-fashion-mnist` (Debian, Ubuntu), or download the four "
        "files from github.com/zalandoresearch/fashion-mnist into a folder and give "
        "--data fashion-mnist:FOLDER"
    )


def _read_part(images_path: Path, labels_path: Path) -> tuple[np.ndarray, np.ndarray]:
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if len(images) != len(labels):
        raise ValueError(
            f"{images_path} holds {len(images)} images, but {labels_path} holds {len(labels)} labels; "
            "they must be as many. Get both files again."
        )
    if len(images) == 0 or images.shape[1] != images.shape[2]:
        raise ValueError(f"{images_path} holds images of shape {images.shape}; it must hold square ones")
    if labels.max() >= len(CLASS_NAMES):
        position = int(np.argmax(labels >= len(CLASS_NAMES)))
        raise ValueError(
            f"label {position} in {labels_path} is {labels[position]}, but the classes are 0 to "
            f"{len(CLASS_NAMES) - 1}. Get the file again."
        )
    return images, labels
