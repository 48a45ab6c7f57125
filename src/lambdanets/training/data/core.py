"""Images with labels, and the data set of three parts that every source gives."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch.utils.data import Dataset

from lambdanets.training.data.skipping import SkipList, read_or_next
from lambdanets.training.data.transforms import Transform, read_image

# One seed for all splits, on purpose not that of the training: the test images are the same in every run.
SPLIT_SEED = 0


class Part(Dataset[tuple[Any, int]]):
    """Images of one part of a data set, with labels; subclasses say how they are read.

    Attributes:
        streams: True if the images come one after the other, so that none can be read or selected by its index, and
            their number is one that the data announce.
        transform: applied to every image, or None.
        skips: where images are noted that cannot be read and are replaced; None: they are errors.
    """

    streams: ClassVar[bool] = False
    transform: Transform | None = None
    skips: SkipList | None = None

    @property
    def groups(self) -> Sequence[int] | None:
        """Number of images in each file that is best read as a whole, one behind the other; None without such files."""
        return None

    def read(self, index: int) -> tuple[Image.Image, int]:
        """An image as it is, before the transform, and its class index."""
        raise NotImplementedError

    def name(self, index: int) -> str:
        """The name of an image for the list of those that cannot be read."""
        return str(index)

    def select(self, indices: Sequence[int]) -> Part:
        """Some of the images, in the order of ``indices``."""
        raise NotImplementedError

    def joined(self, other: Part) -> Part | None:
        """These images and those of another part of the same data; None if they cannot be put together."""
        raise NotImplementedError

    def known_labels(self) -> Sequence[int] | None:
        """The class index of every image, below 0 for one without a label; None if images must be read for them."""
        return None

    def fingerprint(self) -> str | None:
        """A digest by which a run tells whether its images are still the same; None for files, each of which has its
        own, and for a stream.
        """
        return None

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, label = read_or_next(self.read, self.name, index, len(self), self.skips)
        return (image if self.transform is None else self.transform(image)), label


class StoredImages(Part):
    """Images whose labels are known; subclasses say how image ``index`` is made.

    Attributes:
        labels: the class index of every image.
    """

    labels: Sequence[int]

    def image(self, index: int) -> Image.Image:
        """The image as it is, before the transform."""
        raise NotImplementedError

    def read(self, index: int) -> tuple[Image.Image, int]:
        """The image as it is, before the transform, and its class index."""
        return self.image(index), int(self.labels[index])

    def known_labels(self) -> Sequence[int]:
        """The class index of every image."""
        return self.labels

    def __len__(self) -> int:
        return len(self.labels)


class ArrayImages(StoredImages):
    """Greyscale or colour images held in memory.

    Args:
        images: uint8, (images, height, width) or (images, height, width, 3).
        labels: one class index an image.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images = images
        self.labels = labels.tolist()

    def image(self, index: int) -> Image.Image:
        """The image as it is, before the transform."""
        return Image.fromarray(self.images[index])

    def select(self, indices: Sequence[int]) -> ArrayImages:
        """Some of the images, in the order of ``indices``."""
        return ArrayImages(self.images[list(indices)], np.asarray(self.labels)[list(indices)])

    def joined(self, other: Part) -> ArrayImages | None:
        """These images, then those of another part."""
        if not isinstance(other, ArrayImages):
            return None
        return ArrayImages(np.concatenate([self.images, other.images]), np.array([*self.labels, *other.labels]))

    def fingerprint(self) -> str:
        """A digest of pixels and labels, by which a run tells whether its images are still the same."""
        digest = hashlib.blake2b(np.ascontiguousarray(self.images).data, digest_size=12)
        digest.update(np.asarray(self.labels, dtype="<i8").tobytes())
        return digest.hexdigest()


