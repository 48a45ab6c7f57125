"""A small part of the training images held out to choose by, in place of the validation images of the data."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset

from lambdanets.training.data.core import SPLIT_SEED, ArrayImages, FileImages, ImageData, split_by_class
from lambdanets.training.data.readers import ReaderImages


def hold_out(data: ImageData, share: float) -> ImageData:
    """Hold out a share of the training images, of each class where the labels are known without reading images.

    The test images stay what they are. The data's own validation images become the test images if there are no
    others, as on ImageNet; else they belong to the training images, of which the share is taken.

    Args:
        data: training and validation images, and test images or none.
        share: of the training images, above 0.

    Returns:
        The same data in other parts, always the same for the same images.

    Raises:
        ValueError: the data are a stream, or a class has too few images.
    """
    if isinstance(data.train, IterableDataset):
        raise ValueError(
            f"validation_share is {share:g}, and the data {data.spec!r} are a stream, which cannot be split; use None"
        )
    pool, test, notes = data.train, data.test, data.notes
    if test is None:
        test = data.validation
    elif _of_one_kind(pool, data.validation):
        pool = _joined(pool, data.validation)
    else:
        notes += (f"The {len(data.validation):,} validation images of {data.spec} are not used.",)
    try:
        train, validation = (_selected(pool, part) for part in _split(pool, share))
    except ValueError as error:
        raise ValueError(f"validation_share is {share:g}, and the data {data.spec!r} are too few: {error}") from error
    return dataclasses.replace(data, train=train, validation=validation, test=test, notes=notes)


def _of_one_kind(one: Any, other: Any) -> bool:
    """True if two parts can be put together; parts that a reader opened by themselves cannot."""
    if isinstance(one, ReaderImages):
        return isinstance(other, ReaderImages) and one.base is other.base
    return type(one) is type(other) and isinstance(one, ArrayImages | FileImages)


def _joined(one: Any, other: Any) -> Any:
    if isinstance(one, ReaderImages):
        return ReaderImages(one.base, sorted([*one.indices, *other.indices]), one.labels_to)
    if isinstance(one, ArrayImages):
        labels = np.concatenate([one.labels, other.labels])
        return ArrayImages(np.concatenate([one.images, other.images]), labels)
    both = sorted(zip([*one.paths, *other.paths], [*one.labels, *other.labels], strict=True), key=_name)
    return FileImages([path for path, _ in both], [label for _, label in both], one.mode, root=one.root)


def _name(item: tuple[Any, int]) -> str:
    return item[0].as_posix()


def _split(pool: Any, share: float) -> list[list[int]]:
    labels = getattr(pool, "labels", None)
    if labels is not None:
        return split_by_class(labels, share)
    if len(pool) < 2:
        raise ValueError(f"{len(pool)} images; at least 2 are needed")
    order = np.random.RandomState(SPLIT_SEED).permutation(len(pool))
    held_out = max(1, round(share * len(pool)))
    return [sorted(order[held_out:].tolist()), sorted(order[:held_out].tolist())]


def _selected(pool: Any, indices: Sequence[int]) -> Any:
    if isinstance(pool, ReaderImages):
        return ReaderImages(pool.base, [int(pool.indices[index]) for index in indices], pool.labels_to)
    if isinstance(pool, ArrayImages):
        return ArrayImages(pool.images[list(indices)], np.asarray(pool.labels)[list(indices)])
    return pool.select(indices)
