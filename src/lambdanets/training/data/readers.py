"""Data that timm's readers take: Hugging Face data sets, torchvision's and TensorFlow ones; and WebDataset shards."""

from __future__ import annotations

import functools
import hashlib
import operator
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from timm.data import create_dataset
from torch.utils.data import IterableDataset

from lambdanets.files import read_text
from lambdanets.names import count, first_of
from lambdanets.training.data.core import SPLIT_SEED, ImageData, Part
from lambdanets.training.data.shards import CLASSES, ShardReader, find_shards
from lambdanets.training.data.spec import DataSpec
from lambdanets.training.data.transforms import convert_colours, decode_image, read_image
from lambdanets.training.rules import short, text

READERS = ("hfds", "torch", "wds", "tfds")
_VALIDATION = ("validation", "val", "valid")
_SPLITS = ("train", *_VALIDATION, "test")


class ReaderImages(Part):
    """Some images of a data set that a reader opened, in colour, with a transform of their own.

    Args:
        base: gives image and label by index, without a transform.
        indices: which of its images, in which order.
        labels_to: the model's class index for each of the data set's; None leaves labels as they are.
    """

    def __init__(self, base: Any, indices: Sequence[int], labels_to: Sequence[int] | None = None) -> None:
        self.base, self.indices, self.labels_to = base, indices, labels_to

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        """The name of an image, with the reader's name for its file if it has one."""
        place, reader = int(self.indices[index]), getattr(self.base, "reader", self.base)
        return f"{place} of {type(reader).__name__} {_file_name(reader, place)}"

    def read(self, index: int) -> tuple[Image.Image, int]:
        """An image, before the transform, and its class index."""
        place = int(self.indices[index])
        reader: Any = getattr(self.base, "reader", None)
        if hasattr(reader, "__getitem__"):
            # timm's own data set gives the next image in the place of one that it cannot decode.
            file, label = reader[place][:2]
            image = decode_image(file, functools.partial(self.name, index), "RGB")
        else:
            image, label = self.base[place]
            image = convert_colours(image, "RGB")
        return image, _label(label, self.labels_to)

    def select(self, indices: Sequence[int]) -> ReaderImages:
        """Some of the images, in the order of ``indices``."""
        return ReaderImages(self.base, [int(self.indices[index]) for index in indices], self.labels_to)

    def joined(self, other: Part) -> ReaderImages | None:
        """These images and others that the same reader opened, in its order."""
        if not isinstance(other, ReaderImages) or other.base is not self.base:
            return None
        return ReaderImages(self.base, sorted([*self.indices, *other.indices]), self.labels_to)

    @property
    def groups(self) -> list[int] | None:
        """Return the number of images in each shard, one shard behind the other; None for images without shards."""
        lengths = getattr(getattr(self.base, "reader", None), "lengths", None)
        if lengths is None:
            return None
        return np.diff(np.searchsorted(self.indices, np.cumsum([0, *lengths]))).tolist()

    def known_labels(self) -> list[int] | None:
        """The data set's own class index of every image; None if images must be read for them."""
        reader: Any = getattr(self.base, "reader", None)
        labels = _targets(self.base)
        if labels is None and hasattr(reader, "known_labels"):
            labels = reader.known_labels()
        if labels is None:
            return None
        return [_index(labels[index]) for index in self.indices]

    def fingerprint(self) -> str:
        """A digest of which images these are: of the pixels where they lie in memory, else of labels and number."""
        digest = hashlib.blake2b(np.asarray(self.indices, dtype="<i8").tobytes(), digest_size=12)
        digest.update(len(self.base).to_bytes(8, "little"))
        pixels = getattr(self.base, "data", None)
        if pixels is not None:
            digest.update(np.ascontiguousarray(pixels).data)
        reader: Any = getattr(self.base, "reader", None)
        if hasattr(reader, "fingerprint"):
            digest.update(reader.fingerprint())
        labels = _targets(self.base)
        if labels is not None:
            digest.update(np.asarray([_index(label) for label in labels], dtype="<i8").tobytes())
        return digest.hexdigest()


class StreamImages(Part, IterableDataset[tuple[Any, int]]):
    """A streamed data set that timm opened, in colour; ``transform`` and ``labels_to`` as of ``ReaderImages``.

    One process reads the whole stream, whatever the number of training processes and workers, so an epoch has each
    image once.
    """

    streams = True

    def __init__(self, base: Any) -> None:
        self.base = base
        self.labels_to: Sequence[int] | None = None
        reader: Any = getattr(base, "reader", None)
        if hasattr(reader, "dist_num_replicas"):
            reader.dist_rank, reader.dist_num_replicas = 0, 1

    def __len__(self) -> int:
        return len(self.base)

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        for image, label in self.stored():
            yield (image if self.transform is None else self.transform(image)), label

    def stored(self) -> Iterator[tuple[Image.Image, int]]:
        """The images as they are, before the transform, and their class indices."""
        for image, label in self.base:
            yield convert_colours(image, "RGB"), _label(label, self.labels_to)


