"""A share of the training images held out to choose by."""

import dataclasses

import pytest
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

from lambdanets.training import Recipe, Run
from lambdanets.training.data import ImageData, load_data
from lambdanets.training.data.holdout import hold_out
from lambdanets.training.data.readers import ReaderImages, StreamImages
from lambdanets.training.data.transforms import InputTransform
from lambdanets.training.runs.stored import stored_data


def write_images(folder, count):
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (3, 3), (index, ord(name), 9)).save(folder / name / f"{index}.png")


def names(data):
    return {name: set(part.names) for name, part in data.parts.items()}


def test_images_in_memory():
    before, data = load_data("digits"), load_data("digits", validation_share=0.02)
    assert data.test.fingerprint() == before.test.fingerprint()
    pool = len(before.train) + len(before.validation)
    assert len(data.train) + len(data.validation) == pool
    assert 0.01 * pool < len(data.validation) < 0.03 * pool
    assert set(data.validation.labels) == set(range(10))
    pixels = {image.tobytes() for part in (before.train, before.validation) for image in part.images}
    assert {image.tobytes() for part in (data.train, data.validation) for image in part.images} == pixels
    assert load_data("digits", validation_share=0.02).validation.fingerprint() == data.validation.fingerprint()


@pytest.mark.parametrize(("parts", "test"), [("", 4), ("train test", 40), ("train val", 40)])
def test_folders(tmp_path, parts, test):
    """Without other test images those of val/ are; else what was held out before is trained on."""
    for part in parts.split() or [""]:
        write_images(tmp_path / part, 20)
    before, data = names(load_data(str(tmp_path))), names(load_data(str(tmp_path), validation_share=0.06))
    assert (len(data["validation"]), len(data["test"])) == (2, test)
    if parts == "train val":
        assert data["test"] == before["validation"]
        assert data["train"] | data["validation"] == before["train"]
    else:
        assert data["test"] == before["test"]
        assert data["train"] | data["validation"] == before["train"] | before["validation"]
    assert not data["train"] & data["validation"]


def test_a_run_has_the_same_parts(tmp_path):
    write_images(tmp_path / "data", 20)
    for spec in ("digits", str(tmp_path / "data")):
        data = load_data(spec, validation_share=0.1)
        recipe = Recipe(name="r", model="lambda_resnet_tiny", data=spec, validation_share=0.1)
        transform = InputTransform(8, data.channels, data.mean, data.std)
        run = Run.create(tmp_path / spec.replace("/", "-"), recipe, data, transform)
        stored = stored_data(run)
        for name, part in stored.parts.items():
            assert part.labels == data.parts[name].labels


class Numbers(Dataset):
    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count


def photographs(train, validation, test):
    return ImageData.photographs("hfds/x", ("a", "b"), train, validation, test)


def test_readers():
    base, other = Numbers(100), Numbers(10)
    held = photographs(
        ReaderImages(base, range(90)), ReaderImages(base, range(90, 100)), ReaderImages(other, range(10))
    )
    data = hold_out(held, 0.05)
    assert (len(data.validation), data.notes) == (5, ())
    assert sorted([*data.train.indices, *data.validation.indices]) == list(range(100))
    # A part of its own cannot be trained on together with another.
    held = photographs(ReaderImages(base, range(100)), other, other)
    data = hold_out(held, 0.05)
    assert sorted([*data.train.indices, *data.validation.indices]) == list(range(100))
    assert data.notes == ("The 10 validation images of hfds/x are not used.",)


def test_readers_with_labels_are_split_by_class():
    base = Numbers(1000)
    base.targets = [1] * 10 + [0] * 990
    held = photographs(ReaderImages(base, range(1000)), ReaderImages(base, range(1000)), None)
    data = hold_out(dataclasses.replace(held, test=held.validation), 0.1)
    labels = data.validation.known_labels()
    assert [labels.count(label) for label in (0, 1)] == [198, 2]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(())


def test_what_cannot_be_split_is_refused(tmp_path):
    stream = StreamImages(Stream())
    with pytest.raises(ValueError, match=r"validation_share is 0\.02, and the data 'hfds/x' are a stream"):
        hold_out(photographs(stream, stream, stream), 0.02)
    write_images(tmp_path / "train", 1)
    write_images(tmp_path / "val", 2)
    with pytest.raises(ValueError, match=r"validation_share is 0\.1, .* class 0 has 1 images"):
        load_data(str(tmp_path), validation_share=0.1)
