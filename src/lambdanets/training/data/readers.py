"""Data that timm's readers take: Hugging Face data sets, torchvision's, WebDataset and TensorFlow ones."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from timm.data import create_dataset
from torch.utils.data import Dataset, IterableDataset

from lambdanets.training.data.core import SPLIT_SEED, ImageData
from lambdanets.training.data.transforms import Transform, convert_colours, decode_image

READERS = ("hfds", "torch", "wds", "tfds")
_VALIDATION = ("validation", "val", "valid")


class ReaderImages(Dataset[tuple[Any, int]]):
    """Some images of a data set that timm opened, in colour, with a transform of their own.

    Args:
        base: gives image and label by index, without a transform.
        indices: which of its images, in which order.

    Attributes:
        labels_to: the model's class index for each of the data set's; None leaves labels as they are.
    """

    def __init__(self, base: Any, indices: Sequence[int]) -> None:
        self.base = base
        self.indices = indices
        self.transform: Transform | None = None
        self.labels_to: Sequence[int] | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, label = self._read(int(self.indices[index]))
        label = _label(label, self.labels_to)
        return (image if self.transform is None else self.transform(image)), label

    def _read(self, index: int) -> tuple[Any, Any]:
        reader: Any = getattr(self.base, "reader", None)
        if not hasattr(reader, "__getitem__"):
            image, label = self.base[index]
            return convert_colours(image, "RGB"), label
        # timm's own data set gives the next image in the place of one that it cannot decode.
        file, label = reader[index][:2]
        return decode_image(file, f"{index} of {type(reader).__name__} {_file_name(reader, index)}", "RGB"), label

    def fingerprint(self) -> str:
        """A digest of which images these are: of the pixels where they lie in memory, else of labels and number."""
        digest = hashlib.blake2b(np.asarray(self.indices, dtype="<i8").tobytes(), digest_size=12)
        digest.update(len(self.base).to_bytes(8, "little"))
        pixels = getattr(self.base, "data", None)
        if pixels is not None:
            digest.update(np.ascontiguousarray(pixels).data)
        reader: Any = getattr(self.base, "reader", None)
        labels = getattr(self.base, "targets", None)
        if labels is None and hasattr(reader, "iter_targets"):
            labels = list(reader.iter_targets())
        if labels is not None:
            digest.update(np.asarray(labels, dtype="<i8").tobytes())
        return digest.hexdigest()


class StreamImages(IterableDataset[tuple[Any, int]]):
    """A streamed data set that timm opened, in colour, with a transform of its own; attributes as of ReaderImages."""

    def __init__(self, base: Any) -> None:
        self.base = base
        self.transform: Transform | None = None
        self.labels_to: Sequence[int] | None = None

    def __len__(self) -> int:
        return len(self.base)

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        for image, label in self.base:
            image = convert_colours(image, "RGB")
            yield (image if self.transform is None else self.transform(image)), _label(label, self.labels_to)

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch on which the order depends."""
        self.base.set_epoch(epoch)

    def set_loader_cfg(self, num_workers: int | None = None) -> None:
        """Tells the reader how many processes read."""
        self.base.set_loader_cfg(num_workers=num_workers)


def load_with_reader(name: str, root: str | None, batch_size: int, seed: int) -> ImageData:
    """Opens the parts of a data set that a timm reader knows.

    Where there is no validation part, a tenth of the training images, the same for the same number of images, is for
    validation.

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
    _refuse_folder(name, root)
    train = _open(name, root, "train", batch_size, seed)
    parts = {part: _first(name, root, splits, batch_size, seed) for part, splits in _held_out(name).items()}
    validation, test = parts.get("validation"), parts.get("test")
    names = _class_names(name, root, train)
    spec = name if root is None else f"{name}:{root}"
    if isinstance(train, IterableDataset):
        if validation is None:
            raise ValueError(
                f"the streamed data {name!r} have no validation part (tried {', '.join(_VALIDATION)}), and a "
                "stream cannot be split. Export the images into folders and give --data imagefolder:DIR."
            )
        return ImageData.photographs(spec, names, *(_whole(part) for part in (train, validation, test)))
    if validation is None and len(train) < 2:
        raise ValueError(f"the training part of {name!r} has {len(train)} images; at least 2 are needed to split it")
    order = np.arange(len(train))
    if validation is None:
        order = np.random.RandomState(SPLIT_SEED).permutation(order)
        held_out, order = np.split(order, [max(1, len(order) // 10)])
        validation = ReaderImages(train, held_out.tolist())
    else:
        validation = _whole(validation)
    return ImageData.photographs(spec, names, ReaderImages(train, order.tolist()), validation, _whole(test))


def open_reader_exam(name: str, root: str | None, batch_size: int) -> tuple[str, Any, tuple[str, ...]]:
    """Opens the part of a data set that an evaluation scores: test, else validation, else train.

    Args:
        name: reader and data set.
        root: folder of the data, or where the reader keeps its copy.
        batch_size: images a step, a hint to streaming readers.

    Returns:
        The name of the part, its images, and the data set's class names.

    Raises:
        ValueError: none of the parts can be opened, or the class names are not told.
    """
    _refuse_folder(name, root)
    held_out = _held_out(name)
    for part in ("test", "validation"):
        images = _first(name, root, held_out.get(part, ()), batch_size, 0)
        if images is not None:
            return part, _whole(images), _class_names(name, root, images)
    images = _open(name, root, "train", batch_size, 0)
    return "train", _whole(images), _class_names(name, root, images)


def _refuse_folder(name: str, root: str | None) -> None:
    if name.lower() in ("torch/folder", "torch/image_folder"):
        # timm takes the whole folder, training images included, for a part whose subfolder is missing.
        raise ValueError(f"data {name!r} is a folder of images; give --data imagefolder:{root or 'DIR'}")


def _held_out(name: str) -> dict[str, tuple[str, ...]]:
    """The names that a reader may have for the parts that are not trained on."""
    if name.lower().startswith("torch/"):
        # To timm all that is not train is one part of torchvision's data sets, here kept for the test.
        return {"test": ("validation",)}
    return {"validation": _VALIDATION, "test": ("test",)}


def _whole(base: Any) -> Any:
    if base is None:
        return None
    return StreamImages(base) if isinstance(base, IterableDataset) else ReaderImages(base, range(len(base)))


def _label(label: Any, labels_to: Sequence[int] | None) -> int:
    index = -1 if label is None else int(label)
    if index < 0:  # as data sets mark the images of a part whose labels are not published
        raise ValueError(f"the label of an image is {label!r}: this part of the data has no labels; give other data")
    return index if labels_to is None else labels_to[index]


def _file_name(reader: Any, index: int) -> str:
    try:
        return f"({reader.filename(index)})"
    # Not every reader has names, and each says so in its own way.
    except Exception:
        return ""


def _open(name: str, root: str | None, split: str, batch_size: int, seed: int) -> Any:
    # WebDataset's images come as they are stored, so that all readers' pixels are converted by one rule.
    mode: dict[str, Any] = {"input_img_mode": ""} if name.lower().startswith("wds/") else {}
    try:
        return create_dataset(
            name, root=root, split=split, is_training=split == "train", batch_size=batch_size, seed=seed, **mode
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