def load_with_reader(spec: DataSpec) -> ImageData:
    """Open the parts of a data set that a timm reader knows.

    Where there is no validation part, a tenth of the training images, the same for the same number of images, is for
    validation.

    Args:
        spec: reader and data set, for example ``"hfds/uoft-cs/cifar10"``, and the folder of the data, or where the
            reader keeps its copy.

    Returns:
        The train and validation parts, and the test part if there is one.

    Raises:
        ValueError: a part cannot be opened, a streamed data set has no validation part, a label is no whole number, or
            neither the reader nor a file ``classes.txt`` in the folder tells the class names, each once.
    """
    name, root = spec.kind, spec.place
    _refuse_folder(name, root)
    train = _open(name, root, "train")
    parts = {part: _first(name, root, splits) for part, splits in _held_out(name).items()}
    validation, test = parts.get("validation"), parts.get("test")
    for base in (train, validation, test):
        _check_labels(spec, base)
    names = _class_names(name, root, train)
    if isinstance(train, IterableDataset) and validation is None:
        raise ValueError(
            f"the streamed data {name!r} have no validation part (tried {', '.join(_VALIDATION)}), and a "
            "stream cannot be split. Export the images into folders and give --data imagefolder:DIR."
        )
    images = _split(name, train) if validation is None else [_whole(train), _whole(validation)]
    notes = _notes(str(spec), train, validation, test)
    held_out = _whole(test)
    if isinstance(held_out, ReaderImages) and max(held_out.known_labels() or [0]) < 0:
        notes += (f"The {len(held_out):,} test images of {spec} have no labels and are not used.",)
        held_out = None
    images.append(held_out)
    for part in images:
        if part is not None:
            part.labels_to = range(len(names))
    return ImageData.photographs(str(spec), names, images[0], images[1], images[2], notes)


def _notes(spec: str, *opened: Any) -> tuple[str, ...]:
    """Sentences about what of a data set is left out, by the parts of it that were opened."""
    parts = [part for part in opened if part is not None]
    notes: tuple[str, ...] = getattr(parts[0], "notes", ())
    readers = [getattr(part, "reader", None) for part in parts]
    left_out = [name for reader in readers for name in getattr(reader, "left_out", ())]
    if left_out:
        what = count(len(left_out), "file in the shards", "files in the shards")
        notes += (f"Left out of {spec}: {what}, {first_of(left_out)}.",)
    # Hugging Face data sets know all of their splits.
    info: Any = getattr(getattr(readers[0], "dataset", None), "info", None)
    splits = getattr(info, "splits", None) or ()
    unused = [name for name in splits if name not in _SPLITS]
    if unused:
        what = count(len(unused), "split", "splits")
        notes += (f"Left out of {spec}: {what} with a name of no part, {first_of(unused)}.",)
    taken, *others = [name for name in _VALIDATION if name in splits] or [""]
    if others:
        what = count(len(others), "split", "splits")
        notes += (f"Left out of {spec}: {what} for validation beside {taken}, {first_of(others)}.",)
    return notes


