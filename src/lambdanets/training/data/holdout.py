"""A small part of the training images held out to choose by, in place of the validation images of the data."""

from __future__ import annotations

import dataclasses

import numpy as np

from lambdanets.training.data.core import SPLIT_SEED, ImageData, Part, split_by_class
from lambdanets.training.rules import held_out_share


def hold_out(data: ImageData, share: float) -> ImageData:
    """Hold out a share of the training images, of each class where the labels are known without reading images.

    The test images stay what they are. The data's own validation images become the test images if there are no
    others, as on ImageNet; else they belong to the training images, of which the share is taken.

    Args:
        data: training and validation images, and test images or none.
        share: of the training images, above 0, at most a half.

    Returns:
        The same data in other parts, always the same for the same images.

    Raises:
        ValueError: the share is another number, the data are a stream, or a class has too few images.
    """
    held_out_share(share, "validation_share")
    if data.train.streams:
        raise ValueError(
            f"validation_share is {share:g}, and the data {data.spec!r} are a stream, which cannot be split; use None"
        )
    pool, test, notes = data.train, data.test, data.notes
    if test is None:
        test = data.validation
    elif (both := pool.joined(data.validation)) is not None:
        pool = both
    else:
        notes += (f"The {len(data.validation):,} validation images of {data.spec} are not used.",)
    try:
        train, validation = (pool.select(part) for part in _split(pool, share))
    except ValueError as error:
        raise ValueError(f"validation_share is {share:g}, and the data {data.spec!r} are too few: {error}") from error
    return dataclasses.replace(data, train=train, validation=validation, test=test, notes=notes)


def _split(pool: Part, share: float) -> list[list[int]]:
    labels = pool.known_labels()
    if labels is not None:
        return split_by_class(labels, share)
    if len(pool) < 2:
        raise ValueError(f"{len(pool)} images; at least 2 are needed")
    order = np.random.RandomState(SPLIT_SEED).permutation(len(pool))
    held_out = max(1, round(share * len(pool)))
    return [sorted(order[held_out:].tolist()), sorted(order[:held_out].tolist())]