class FileImages(StoredImages):
    """Images in files, read when they are needed.

    Args:
        paths: one file an image.
        labels: one class index an image.
        mode: ``"L"`` or ``"RGB"``; files are converted.
        root: the data folder, to which ``names`` are relative.
        fingerprints: one for each file, if they are known (see ``lambdanets.training.data.inspection``).
    """

    def __init__(
        self,
        paths: Sequence[Path],
        labels: Sequence[int],
        mode: str = "RGB",
        *,
        root: Path = Path(),
        fingerprints: Sequence[str] | None = None,
    ) -> None:
        self.paths = list(paths)
        self.labels = list(labels)
        self.mode = mode
        self.root = root
        self.fingerprints = fingerprints

    @property
    def names(self) -> list[str]:
        """The paths relative to the data folder, with forward slashes."""
        return [self.name(index) for index in range(len(self.paths))]

    def name(self, index: int) -> str:
        """The path of an image relative to the data folder."""
        return self.paths[index].relative_to(self.root).as_posix()

    def select(self, indices: Sequence[int]) -> FileImages:
        """Some of the images, in the order of ``indices``."""
        paths, labels = [self.paths[i] for i in indices], [self.labels[i] for i in indices]
        return FileImages(paths, labels, self.mode, root=self.root)

    def joined(self, other: Part) -> FileImages | None:
        """These images and those of another part, by the names of the files."""
        if not isinstance(other, FileImages):
            return None
        both = sorted(
            zip([*self.paths, *other.paths], [*self.labels, *other.labels], strict=True),
            key=lambda image: image[0].as_posix(),
        )
        return FileImages([path for path, _ in both], [label for _, label in both], self.mode, root=self.root)

    def image(self, index: int) -> Image.Image:
        """The decoded image; a ValueError that names the path if it cannot be read."""
        return read_image(self.paths[index], self.mode)


@dataclass(frozen=True)
class ImageData:
    """A data set in three disjoint parts.

    Attributes:
        spec: the data specification with absolute paths; ``load_data`` takes it again.
        class_names: one name a class, in the order of the class indices.
        train: images to learn from.
        validation: images by which the best weights are chosen; never test images.
        test: images used once, at the end; None where the data have no labelled ones left (as ImageNet).
        channels: 1 or 3.
        image_size: side of the images in pixels where all have one size, else None.
        mean: mean of the values scaled to 0..1, a number a channel.
        std: their standard deviation.
        notes: sentences for the user: what was left out, and what else the data's files do not show by themselves.
    """

    spec: str
    class_names: tuple[str, ...]
    train: Part
    validation: Part
    test: Part | None
    channels: int
    image_size: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def photographs(
        cls,
        spec: str,
        class_names: Sequence[str],
        train: Part,
        validation: Part,
        test: Part | None,
        notes: Sequence[str] = (),
    ) -> ImageData:
        """Colour images of any size, scaled by the mean and the deviation of ImageNet."""
        return cls(
            spec=spec,
            class_names=tuple(class_names),
            train=train,
            validation=validation,
            test=test,
            channels=3,
            image_size=None,
            mean=IMAGENET_DEFAULT_MEAN,
            std=IMAGENET_DEFAULT_STD,
            notes=tuple(notes),
        )

    @property
    def parts(self) -> dict[str, Part]:
        """The parts that there are, by name."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: part for name, part in parts.items() if part is not None}

    @property
    def held_out(self) -> tuple[str, Part]:
        """The part to evaluate on, with its name: test, or validation where there is no test."""
        return ("validation", self.validation) if self.test is None else ("test", self.test)


def split_by_class(labels: Sequence[int], *shares: float, seed: int = SPLIT_SEED) -> list[list[int]]:
    """Split indices into parts at random, every class by itself, the same way each time.

    Args:
        labels: the class of every index.
        *shares: share of each class for the second part, the third, and so on (at least one index of every
            class); the first part gets what is left.
        seed: seed of the shuffle.

    Returns:
        One sorted list of indices a part, ``len(shares) + 1`` in all.

    Raises:
        ValueError: a class has fewer indices than there are parts.
    """
    # RandomState's stream is frozen for ever, that of newer generators may change between versions of NumPy.
    random = np.random.RandomState(seed)
    array = np.asarray(labels)
    parts: list[list[int]] = [[] for _ in range(len(shares) + 1)]
    for label in np.unique(array):
        members = random.permutation(np.flatnonzero(array == label)).tolist()
        if len(members) < len(parts):
            raise ValueError(f"class {label} has {len(members)} images, too few to split into {len(parts)} parts")
        start = 0
        for part, share in zip(parts[1:], shares, strict=True):
            count = max(1, round(share * len(members)))
            part += members[start : start + count]
            start += count
        parts[0] += members[start:]
    return [sorted(part) for part in parts]
