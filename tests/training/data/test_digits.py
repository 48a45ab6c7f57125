import hashlib

import numpy as np

from lambdanets.training.data import load_data


def test_parts_are_disjoint_and_make_up_all_digits():
    from sklearn.datasets import load_digits

    data = load_data("digits")
    sizes = [len(part) for part in (data.train, data.validation, data.test)]
    assert sum(sizes) == 1797
    assert sizes[1] == 179
    assert sizes[2] == 359
    # All digits are different images, so that parts without a common image are disjoint.
    images = [{image.tobytes() for image in part.images} for part in (data.train, data.validation, data.test)]
    assert len(images[0] | images[1] | images[2]) == len(np.unique(load_digits().data, axis=0)) == 1797


def test_every_digit_is_tested():
    data = load_data("digits")
    assert np.bincount(data.test.labels).min() >= 34


def test_test_images_never_change():
    data = load_data("digits")
    assert hashlib.sha256(data.test.images.tobytes()).hexdigest()[:16] == "b1a2b81a6c05b0f9"


def test_mean_and_deviation_are_those_of_the_training_images():
    data = load_data("digits")
    values = data.train.images / 255
    np.testing.assert_allclose((values.mean(), values.std()), (data.mean[0], data.std[0]), atol=0.003)
    assert data.train.images.max() == 255
