"""One's own images: a folder for each class, or such folders in train/, val/ and test/."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lambdanets.files import check_name
from lambdanets.names import count, first_of
from lambdanets.training.data.core import FileImages, ImageData, split_by_class
from lambdanets.training.data.listing import beside, class_folders, describe_skipped, image_extensions, list_images
from lambdanets.training.data.spec import DataSpec

# The names that a part's folder may have, in any case.
PART_FOLDERS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
_ARCHIVES = (".tar", ".gz", ".tgz", ".bz2", ".xz", ".zip")
LAYOUT = "A data folder holds one folder of images for each class, or such folders in train/, val/, test/"


def load_image_folder(folder: Path) -> ImageData:
    """Find the images below ``folder`` and split them where the folder does not.

    With ``train/`` and ``val/`` the folders are the split, and ``test/`` is used if it is there. With
    ``train/`` and ``test/`` a tenth of the training images is for validation. Otherwise every subfolder is a
    class: 80 % of its images to train on, 10 % for validation, 10 % to test. The same files give the same split;
    a run stores its own, so that files that come or go later do not change it.

    Args:
        folder: the data folder.

    Returns:
        Images of three channels with ImageNet's mean and deviation, decoded when they are needed. The notes count
        and name what lies in the folder and is left out.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it is empty or no folder, or a class has no images or too few to split.
    """
    check_data_folder(folder)
    return ImageData.photographs(str(DataSpec("imagefolder", str(folder.resolve()))), *_find_parts(folder))


def check_data_folder(folder: Path) -> None:
    """Raise a FileNotFoundError or ValueError if ``folder`` is no folder."""
    if not folder.exists():
        raise FileNotFoundError(f"the data folder {folder} does not exist. {LAYOUT}.")
    if not folder.is_dir():
        raise ValueError(f"the data folder {folder} is a file. {LAYOUT}.")
    check_name(folder.resolve())


def _find_parts(
    folder: Path,
) -> tuple[tuple[str, ...], FileImages, FileImages, FileImages | None, tuple[str, ...]]:
    parts = part_folders(folder)
    if "train" not in parts:
        for other in parts.values():
            raise ValueError(f"the data folder {folder} has {other.name}/ but no train/. {LAYOUT}.")
        names = _class_names(folder)
        images, skipped = read_classes(folder, names, root=folder)
        skipped += beside(folder, names)
        train, validation, test = _split(images, names, 0.1, 0.1)
        return names, train, validation, test, describe_skipped(skipped, folder)
    if len(parts) == 1:
        raise ValueError(
            f"the data folder {folder} has {parts['train'].name}/ but neither val/ nor test/. Add one, or give "
            f"{parts['train']}, which is then split."
        )
    names = _class_names(parts["train"])
    skipped = beside(folder, [path.name for path in parts.values()])
    images_of = {}
    for part, path in parts.items():
        _check_same_classes(path, names)
        images_of[part], others = read_classes(path, names, root=folder)
        skipped += others + beside(path, names)
    train = images_of["train"]
    if "validation" in images_of:
        validation = images_of["validation"]
    else:
        train, validation = _split(train, names, 0.1)
    return names, train, validation, images_of.get("test"), describe_skipped(skipped, folder)


def part_folders(folder: Path, classes: Sequence[str] = ()) -> dict[str, Path]:
    """The folders of ``folder`` that hold a part, by the part's name.

    Args:
        folder: holds them.
        classes: names of folders in it that are classes, whatever their names.

    Raises:
        ValueError: two folders mean the same part.
    """
    found: dict[str, Path] = {}
    for name in class_folders(folder):
        for part, names in PART_FOLDERS.items():
            if name.lower() in names and name not in classes:
                if part in found:
                    raise ValueError(
                        f"the data folder {folder} has both {found[part].name}/ and {name}/ for the {part} images; "
                        "keep one of them"
                    )
                found[part] = folder / name
    return found


def _class_names(folder: Path) -> tuple[str, ...]:
    names = class_folders(folder)
    if not names:
        archives = sorted(path.name for path in folder.iterdir() if path.suffix in _ARCHIVES)
        remedy = f" Unpack {first_of(archives)} into a folder and give that." if archives else ""
        raise ValueError(f"the data folder {folder} has no class folders. {LAYOUT}.{remedy}")
    return tuple(names)


def _check_same_classes(folder: Path, expected: Sequence[str]) -> None:
    found = set(_class_names(folder))
    if found != set(expected):
        extra, missing = sorted(found - set(expected)), sorted(set(expected) - found)
        raise ValueError(
            f"the classes in {folder} are not those of the training folder"
            + (f"; unknown there: {first_of(extra, 8)}" if extra else "")
            + (f"; missing: {first_of(missing, 8)}" if missing else "")
        )


def read_classes(
    folder: Path,
    names: Sequence[str],
    labels: Mapping[str, int] | None = None,
    *,
    root: Path,
    empty: bool = False,
) -> tuple[FileImages, list[Path]]:
    """The images of one part, all those in a class's folder and its subfolders.

    Args:
        folder: holds the class folders.
        names: the classes to read.
        labels: their indices. Default: as in ``names``.
        root: the data folder.
        empty: True allows classes without images.

    Returns:
        The images, and the files that are none.

    Raises:
        ValueError: a class folder holds no images; all such are named.
    """
    paths: list[Path] = []
    indices: list[int] = []
    skipped: list[Path] = []
    without = []
    for index, name in enumerate(names):
        found = list_images(folder / name)
        paths += found.files
        indices += [index if labels is None else labels[name]] * len(found.files)
        skipped += found.skipped
        if not found.files:
            without.append(folder / name)
    if without and not empty:
        some = sorted(image_extensions() & {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".webp"})
        more = f", nor do {count(len(without) - 1, 'other', 'others')}: {first_of(list(map(str, without[1:])))}"
        raise ValueError(
            f"the class folder {without[0]} holds no images ({', '.join(some)} and what else Pillow reads)"
            f"{more if len(without) > 1 else ''}. Add some, or remove the folder."
        )
    return FileImages(paths, indices, root=root), skipped


def _split(images: FileImages, names: Sequence[str], *shares: float) -> list[FileImages]:
    counts = np.bincount(images.labels, minlength=len(names)).tolist()
    fewest = min(counts)
    if fewest < len(shares) + 1:
        path = images.root / Path(images.names[images.labels.index(counts.index(fewest))]).parent
        raise ValueError(
            f"the class folder {path} holds {count(fewest, 'image', 'images')}; at least {len(shares) + 1} are needed "
            "to split them. Add some, or make train/, val/ and test/ folders."
        )
    return [images.select(part) for part in split_by_class(images.labels, *shares)]
