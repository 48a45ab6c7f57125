import os

import pytest
from PIL import Image

from lambdanets.training.data import load_data
from lambdanets.training.data.listing import describe_skipped, image_extensions, list_images


def write(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def listed(folder):
    found = list_images(folder)
    return [[path.relative_to(folder).as_posix() for path in paths] for paths in (found.files, found.skipped)]


def test_every_ending_that_pillow_decodes_counts_in_any_case(tmp_path):
    Image.init()
    opened = {ending for ending, name in Image.registered_extensions().items() if name in Image.OPEN}
    assert opened - image_extensions() == {".bufr", ".grib", ".h5", ".hdf", ".mpg", ".mpeg"}
    assert not image_extensions() & {".pdf", ".txt", ".npy", ""}
    names = [f"{index}{ending}" for index, ending in enumerate(sorted(image_extensions()))]
    write(tmp_path, *names, *(f"u{name.upper()}" for name in names))
    assert len(listed(tmp_path)[0]) == 2 * len(names)


def test_order_is_natural_and_fixed(tmp_path):
    write(tmp_path, "10.png", "2.png", "b/1.png", "B.png", "b.png", "10²3.png")
    assert listed(tmp_path)[0] == ["2.png", "10.png", "10²3.png", "B.png", "b.png", "b/1.png"]


def test_other_and_hidden_files_are_told_and_litter_is_not(tmp_path):
    write(tmp_path, "a.png", "notes.txt", ".a.png", ".cache/b.png", "deep/raw.npy", "deep/c.png")
    write(tmp_path, ".DS_Store", "Thumbs.db", "desktop.ini", "._a.png", "__MACOSX/a.png", "deep/.DS_Store")
    os.mkfifo(tmp_path / "pipe.png")
    images, skipped = listed(tmp_path)
    assert images == ["a.png", "deep/c.png"]
    assert skipped == [".a.png", ".cache", "deep/raw.npy", "notes.txt", "pipe.png"]
    (line,) = describe_skipped(list_images(tmp_path).skipped, tmp_path)
    assert line == f"Left out of {tmp_path}: 5 files and folders, .a.png, .cache/, deep/raw.npy and 2 more."


def test_links_are_followed(tmp_path):
    write(tmp_path / "there", "a.png")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "folder").symlink_to(tmp_path / "there")
    (tmp_path / "here" / "file.png").symlink_to(tmp_path / "there" / "a.png")
    assert listed(tmp_path / "here") == [["file.png", "folder/a.png"], []]


def test_links_in_a_circle_and_into_nothing_are_errors(tmp_path):
    write(tmp_path, "in/a.png")
    (tmp_path / "in" / "again").symlink_to(tmp_path)
    with pytest.raises(ValueError, match=r"the link .*in/again leads to .*, the folder that it lies in"):
        list_images(tmp_path)
    (tmp_path / "in" / "again").unlink()
    (tmp_path / "in" / "b.png").symlink_to("gone")
    with pytest.raises(ValueError, match=r"in/b\.png is a link that leads nowhere"):
        list_images(tmp_path)


def test_name_that_is_no_unicode(tmp_path):
    (tmp_path / os.fsdecode(b"\xff.png")).touch()
    with pytest.raises(ValueError, match=r"\\xff\.png.* is not valid UTF-8; rename it"):
        list_images(tmp_path)


def test_what_lies_beside_the_classes_is_told(tmp_path):
    for name in ("train/a", "train/b", "val/a", "val/b", "extra/a"):
        write(tmp_path / name, "0.png", "1.TIF")
    write(tmp_path, "val/loose.png", "README")
    data = load_data(str(tmp_path))
    assert (len(data.train), len(data.validation)) == (4, 4)
    assert data.notes == (f"Left out of {tmp_path}: 3 files and folders, README, extra/, val/loose.png.",)


@pytest.mark.parametrize("names", [("Train", "VAL"), ("training", "valid"), ("TRAIN", "Validation")])
def test_part_folders_in_any_case(tmp_path, names):
    for name in names:
        write(tmp_path / name, "a/0.png", "b/0.png")
    data = load_data(str(tmp_path))
    assert data.class_names == ("a", "b")
    assert (len(data.train), len(data.validation), data.notes) == (2, 2, ())


def test_two_folders_for_one_part(tmp_path):
    for name in ("train", "val", "validation"):
        write(tmp_path / name, "a/0.png", "b/0.png")
    with pytest.raises(ValueError, match="has both val/ and validation/ for the validation images; keep one"):
        load_data(str(tmp_path))


def test_classes_with_leading_underscore_are_classes(tmp_path):
    write(tmp_path, *(f"{name}/{index}.png" for name in ("_background_", "cat") for index in range(3)))
    assert load_data(str(tmp_path)).class_names == ("_background_", "cat")


def test_all_empty_class_folders_are_named(tmp_path):
    write(tmp_path, "a/0.png", "b/x.txt")
    (tmp_path / "c").mkdir()
    with pytest.raises(ValueError, match=r"b holds no images .*, nor do 1 other: .*/c\. Add some"):
        load_data(str(tmp_path))