def _split(name: str, base: Any) -> list[Any]:
    """A tenth of the images, always the same, taken out of those to train on."""
    if len(base) < 2:
        images = count(len(base), "image", "images")
        raise ValueError(f"the training part of {name!r} has {images}; at least 2 are needed to split it")
    order = np.random.RandomState(SPLIT_SEED).permutation(np.arange(len(base)))
    held_out, rest = np.split(order, [max(1, len(order) // 10)])
    if hasattr(getattr(base, "reader", None), "lengths"):  # shards are read one behind the other
        held_out.sort()
        rest.sort()
    return [ReaderImages(base, rest.tolist()), ReaderImages(base, held_out.tolist())]


def open_reader_exam(
    spec: DataSpec,
) -> tuple[str, ReaderImages | StreamImages, tuple[str, ...], tuple[str, ...]]:
    """Open the part of a data set that an evaluation scores: test, else validation, else train.

    Args:
        spec: as of ``load_with_reader``.

    Returns:
        The name of the part, its images, the data set's class names, and sentences about what is left out.

    Raises:
        ValueError: none of the parts can be opened, the class names are not told, or a label is no whole number.
    """
    name, root = spec.kind, spec.place
    _refuse_folder(name, root)
    held_out = _held_out(name)
    for part in ("test", "validation"):
        images = _first(name, root, held_out.get(part, ()))
        if images is not None:
            _check_labels(spec, images)
            return part, _whole(images), _class_names(name, root, images), _notes(str(spec), images)
    images = _open(name, root, "train")
    _check_labels(spec, images)
    return "train", _whole(images), _class_names(name, root, images), _notes(str(spec), images)


def _refuse_folder(name: str, root: str | None) -> None:
    if name.lower() in ("torch/folder", "torch/image_folder"):
        # timm takes the whole folder, training images included, for a part whose subfolder is missing.
        raise ValueError(f"data {name!r} is a folder of images; give --data imagefolder:{root or 'DIR'}")


def _is_torchvision(name: str) -> bool:
    return name.lower().startswith("torch/")


def _held_out(name: str) -> dict[str, tuple[str, ...]]:
    """The names that a reader may have for the parts that are not trained on."""
    if _is_torchvision(name):
        # To timm all that is not train is one part of torchvision's data sets, here kept for the test.
        return {"test": ("validation",)}
    return {"validation": _VALIDATION, "test": ("test",)}


def _whole(base: Any) -> Any:
    if base is None:
        return None
    return StreamImages(base) if isinstance(base, IterableDataset) else ReaderImages(base, range(len(base)))


def _targets(base: Any) -> Sequence[Any] | None:
    """The labels that a data set or its reader holds; a reader's are read once."""
    reader: Any = getattr(base, "reader", None)
    if not hasattr(base, "targets") and hasattr(reader, "iter_targets"):
        base.targets = list(reader.iter_targets())
    return getattr(base, "targets", None)


def _index(label: Any) -> int:
    """A label as a number; -1 for none."""
    try:
        return -1 if label is None else operator.index(label)
    except TypeError:
        raise ValueError(
            f"a label is {short(label)}, which is no single whole number; give data with classes"
        ) from None


def _check_labels(spec: DataSpec, base: Any) -> None:
    """Raise a ValueError that names the data if their labels are known, and one of them is no class index."""
    part = _whole(base)
    try:
        if part is not None:
            part.known_labels()
    except ValueError as error:
        raise ValueError(f"the data {spec} cannot be used: {error}") from error


def _label(label: Any, labels_to: Sequence[int] | None) -> int:
    index = _index(label)
    if index < 0:  # as data sets mark the images of a part whose labels are not published
        raise ValueError(f"the label of an image is {label!r}: this part of the data has no labels; give other data")
    if labels_to is not None and index >= len(labels_to):
        raise ValueError(f"the label of an image is {index}, and the data have {len(labels_to)} classes, from 0")
    return index if labels_to is None else labels_to[index]


def _file_name(reader: Any, index: int) -> str:
    try:
        return f"({reader.filename(index)})"
    # Not every reader has names, and each says so in its own way.
    except Exception:
        return ""


class _NoPartError(ValueError):
    """A part of a data set cannot be opened, most often as there is none."""


class _Shards:
    """Shards, as timm's data sets look, and sentences about what of their folder is left out."""

    def __init__(self, reader: ShardReader, notes: tuple[str, ...]) -> None:
        self.reader = reader
        self.notes = notes

    def __len__(self) -> int:
        return len(self.reader)


def _open(name: str, root: str | None, split: str) -> Any:
    if name.lower().startswith("wds/"):
        return _open_shards(name, root, split)
    try:
        # Never as timm opens data to train on, which repeats images until they divide by workers and processes.
        dataset = create_dataset(name, root=root, split=split, is_training=False)
    # Readers fail in their libraries' own ways: not installed, not found, no network, no such part.
    except Exception as error:
        why = str(error) or type(error).__name__
        raise _NoPartError(f"timm's reader cannot open part {split!r} of {name!r}: {why}") from error
    if hasattr(dataset, "loader"):  # torchvision's data sets of files
        dataset.loader = functools.partial(read_image, mode="RGB")
    return dataset


def _open_shards(name: str, root: str | None, split: str) -> _Shards:
    if root is None:
        raise ValueError(f"data {name!r} name no folder of shards; give wds/:DIR")
    folder = Path(root).expanduser()
    parts, notes = find_shards(folder)
    shards = parts.get(split, parts.get("all") if split == "train" else None)
    if shards is None:
        raise _NoPartError(f"the shards in {folder} have no part {split!r}; they have {', '.join(parts)}")
    reader = ShardReader(shards, folder)
    if not len(reader):
        raise ValueError(f"the shards of part {split!r} in {folder} hold no images")
    return _Shards(reader, notes)


def _first(name: str, root: str | None, splits: tuple[str, ...]) -> Any:
    for split in splits:
        try:
            return _open(name, root, split)
        except _NoPartError:
            # All of torchvision's data sets have both parts: one that cannot be opened is broken, and not missing.
            if _is_torchvision(name):
                raise
    return None


def _class_names(name: str, root: str | None, dataset: Any) -> tuple[str, ...]:
    by_name = getattr(getattr(dataset, "reader", dataset), "class_to_idx", None)
    if by_name:
        return tuple(str(key) for key, _ in sorted(by_name.items(), key=lambda item: item[1]))
    # WebDataset's archives hold class indices without names.
    file = Path(root or ".").expanduser() / CLASSES
    if root is not None and file.is_file():
        return _read_classes(file)
    raise ValueError(f"the data {name!r} do not tell their classes; write the names, one a line, into {file}")


def _read_classes(file: Path) -> tuple[str, ...]:
    """The names in a ``classes.txt``, one a line, each once."""
    names = read_text(file).splitlines()
    seen: set[str] = set()
    for line, name in enumerate(names, start=1):
        if not name.strip():
            raise ValueError(f"{file}: line {line} is empty; each line is the name of a class, remove it")
        if name in seen:
            raise ValueError(f"{file}: {name!r} in line {line} is in a line before too; no two classes have one name")
        seen.add(name)
        text(name, f"{file}: line {line}")
    return tuple(names)
