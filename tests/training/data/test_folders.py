import shutil

import pytest
from PIL import Image

from lambdanets.training.data import load_data


def write_classes(folder, counts, start=0):
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for index in range(start, start + count):
            Image.new("RGB", (3, 3), (index, 0, 0)).save(folder / name / f"{index}.png")


def relative(part, folder):
    return [path.relative_to(folder).as_posix() for path in part.paths]


def test_one_folder_of_classes_is_split(tmp_path):
    write_classes(tmp_path, {"cat": 20, "dog": 30})
    data = load_data(f"imagefolder:{tmp_path}")
    parts = [relative(part, tmp_path) for part in (data.train, data.validation, data.test)]
    assert [len(part) for part in parts] == [40, 5, 5]
    assert len(set(parts[0]) | set(parts[1]) | set(parts[2])) == 50
    assert data.class_names == ("cat", "dog")
    assert all((path.startswith("dog")) == label for path, label in zip(parts[1], data.validation.labels, strict=True))


def test_split_depends_on_names_not_on_the_place(tmp_path):
    for place in ("here", "there"):
        write_classes(tmp_path / place, {"cat": 12, "dog": 12})
    one, two = (load_data(str(tmp_path / place)) for place in ("here", "there"))
    assert relative(one.test, tmp_path / "here") == relative(two.test, tmp_path / "there")


def test_train_val_and_test_folders_are_the_split(tmp_path):
    for part, count in (("train", 4), ("val", 2), ("test", 1)):
        write_classes(tmp_path / part, {"b": count, "a": count})
    data = load_data(str(tmp_path))
    assert relative(data.test, tmp_path) == ["test/a/0.png", "test/b/0.png"]
    assert (len(data.train), len(data.validation)) == (8, 4)
    assert data.held_out == ("test", data.test)


def test_without_test_folder_there_is_no_test(tmp_path):
    for part in ("train", "validation"):
        write_classes(tmp_path / part, {"a": 2, "b": 2})
    data = load_data(str(tmp_path))
    assert data.test is None
    assert data.held_out == ("validation", data.validation)


def test_without_val_folder_training_images_are_held_back(tmp_path):
    write_classes(tmp_path / "train", {"a": 10, "b": 10})
    write_classes(tmp_path / "test", {"a": 3, "b": 3})
    data = load_data(str(tmp_path))
    validation = relative(data.validation, tmp_path)
    assert len(validation) == 2
    assert all(path.startswith("train/") for path in validation)
    assert not set(validation) & set(relative(data.train, tmp_path))
    assert len(data.test) == 6


def test_subfolders_of_a_class_belong_to_it_and_hidden_folders_are_none(tmp_path):
    write_classes(tmp_path, {"cat": 4, "dog/poodle": 3, "dog/beagle": 3, ".cache": 1})
    data = load_data(str(tmp_path))
    assert data.class_names == ("cat", "dog")
    assert len(data.train) + len(data.validation) + len(data.test) == 10


def test_spec_is_absolute(tmp_path, monkeypatch):
    write_classes(tmp_path / "images", {"a": 3, "b": 3})
    monkeypatch.chdir(tmp_path)
    assert load_data("images").spec == f"imagefolder:{tmp_path / 'images'}"


@pytest.fixture
def parts(tmp_path):
    for part in ("train", "val"):
        write_classes(tmp_path / part, {"a": 2, "b": 2})
    return tmp_path


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        load_data(f"imagefolder:{tmp_path / 'nowhere'}")


def test_file_for_a_folder(tmp_path):
    (tmp_path / "a.zip").touch()
    with pytest.raises(ValueError, match=r"a\.zip is a file"):
        load_data(str(tmp_path / "a.zip"))


def test_empty_folder(tmp_path):
    with pytest.raises(ValueError, match=r"has no class folders\. A data folder holds one folder"):
        load_data(str(tmp_path))


@pytest.mark.parametrize("part", ["", "train", "val"])
def test_class_without_images_is_named(tmp_path, part):
    for name in ("train", "val") if part else ("",):
        write_classes(tmp_path / name, {"a": 3, "b": 3})
    shutil.rmtree(tmp_path / part / "b")
    (tmp_path / part / "b").mkdir()
    (tmp_path / part / "b" / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"class folder .*b holds no images \(.*\.png.*\)\. Add some") as error:
        load_data(str(tmp_path))
    assert str(tmp_path / part / "b") in str(error.value)


def test_class_too_small_to_split_is_named(tmp_path):
    write_classes(tmp_path, {"a": 3, "b": 2})
    with pytest.raises(ValueError, match=r"b holds 2 images; at least 3 are needed"):
        load_data(str(tmp_path))


def test_train_folder_alone(tmp_path):
    write_classes(tmp_path / "train", {"a": 3, "b": 3})
    with pytest.raises(ValueError, match="neither val/ nor test/"):
        load_data(str(tmp_path))


def test_val_folder_alone(tmp_path):
    write_classes(tmp_path / "val", {"a": 3, "b": 3})
    with pytest.raises(ValueError, match=r"has val/ but no train/"):
        load_data(str(tmp_path))


def test_class_unknown_to_training(parts):
    write_classes(parts / "val", {"c": 1})
    with pytest.raises(ValueError, match=r"val are not those of the training folder; unknown there: c$"):
        load_data(str(parts))


def test_class_missing_in_validation(parts):
    shutil.rmtree(parts / "val" / "a")
    with pytest.raises(ValueError, match=r"; missing: a$"):
        load_data(str(parts))
