import numpy as np
import pytest
from PIL import Image

from lambdanets.training.data import ArrayImages, FileImages, split_by_class

LABELS = [0] * 50 + [1] * 30 + [2] * 3


def test_parts_are_disjoint_and_complete():
    parts = split_by_class(LABELS, 0.1, 0.2)
    assert sorted(index for part in parts for index in part) == list(range(len(LABELS)))


def test_every_class_is_in_every_part_by_its_share():
    counts = [np.bincount(np.array(LABELS)[part]).tolist() for part in split_by_class(LABELS, 0.1, 0.2)]
    assert counts == [[35, 21, 1], [5, 3, 1], [10, 6, 1]]


def test_split_is_random_yet_always_the_same():
    first = split_by_class(LABELS, 0.1)
    assert first == split_by_class(LABELS, 0.1)
    assert first != split_by_class(LABELS, 0.1, seed=1)
    # Pinned: other indices here would silently move test images into the training of earlier runs.
    assert first[1] == [2, 10, 11, 28, 41, 73, 75, 76, 81]


def test_class_too_small_to_split():
    with pytest.raises(ValueError, match="class 2 has 3 images, too few to split into 4 parts"):
        split_by_class(LABELS, 0.1, 0.1, 0.1)


def test_array_images():
    images = ArrayImages(np.arange(24, dtype=np.uint8).reshape(2, 3, 4), np.array([5, 6]))
    image, label = images[1]
    assert (len(images), label, np.asarray(image).tolist()[0]) == (2, 6, [12, 13, 14, 15])
    images.transform = lambda image: image.size
    assert images[0] == ((4, 3), 5)


def test_file_images_convert_and_name_what_they_cannot_read(tmp_path):
    Image.new("RGB", (2, 2), (255, 255, 255)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"?")
    images = FileImages([tmp_path / "good.png", tmp_path / "bad.png"], [0, 1], mode="L")
    assert images[0][0].mode == "L"
    with pytest.raises(ValueError, match=r"bad\.png cannot be read"):
        images[1]
