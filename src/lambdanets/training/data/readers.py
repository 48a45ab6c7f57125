"""Data that timm's readers take: Hugging Face data sets, torchvision's, WebDataset and TensorFlow ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from timm.data import create_dataset
from torch.utils.data import Dataset, IterableDataset

from lambdanets.training.data.core import SPLIT_SEED, ImageData
from lambdanets.training.data.transforms import Transform, convert_colours

READERS = ("hfds", "torch", "wds", "tfds")
_VALIDATION = ("validation", "val", "valid")


class ReaderImages(Dataset[tuple[Any, int]]):
    """Some images of a data set that timm opened, in colour, with a transform of their own.

    Args:
        base: gives image and label by index, without a transform.
        indices: which of its images, in which order.
    """

    def __init__(self, base: Any, indices: Sequence[int]) -> None:
        self.base = base
        self.indices = indices
        self.transform: Transform | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, label = self.base[int(self.indices[index])]
        image = convert_colours(image, "RGB")
        return (image if self.transform is None else self.transform(image)), int(label)


def load_with_reader(name: str, root: str | None, batch_size: int, seed: int) -> ImageData:
    """Opens the parts of a data set that a timm reader knows.

    Where there is no validation part, a tenth of the training images, always the same, is for validation.

    Args:
        name: reader and data set, for example ``"hfds/uoft-cs/cifar10"``.
        root: folder of the data, or where the reader keeps its copy.
        batch_size: images a step, a hint to streaming readers.
        seed: seed of streaming readers' shuffle.

    Returns:
        The train and validation parts, and the test part if there is one.

    Raises:
        ValueError: a part cannot be opened, a streamed data set has no validation part, or neither the
            reader nor a file ``classes.txt`` in ``root`` tells the class names.
    """
    if name.lower() in ("torch/folder", "torch/image_folder"):
        # timm takes the whole folder, training images included, for a part whose subfolder is missing.
        raise ValueError(f"data {name!r} is a folder of images; give --data imagefolder:{root or 'DIR'}")
    train = _open(name, root, "train", batch_size, seed)
    # To timm all that is not train is one part of torchvision's data sets, here kept for the test.
    by_torchvision = name.lower().startswith("torch/")
    validation = None if by_torchvision else _first(name, root, _VALIDATION, batch_size, seed)
    test = _first(name, root, ("validation",) if by_torchvision else ("test",), batch_size, seed)
    names = _class_names(name, root, train)
    if isinstance(train, IterableDataset):
        if validation is None:
            raise ValueError(
                f"the streamed data {name!r} have no validation part (tried {', '.join(_VALIDATION)}), and a "
                "stream cannot be split. Export the images into folders and give --data imagefolder:DIR."
            )
    else:
        order = np.arange(len(train))
        if validation is None:
            order = np.random.RandomState(SPLIT_SEED).permutation(order)
            held_out, order = np.split(order, [max(1, len(order) // 10)])
            validation = ReaderImages(train, held_out.tolist())
        else:
            validation = ReaderImages(validation, range(len(validation)))
        train = ReaderImages(train, order.tolist())
        test = None if test is None else ReaderImages(test, range(len(test)))
    return ImageData.photographs(name if root is None else f"{name}:{root}", names, train, validation, test)


def _open(name: str, root: str | None, split: str, batch_size: int, seed: int) -> Any:
    try:
        return create_dataset(
            name, root=root, split=split, is_training=split == "train", batch_size=batch_size, seed=seed
        )
    # Readers fail in their libraries' own ways: not installed, not found, no network, no such part.
    except Exception as error:
        raise ValueError(f"timm's reader cannot open part {split!r} of {name!r}: {error}") from error


def _first(name: str, root: str | None, splits: tuple[str, ...], batch_size: int, seed: int) -> Any:
    for split in splits:
        try:
            return _open(name, root, split, batch_size, seed)
        except ValueError:
            continue
    return None


def _class_names(name: str, root: str | None, dataset: Any) -> tuple[str, ...]:
    by_name = getattr(getattr(dataset, "reader", dataset), "class_to_idx", None)
    if by_name:
        return tuple(str(key) for key, _ in sorted(by_name.items(), key=lambda item: item[1]))
    # WebDataset's archives hold class indices without names.
    file = Path(root or ".") / "classes.txt"
    if root is not None and file.is_file():
        return tuple(file.read_text(encoding="utf-8").splitlines())
    raise ValueError(f"timm's reader does not tell the classes of {name!r}; write their names, one a line, into {file}")
