"""A split, once made, stays: what a run was trained on is never scored as a test image."""

import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from lambdanets.files import digest_file, read_rows, write_csv
from lambdanets.training import Recipe, Run
from lambdanets.training.data import load_data
from lambdanets.training.data.exam import Exam
from lambdanets.training.data.inspection import describe_copies, fingerprint, inspect_images
from lambdanets.training.data.transforms import InputTransform
from lambdanets.training.runs.split import read_split
from lambdanets.training.runs.stored import seen_in_training, stored_data


def write_images(folder, names):
    for index, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (3, 3), (index, index // 7, 9)).save(folder / name)


def make_run(path, data):
    recipe = Recipe(name="test", model="lambda_resnet_tiny", data=data.spec)
    return Run.create(path, recipe, data, InputTransform(8, 3, (0.5,) * 3, (0.5,) * 3))


def parts(data):
    return {name: part.names for name, part in data.parts.items()}


@pytest.fixture
def folder(tmp_path):
    write_images(tmp_path / "data", [f"{name}/{index}.png" for name in ("cat", "dög, x\n") for index in range(30)])
    return tmp_path / "data"


@pytest.fixture
def run(folder, tmp_path):
    return make_run(tmp_path / "run", load_data(str(folder)))


@pytest.mark.smoke
def test_split_is_read_back_in_its_order(run, folder):
    made, stored = load_data(str(folder)), stored_data(Run.open(run.path))
    assert parts(stored) == parts(made)
    for name, part in stored.parts.items():
        assert part.labels == made.parts[name].labels
    assert (stored.class_names, stored.mean, stored.notes) == (made.class_names, made.mean, ())


@pytest.mark.parametrize("added", ["cat/000.png", "cat/999.png", "cat/deep/1.png"])
def test_an_added_image_is_in_no_part_and_told(run, folder, added):
    before = parts(stored_data(run))
    write_images(folder, [added])
    data = stored_data(run)
    assert parts(data) == before
    assert data.notes == (
        f"1 image in {folder} belongs to no part of this run, added since it began or left out then, and is not "
        f"used: {added}.",
    )
    # What the same folder would give anew is another split: the stored one is needed.
    assert parts(load_data(str(folder))) != before


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_a_missing_or_changed_image_is_refused_by_name(run, folder, part):
    name = read_split(run.path, run.config)[part].names[0]
    content = (folder / name).read_bytes()
    (folder / name).unlink()
    for used in (None, (part,)):
        with pytest.raises(ValueError, match=rf"1 {part} image of the run .* is missing: ") as error:
            stored_data(run, used)
        assert name in str(error.value)
    others = [other for other in ("train", "validation", "test") if other != part]
    data = stored_data(run, others)
    assert parts(data)[part]  # what is not used need not be there, but is told
    assert data.notes == (f"1 {part} image of this run is no longer in {folder}, and not needed here: {name}.",)
    (folder / name).write_bytes(content[:-1] + b"?")
    with pytest.raises(ValueError, match=rf"1 {part} image of the run .* is not the file that it was"):
        stored_data(run)
    (folder / name).write_bytes(content)
    os.utime(folder / name, (1, 1))  # a date means nothing
    stored_data(run)


def test_a_trained_image_in_the_place_of_a_test_image_is_refused(run, folder):
    split = read_split(run.path, run.config)
    shutil.copy(split["train"].paths[0], split["test"].paths[0])
    with pytest.raises(ValueError, match="1 test image of the run"):
        stored_data(run, ("test",))


def test_missing_split_and_missing_folder(run, folder):
    (run.path / "split.csv").unlink()
    with pytest.raises(ValueError, match=r"split\.csv is missing, so which images .* Bring the whole file back"):
        stored_data(run)
    exam = Exam(run.data_spec, "test", load_data(str(folder)).test)
    (note,) = seen_in_training(run, exam)
    assert "split.csv is missing" in note
    shutil.rmtree(folder)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        stored_data(run)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("train,cat", "exam,cat", "part is 'exam' in line"),
        ("train,cat", "train,cow", "class is 'cow' in line"),
        (",cat/", ",../cat/", r"image is '\.\./cat/.*' in line"),
        (",cat/", ",/cat/", "image is '/cat/"),
        ("part,class", "part,kind", "its columns are not part, class"),
        ("train,cat,", "train,cat,,", "has 5 values, the header 4"),
    ],
)
def test_damaged_split(run, old, new, message):
    file = run.path / "split.csv"
    file.write_text(file.read_text().replace(old, new, 1))
    with pytest.raises(ValueError, match=message) as error:
        read_split(run.path, run.config)
    assert str(file) in str(error.value)


def test_one_image_in_two_parts(run):
    file = run.path / "split.csv"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([*lines, lines[1].replace("train,", "test,")]))
    with pytest.raises(ValueError, match="and in one before; each has one part"):
        read_split(run.path, run.config)


def cut(lines):
    return lines[:-6]


def relabelled(old, new):
    return lambda lines: [line.replace(f"{old},", f"{new},", 1) for line in lines]


def exchanged(lines):
    """As many images in each part, but others."""
    test = next(index for index, line in enumerate(lines) if line.startswith("test,"))
    return [lines[0], "test" + lines[1][5:], *lines[2:test], "train" + lines[test][4:], *lines[test + 1 :]]


