"""scikit-learn's handwritten digits: 1,797 images of 8x8 pixels, part of its installation."""

from __future__ import annotations

import numpy as np

from lambdanets.training.data.core import ArrayImages, ImageData, split_by_class


def load_digits_images() -> tuple[tuple[str, ...], ArrayImages]:
    """The class names, and all digits as bright strokes on black."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    # The pixels are counts from 0 to 16.
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    return tuple(str(digit) for digit in range(10)), ArrayImages(images, digits.target)


def load_digits_data() -> ImageData:
    """The digits in three parts: about 70 % to train on, 10 % for validation, 20 % to test, always the same."""
    names, digits = load_digits_images()
    images, labels = digits.images, np.asarray(digits.labels)
    parts = split_by_class(labels.tolist(), 0.1, 0.2)
    train, validation, test = (ArrayImages(images[part], labels[part]) for part in parts)
    return ImageData(
        spec="digits",
        class_names=names,
        train=train,
        validation=validation,
        test=test,
        channels=1,
        image_size=8,
        mean=(0.305,),
        std=(0.376,),
    )
