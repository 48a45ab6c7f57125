"""scikit-learn's handwritten digits: 1,797 images of 8x8 pixels, part of its installation."""

from __future__ import annotations

import numpy as np

from lambdanets.training.data.core import ArrayImages, ImageData, split_by_class


def load_digits_data() -> ImageData:
    """The digits as bright strokes on black: about 70 % to train on, 10 % for validation, 20 % to test."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    # The pixels are counts from 0 to 16.
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    parts = split_by_class(digits.target, 0.1, 0.2)
    train, validation, test = (ArrayImages(images[part], digits.target[part]) for part in parts)
    return ImageData(
        spec="digits",
        class_names=tuple(str(digit) for digit in range(10)),
        train=train,
        validation=validation,
        test=test,
        channels=1,
        image_size=8,
        mean=(0.305,),
        std=(0.376,),
    )