@pytest.mark.parametrize("edit", [cut, relabelled("test", "train"), relabelled("train", "test"), exchanged])
def test_an_edited_split_is_refused(run, edit):
    read_split(run.path, Run.open(run.path).config)
    file = run.path / "split.csv"
    file.write_text("".join(edit(file.read_text().splitlines(keepends=True))))
    for used in (None, ("test",)):
        with pytest.raises(ValueError, match=r"split\.csv .*config\.json.*: it was cut off or edited.* Bring"):
            stored_data(Run.open(run.path), used)
    # Other images can be scored without it.
    (note,) = seen_in_training(Run.open(run.path), Exam(run.data_spec, "test", load_data(run.data_spec).test))
    assert note.startswith(f"Whether the run was trained on some of these images is not known: {file}")


@pytest.mark.parametrize("part", ["train", "validation"])
def test_a_split_without_a_part_that_every_training_has(run, part):
    """Neither the digest nor the numbers in config.json tell that a file is missing where they were changed too."""
    file, data = run.path / "split.csv", run.config["data"]
    write_csv(file, [row for row in read_rows(file) if row["part"] != part])
    data["split"] = digest_file(file)
    del data["images"][part]
    with pytest.raises(ValueError, match=rf"split\.csv has no {part} images, and a training has some"):
        stored_data(run)


@pytest.mark.parametrize("content", [b"", b"part,class,fingerprint,image\n", b"\xff\xfe", b'"'])
def test_split_that_is_no_table(run, content):
    (run.path / "split.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"split\.csv is damaged"):
        read_split(run.path, run.config)


def test_arrays_are_known_by_their_content(tmp_path, monkeypatch):
    data = load_data("digits")
    run = make_run(tmp_path / "run", data)
    assert not (run.path / "split.csv").exists()
    assert set(run.config["data"]["fingerprints"]) == {"train", "validation", "test"}
    stored_data(Run.open(run.path))
    data.test.images = data.test.images + np.uint8(1)
    monkeypatch.setattr("lambdanets.training.runs.stored.load_data", lambda *_, **__: data)
    stored_data(run, ("train",))
    with pytest.raises(ValueError, match="the test images of 'digits' are not those that the run"):
        stored_data(run, ("test",))


@pytest.mark.parametrize("change", [{"test": None}, {"validation": "fewer"}])
def test_parts_that_are_others_than_at_the_start(tmp_path, monkeypatch, change):
    """Data without digests, as streams, are known by their numbers; and no part comes or goes."""
    data = load_data("digits")
    run = make_run(tmp_path / "run", data)
    run.config["data"]["fingerprints"] = {}
    less = {name: value and data.validation.select(range(3)) for name, value in change.items()}
    monkeypatch.setattr("lambdanets.training.runs.stored.load_data", lambda *_, **__: replace(data, **less))
    (name,) = change
    with pytest.raises(ValueError, match=f"the {name} images of 'digits' are not those that the run"):
        stored_data(run, (name,))
    del run.config["data"]["images"]["test"]
    monkeypatch.setattr("lambdanets.training.runs.stored.load_data", lambda *_, **__: data)
    with pytest.raises(ValueError, match="the test images of 'digits' are not those that the run"):
        stored_data(run, ("validation",))


def test_copies_across_parts_are_told(tmp_path):
    for name in ("train/a", "train/b", "test/a", "test/b"):
        write_images(tmp_path, [f"{name}/{index}.png" for index in range(10)])
    Image.new("RGB", (3, 3), (99, 0, 0)).save(tmp_path / "test" / "a" / "0.png")
    data = load_data(str(tmp_path))
    inspect_images(list(data.parts.values()))
    notes = describe_copies(data)
    assert any(note.startswith("19 test images are copies of training images: test/a/1.png = train/") for note in notes)


def test_fingerprints_see_both_ends_of_a_file(tmp_path):
    file = tmp_path / "a"
    content = bytes(300_000)
    file.write_bytes(content)
    marks = {fingerprint(file)}
    for changed in (b"x" + content[1:], content[:-1] + b"x", content[1:], content + b"\0"):
        file.write_bytes(changed)
        marks.add(fingerprint(file))
    assert len(marks) == 5


def test_unreadable_files_are_named_together(tmp_path):
    write_images(tmp_path, [f"{name}/{index}.png" for name in "ab" for index in range(10)])
    for name in ("a/3.png", "b/4.png", "b/5.png"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:50])
    data = load_data(str(tmp_path))
    with pytest.raises(ValueError, match=r"cannot be read: .*; nor can 2 others: ") as error:
        inspect_images(list(data.parts.values()))
    for name in ("a/3.png", "b/4.png", "b/5.png"):
        assert name in str(error.value)


def test_large_collections_are_opened_only(tmp_path, monkeypatch):
    monkeypatch.setattr("lambdanets.training.data.inspection._DECODED_BYTES", 0)
    write_images(tmp_path, [f"{name}/{index}.png" for name in "ab" for index in range(5)])
    content = (tmp_path / "a" / "3.png").read_bytes()
    data = load_data(str(tmp_path))
    (tmp_path / "a" / "3.png").write_bytes(content[:50])  # found when it is decoded
    inspect_images(list(data.parts.values()))
    for broken in (b"", b"no image"):
        (tmp_path / "a" / "3.png").write_bytes(broken)
        with pytest.raises(ValueError, match=r"a/3\.png cannot be read"):
            inspect_images(list(data.parts.values()))
