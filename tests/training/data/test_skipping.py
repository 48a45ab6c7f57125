"""Unreadable images are errors, or replaced by the next ones: the same every time, and listed."""

import dataclasses
import json
import shutil
import signal

import numpy as np
import pytest
from PIL import Image

from lambdanets.files import read_rows
from lambdanets.training import evaluate_run, resume, train
from lambdanets.training.data import FileImages, inspection, load_data
from lambdanets.training.data.readers import StreamImages
from lambdanets.training.data.skipping import SkipList, check_skipping
from lambdanets.training.data.transforms import UnreadableImageError
from lambdanets.training.display.progress import TrainingProgress
from lambdanets.training.engine.loop import Trainer
from lambdanets.training.engine.start import inspect_data
from lambdanets.training.runs.split import read_split


@pytest.fixture
def images(tmp_path):
    """Six images of brightness 0, 10, ..., of which 1, 2 and 5 are damaged."""
    for index in range(6):
        Image.new("L", (2, 2), 10 * index).save(tmp_path / f"{index}.png")
    for index in (1, 2, 5):
        path = tmp_path / f"{index}.png"
        path.write_bytes(path.read_bytes()[:40])
    return FileImages([tmp_path / f"{index}.png" for index in range(6)], list(range(6)), "L", root=tmp_path)


def read(images):
    return [(int(np.asarray(image)[0, 0]), label) for image, label in (images[index] for index in range(len(images)))]


def test_the_next_one_stands_in_with_its_label(images, tmp_path):
    images.skips = SkipList(tmp_path, 3)
    expected = [(0, 0), (30, 3), (30, 3), (30, 3), (40, 4), (0, 0)]
    assert read(images) == expected
    rows = read_rows(tmp_path / "skipped.csv")
    assert [(row["image"], row["replaced_by"]) for row in rows] == [
        ("1.png", "3.png"),
        ("2.png", "3.png"),
        ("5.png", "0.png"),
    ]
    assert all("cannot be read" in row["reason"] for row in rows)
    images.skips = SkipList(tmp_path, 3)
    assert read(images) == expected
    assert len(read_rows(tmp_path / "skipped.csv")) == 3


def test_too_many(images, tmp_path):
    with pytest.raises(UnreadableImageError, match=r"1\.png cannot be read"):
        images[1]
    for most, message in (
        (1, r"1\.png cannot be read.*Nor can the 1 after it, and 1 may"),
        (2, r"5\.png.*one more than"),
    ):
        images.skips = SkipList(tmp_path, most)
        with pytest.raises(UnreadableImageError, match=message):
            read(images)
    images.skips = SkipList(tmp_path, 2, writable=False)  # counts on from the list
    with pytest.raises(UnreadableImageError, match=r"5\.png"):
        images[5]


def test_what_the_machine_refuses_is_not_skipped(images, tmp_path, monkeypatch):
    images.skips = SkipList(tmp_path, 9)

    def refuse(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(ValueError, match="Input/output error") as error:
        images[0]
    assert not isinstance(error.value, UnreadableImageError)
    monkeypatch.undo()
    (tmp_path / "0.png").unlink()
    with pytest.raises(FileNotFoundError, match="does not exist"):
        images[0]


def test_streams_are_refused():
    data = dataclasses.replace(load_data("digits"), train=StreamImages(None))
    check_skipping(data, 0)
    with pytest.raises(ValueError, match="skip_bad_images is 1, and the data 'digits' are a stream"):
        check_skipping(data, 1)


BAD = ["blue/019.png", "green/011.png", "red/003.png", "red/004.png"]


@pytest.fixture
def damaged(colours, tmp_path):
    """Class folders in which four images are cut off, in all parts of the split."""
    data = shutil.copytree(colours, tmp_path / "data")
    for name in BAD:
        (data / name).write_bytes((data / name).read_bytes()[:60])
    return data


def test_what_is_found_before_the_training(damaged):
    _, (note,) = inspect_data(load_data(str(damaged)), 4)
    assert note.startswith("4 images cannot be read and are replaced by the next one that can: ")
    assert note.endswith("All are listed in skipped.csv.")
    with pytest.raises(ValueError, match=r"cannot be read: .*; nor can 3 others: .*; skip_bad_images allows 3"):
        inspect_data(load_data(str(damaged)), 3)


def test_what_is_found_before_the_training_is_listed_before_it(recipe, damaged, tmp_path, monkeypatch):
    """An epoch need not meet each image, and the test images are read at the end."""

    def stop(self):
        raise InterruptedError

    monkeypatch.setattr(Trainer, "start", stop)
    with pytest.raises(InterruptedError):
        train(recipe.override(data=str(damaged), skip_bad_images=4), output=tmp_path / "run")
    rows = read_rows(tmp_path / "run" / "skipped.csv")
    assert sorted(row["image"] for row in rows) == BAD
    assert all("cannot be read" in row["reason"] and row["replaced_by"] not in BAD for row in rows)


def test_a_training_that_skips(recipe, damaged, tmp_path, monkeypatch):
    """Images that are found to be damaged when they are read; interrupted, with workers: the same end."""
    monkeypatch.setattr(inspection, "_DECODED_BYTES", 0)
    recipe = recipe.override(data=str(damaged), epochs=1, skip_bad_images=4)
    whole = train(recipe, output=tmp_path / "whole")
    assert sorted(row["image"] for row in read_rows(tmp_path / "whole" / "skipped.csv")) == BAD
    evaluation = evaluate_run(tmp_path / "whole", output=tmp_path)
    assert evaluation.scores.to_dict() == whole.test.to_dict()
    tested = read_split(tmp_path / "whole", json.loads((tmp_path / "whole" / "config.json").read_text()))["test"]
    bad = [name for name in map(tested.name, range(len(tested))) if name in BAD]
    assert bad
    (note,) = [note for note in evaluation.notes if "skip_bad_images" in note]
    assert note.endswith(f"the next one is scored once more in its place (skip_bad_images): {', '.join(bad)}")
    step = TrainingProgress.step

    def stop(self, completed, *rest):
        step(self, completed, *rest)
        if completed == 1:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(TrainingProgress, "step", stop)
    train(recipe.override(workers=2), output=tmp_path / "run")
    monkeypatch.setattr(TrainingProgress, "step", step)
    resume(tmp_path / "run")
    for name in ("best.safetensors", "last.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sorted(row["image"] for row in read_rows(tmp_path / "run" / "skipped.csv")) == BAD


@pytest.mark.parametrize("content", ["", "image,reason\n", "name,replaced_by,reason\n1.png,3.png,cut off\n"])
def test_a_list_that_no_training_wrote(tmp_path, content):
    (tmp_path / "skipped.csv").write_text(content)
    with pytest.raises(ValueError, match=r"skipped\.csv is damaged: its columns are not image, replaced_by, reason"):
        SkipList(tmp_path, 3)
