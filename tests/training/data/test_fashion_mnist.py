import gzip
import tracemalloc

import numpy as np
import pytest

from lambdanets.training.data import fashion_mnist as module
from lambdanets.training.data import load_data
from lambdanets.training.data.idx import read_idx


@pytest.fixture
def arrays():
    random = np.random.default_rng(0)
    return {
        module.TRAIN_IMAGES: random.integers(0, 256, (240, 28, 28)),
        module.TRAIN_LABELS: np.arange(240) % 10,
        module.TEST_IMAGES: random.integers(0, 256, (30, 28, 28)),
        module.TEST_LABELS: np.arange(30) % 10,
    }


@pytest.fixture
def write_all(tmp_path, arrays, idx_bytes):
    def write_with(packed=True, folder=tmp_path, **changes):
        folder.mkdir(parents=True, exist_ok=True)
        for name, array in arrays.items():
            content = idx_bytes(changes.get(name.removesuffix("-ubyte").replace("-", "_"), array))
            if packed:
                (folder / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / name).write_bytes(content)
        return f"fashion-mnist:{tmp_path}"

    return write_with


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("shape", [(5,), (2, 3, 4), (0,)])
def test_idx_reads_what_was_written(tmp_path, idx_bytes, packed, shape):
    array = np.random.default_rng(0).integers(0, 256, shape)
    content = idx_bytes(array)
    (tmp_path / "a").write_bytes(gzip.compress(content) if packed else content)
    np.testing.assert_array_equal(read_idx(tmp_path / "a", len(shape)), array)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: b"", "0 bytes, fewer than the 16 of its header"),
        (lambda content: content[:10], "10 bytes, fewer"),
        (lambda content: b"\x89PNG" + content[4:], "begins with 89 50 4e 47, but must begin with 00 00 08 03"),
        (lambda content: content[:2] + b"\x0d" + content[3:], "begins with 00 00 0d 03"),
        (lambda content: content[:-1], r"promises 2 x 3 x 4 = 24 bytes, but 23 follow"),
        (lambda content: content + b"x", r"24 bytes, but 25 follow"),
        (lambda content: gzip.compress(content)[:-12], "gzip data do not unpack"),
        (lambda content: gzip.compress(content)[:9] + b"\xff" * 20, "gzip data do not unpack"),
    ],
)
def test_damaged_idx_is_named(tmp_path, idx_bytes, damage, message):
    path = tmp_path / "images.idx"
    path.write_bytes(damage(idx_bytes(np.zeros((2, 3, 4)))))
    with pytest.raises(ValueError, match=rf"images\.idx is damaged: .*{message}"):
        read_idx(path, 3)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("below", ["", "FashionMNIST/raw"])
def test_reads_the_four_files(tmp_path, arrays, write_all, packed, below):
    data = load_data(write_all(packed, tmp_path / below))
    assert (len(data.train), len(data.validation), len(data.test)) == (220, 20, 30)
    np.testing.assert_array_equal(data.test.images, arrays[module.TEST_IMAGES])
    assert data.test.labels == arrays[module.TEST_LABELS].tolist()
    assert (data.channels, data.image_size, data.class_names[9]) == (1, 28, "ankle boot")


def test_validation_images_are_training_images_held_back(arrays, write_all):
    data = load_data(write_all())
    parts = [{image.tobytes() for image in part.images} for part in (data.train, data.validation, data.test)]
    assert len(parts[0] | parts[1] | parts[2]) == sum(map(len, parts)) == 270
    assert parts[0] | parts[1] == {image.astype(np.uint8).tobytes() for image in arrays[module.TRAIN_IMAGES]}


def test_missing_files_say_how_to_get_them(tmp_path, write_all):
    spec = write_all()
    (tmp_path / f"{module.TEST_LABELS}.gz").unlink()
    with pytest.raises(FileNotFoundError) as error:
        load_data(spec)
    for word in (str(tmp_path), module.TEST_LABELS, "apt-get install dataset-fashion-mnist", "fashion-mnist:"):
        assert word in str(error.value)
    assert module.TEST_IMAGES not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_labels_idx1": np.arange(239) % 10}, "holds 240 images, but .* holds 239 labels"),
        ({"t10k_labels_idx1": np.arange(30) % 11}, "label 10 in .* is 10, but .* 0 to 9"),
        ({"t10k_images_idx3": np.zeros((30, 14, 14))}, r"\(28, 28\) pixels, .* \(14, 14\); they must be alike"),
        ({"train_images_idx3": np.zeros((240, 28, 14))}, "must hold square ones"),
        ({"train_images_idx3": np.zeros((0, 28, 28)), "train_labels_idx1": np.zeros(0)}, "must hold square"),
        ({"train_labels_idx1": np.zeros((240, 1, 1))}, "damaged: it begins with 00 00 08 03"),
    ],
)
def test_files_that_do_not_belong_together(write_all, changes, message):
    with pytest.raises(ValueError, match=message):
        load_data(write_all(**changes))


@pytest.mark.skipif(not module.DEFAULT_FOLDER.is_dir(), reason="the package dataset-fashion-mnist is not installed")
def test_debians_files():
    data = load_data("fashion-mnist")
    assert (len(data.train), len(data.validation), len(data.test)) == (55000, 5000, 10000)
    assert np.bincount(data.validation.labels).tolist() == [500] * 10
    values = data.train.images / 255
    np.testing.assert_allclose((values.mean(), values.std()), (data.mean[0], data.std[0]), atol=0.001)


def test_a_packed_file_does_not_fill_the_memory(tmp_path, idx_bytes):
    """More than its header promises is not unpacked."""
    bomb = gzip.compress(idx_bytes(np.zeros((2, 3, 4))) + bytes(64 << 20))
    assert len(bomb) < 100_000
    (tmp_path / "images.idx").write_bytes(bomb)
    tracemalloc.start()
    with pytest.raises(ValueError, match="25 follow or more"):
        read_idx(tmp_path / "images.idx", 3)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()
