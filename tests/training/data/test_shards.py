"""WebDataset shards: each image once, by index, and told by name where something is wrong."""

import gzip
import io
import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from lambdanets.training import Augmentation, train
from lambdanets.training.data import load_data, shards
from lambdanets.training.data.exam import load_exam
from lambdanets.training.data.shards import find_shards, index_shard
from lambdanets.training.data.transforms import UnreadableImageError
from lambdanets.training.engine.devices import make_accelerator
from lambdanets.training.engine.loaders import TrainingBatches, input_transform
from lambdanets.training.engine.start import check_data


def png(value):
    buffer = io.BytesIO()
    Image.new("L", (2, 2), value).save(buffer, "PNG")
    return buffer.getvalue()


def write_shard(path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def samples(first, count):
    """Images whose brightness is their number, which is even in class 0 and odd in class 1."""
    files = {}
    for index in range(first, first + count):
        files |= {f"{index:04d}.png": png(index), f"{index:04d}.cls": str(index % 2).encode()}
    return files


def info(root, lengths=None, **more):
    splits = {}
    for part in ("train", "validation"):
        names = sorted(path.name for path in root.glob(f"*-{part}-*.tar"))
        splits[part] = {"name": part, "filenames": names, "num_samples": 0, **more}
        if lengths:
            splits[part]["shard_lengths"] = lengths[: len(names)]
    (root / "_info.json").write_text(json.dumps({"splits": splits}))


@pytest.fixture
def root(tmp_path):
    """Three shards to train on, of 10, 10 and 4 images, and one for validation."""
    for shard, (first, count) in enumerate(((0, 10), (10, 10), (20, 4))):
        write_shard(tmp_path / f"set-train-{shard:04d}.tar", samples(first, count))
    write_shard(tmp_path / "set-validation-0000.tar", samples(100, 6))
    (tmp_path / "classes.txt").write_text("even\nodd\n")
    return tmp_path


def values(images):
    found = [images[index] for index in range(len(images))]
    return [(int(np.asarray(image)[0, 0, 0]), label) for image, label in found]


def numbered(first, count):
    return [(index, index % 2) for index in range(first, first + count)]


@pytest.mark.parametrize("told", [False, True])
def test_parts_by_info_or_by_names(root, told):
    if told:
        info(root)
    data = load_data(f"wds/:{root}")
    assert values(data.train) == numbered(0, 24)
    assert values(data.validation) == numbered(100, 6)
    assert data.test is None
    assert data.class_names == ("even", "odd")
    assert data.train.groups == [10, 10, 4]
    assert values(load_exam(f"wds/:{root}", ("odd", "even")).images)[:2] == [(100, 1), (101, 0)]


def test_without_parts_a_tenth_is_held_out_and_the_rest_stays_in_order(tmp_path):
    write_shard(tmp_path / "0.tar", samples(0, 10))
    write_shard(tmp_path / "1.tar", samples(10, 10))
    (tmp_path / "classes.txt").write_text("even\nodd\n")
    data = load_data(f"wds/:{tmp_path}")
    found = values(data.train)
    assert found == sorted(found)
    assert len(data.validation) == 2
    assert sorted(found + values(data.validation)) == numbered(0, 20)
    assert sum(data.train.groups) == 18


def test_shards_are_opened_when_an_image_is_asked_for(root, monkeypatch):
    info(root, lengths=[10, 10, 4])
    (root / "_info.json").write_text((root / "_info.json").read_text().replace("[10]", "[6]"))
    opened = []
    original = shards.index_shard
    monkeypatch.setattr(shards, "index_shard", lambda path, label: opened.append(path.name) or original(path, label))
    data = load_data(f"wds/:{root}")
    assert (len(data.train), len(data.validation), opened) == (24, 6, [])
    assert data.train[12][1] == 0
    assert data.train[13][1] == 1
    assert opened == ["set-train-0001.tar"]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_has_each_image_once(root, recipe, workers):
    data = load_data(f"wds/:{root}")
    chosen = recipe.override(workers=workers, batch_size=8, image_size=2, augmentation=Augmentation())
    batches = TrainingBatches(make_accelerator(chosen), data, chosen, input_transform(data, chosen), 60.0)
    mean, std = data.mean[0], data.std[0]
    epochs = []
    for epoch in (0, 1):
        inputs = torch.cat([images for images, _ in batches.of_epoch(epoch)])
        epochs.append((inputs[:, 0, 0, 0] * std + mean).mul(255).round().int().tolist())
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(24))
    assert epochs[0] != epochs[1]
    rest = torch.cat([images for images, _ in batches.of_epoch(1, first=1)])
    assert (rest[:, 0, 0, 0] * std + mean).mul(255).round().int().tolist() == epochs[1][8:]


def test_labels_in_json(tmp_path):
    files = {"a.png": png(1), "a.json": b'{"info": {"class": 1}}', "b.PNG": png(2), "b.json": b'{"info": {"class": 0}}'}
    write_shard(tmp_path / "x-train-0.tar", files)
    write_shard(tmp_path / "x-validation-0.tar", files)
    (tmp_path / "classes.txt").write_text("even\nodd\n")
    info(tmp_path, alt_label="info.class")
    assert values(load_data(f"wds/:{tmp_path}").train) == [(1, 1), (2, 0)]


def test_what_is_wrong_with_an_image_is_told_by_name(root):
    files = samples(0, 4)
    files["0001.png"] = files["0001.png"][:40]
    files["0002.cls"] = b"2"
    write_shard(root / "set-train-0000.tar", files)
    data = load_data(f"wds/:{root}")
    assert data.train[0][1] == 0
    with pytest.raises(UnreadableImageError, match=r"\(set-train-0000\.tar/0001\.png\) cannot be read"):
        data.train[1]
    with pytest.raises(ValueError, match=r"label of an image is 2, and the data have 2 classes"):
        data.train[2]
    with pytest.raises(ValueError, match=r"label of a train image of the data .* is 2, and they have 2 classes"):
        check_data(data)


@pytest.mark.parametrize("text", [b"odd", b"", b"0.5", b"9" * 30, b"\xff", b"-2"])
def test_labels_that_are_no_indices(root, text):
    write_shard(root / "set-train-0000.tar", samples(0, 4) | {"0003.cls": text})
    with pytest.raises(ValueError, match=r"the sample 0003 of the shard .*-0000\.tar has no number in its \.cls"):
        load_data(f"wds/:{root}")


@pytest.mark.parametrize("value", ["0.5", "null", "[1]", '{"class": 1}', "1e999"])
def test_labels_in_json_that_are_no_indices(tmp_path, value):
    write_shard(tmp_path / "a.tar", {"a.png": png(1), "a.json": b'{"label": %s}' % value.encode()})
    with pytest.raises(ValueError, match=r"the sample a of the shard .* has no number in 'label' of its \.json"):
        index_shard(tmp_path / "a.tar", "label")


def cut(path):
    path.write_bytes(path.read_bytes()[:1700])


def compressed(path):
    path.write_bytes(gzip.compress(path.read_bytes()))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, r"cannot be read: .*(cut off|unexpected end)"),
        (compressed, "cannot be read"),
        (lambda path: path.write_bytes(b"x" * 2000), "cannot be read"),
        (lambda path: write_shard(path, {"a.png": png(1)}), r"the sample a of the shard .* has no \.cls"),
        (lambda path: write_shard(path, {"a.cls": b"1"}), "the sample a of the shard .* has no image"),
    ],
)
def test_damaged_shards(root, damage, message):
    damage(root / "set-train-0001.tar")
    with pytest.raises(ValueError, match=message) as error:
        load_data(f"wds/:{root}")
    assert "set-train-0001.tar" in str(error.value)


def test_links_and_files_that_are_no_images_are_named(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        link = tarfile.TarInfo("0009.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        for name in ("README", "notes.txt", "._0000.png", "0000.txt"):
            archive.addfile(tarfile.TarInfo(f"deep/{name}"))
        for name, content in samples(0, 1).items():
            info = tarfile.TarInfo(f"deep/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    table, left_out = index_shard(tmp_path / "a.tar")
    assert (len(table), left_out) == (1, ["0009.png", "deep/README", "deep/notes.txt"])


def test_a_second_image_of_a_sample_is_named(root):
    write_shard(root / "set-train-0002.tar", samples(20, 4) | {"0020.jpg": png(99), "x.heif": b"x"})
    data = load_data(f"wds/:{root}")
    assert values(data.train) == numbered(0, 24)
    line = "2 files in the shards, set-train-0002.tar/0020.jpg, set-train-0002.tar/x.heif."
    assert data.notes == (f"Left out of wds/:{root}: {line}",)
    (root / "set-validation-0000.tar").rename(root / "set-test.tar")
    write_shard(root / "set-test.tar", samples(100, 6) | {"x.heif": b"x"})
    line = "1 file in the shards, set-test.tar/x.heif."
    assert load_exam(f"wds/:{root}", ("even", "odd")).notes == (f"Left out of wds/:{root}: {line}",)


@pytest.mark.parametrize("name", ["0002.png", "0002.cls"])
def test_a_sample_that_is_there_twice(root, name):
    write_shard(root / "set-train-0000.tar", samples(0, 4))
    with tarfile.open(root / "set-train-0000.tar", "a") as archive:
        archive.addfile(tarfile.TarInfo(name))
    with pytest.raises(ValueError, match=rf"set-train-0000\.tar cannot be read: it holds {name} twice"):
        load_data(f"wds/:{root}")


@pytest.mark.parametrize("name", ["set-train-0003.tar.gz", "set-train-0003.tgz", "deep/X-TRAIN.TAR.ZST"])
def test_compressed_shards_beside_others(root, name):
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_bytes(gzip.compress((root / "set-train-0002.tar").read_bytes()))
    for load in (load_data, lambda spec: load_exam(spec, ("even", "odd"))):
        with pytest.raises(ValueError, match=rf"holds 1 shard that is compressed, {name}; unpack"):
            load(f"wds/:{root}")
    for path in root.glob("*.tar"):
        path.unlink()
    with pytest.raises(ValueError, match=f"1 shard that is compressed, {name}"):
        find_shards(root)


def test_endings_and_links_of_shards(root, tmp_path_factory):
    """In any case, and behind links, as those of images."""
    (root / "set-train-0000.tar").rename(root / "SET-TRAIN-0000.TAR")
    other = tmp_path_factory.mktemp("other")
    (root / "set-train-0001.tar").rename(other / "0001.tar")
    (root / "train").symlink_to(other)
    assert sorted(values(load_data(f"wds/:{root}").train)) == numbered(0, 24)


def test_what_info_does_not_list_is_named(root):
    info(root)
    content = json.loads((root / "_info.json").read_text())
    content["splits"]["train"]["filenames"].pop()
    content["splits"]["extra"] = {"filenames": ["set-train-0002.tar"]}
    (root / "_info.json").write_text(json.dumps(content))
    (root / "set-train-0003.tar.gz").touch()
    (root / "README.md").touch()
    (root / ".DS_Store").touch()
    notes = (
        f"Left out of {root / '_info.json'}: 1 split that is none of train, validation and test, extra.",
        f"Left out of {root}: 2 shards that no part of _info.json lists, set-train-0002.tar, set-train-0003.tar.gz.",
        f"Left out of {root}: 1 file or folder, README.md.",
    )
    data = load_data(f"wds/:{root}")
    assert (len(data.train), data.notes) == (20, notes)
    assert load_exam(f"wds/:{root}", ("even", "odd")).notes == notes


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": ["a.tar"], "val": ["b.tar"], "valid": ["c.tar"]}, "the splits val and valid for the validation"),
        ({"train": ["a.tar"], "test": ["a.tar"]}, r"lists the shard a\.tar twice"),
        ({"train": ["a.tar", "./a.tar"]}, r"lists the shard a\.tar twice"),
    ],
)
def test_info_that_lists_something_twice(tmp_path, splits, message):
    splits = {name: {"filenames": files} for name, files in splits.items()}
    (tmp_path / "_info.json").write_text(json.dumps({"splits": splits}))
    with pytest.raises(ValueError, match=message):
        find_shards(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"even\nodd\n\n", r"classes\.txt: line 3 is empty"),
        (b"even\n\nodd\n", r"classes\.txt: line 2 is empty"),
        (b"even\nodd\neven", r"classes\.txt: 'even' in line 3 is in a line before too"),
        (b"even\nodd\xff", r"classes\.txt is damaged: it is not UTF-8"),
        (b"even\nodd\0", r"classes\.txt: line 2 is 'odd\\x00'; use a text"),
        (b"even\nodd\nnone\n", "no training images of none"),
        (b"even\n", "have 1 class"),
    ],
)
def test_classes_are_checked_before_anything_is_written(root, recipe, content, message):
    (root / "classes.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        train(recipe.override(data=f"wds/:{root}"), output=root / "run")
    assert not (root / "run").exists()


def test_classes_of_windows_editors(root):
    (root / "classes.txt").write_bytes(b"\xef\xbb\xbfeven\r\nodd\r\n")
    assert load_data(f"wds/:{root}").class_names == ("even", "odd")


def test_labels_are_not_looked_for_where_lengths_are_told(root):
    info(root, lengths=[10, 10, 4])
    (root / "_info.json").write_text((root / "_info.json").read_text().replace("[10]", "[6]"))
    (root / "classes.txt").write_text("even\nodd\nnone\n")
    data = load_data(f"wds/:{root}")
    check_data(data)
    assert data.train.known_labels() is None


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"filenames": ["../x.tar"]}, r"filenames has '\.\./x\.tar'; shards lie inside"),
        ({"filenames": ["/x.tar"]}, "shards lie inside"),
        ({"filenames": []}, "is no list of names"),
        ({"filenames": ["a.tar"], "shard_lengths": [1, 2]}, "shard_lengths is no list of a number for each of the 1"),
        ({"filenames": ["a.tar"], "shard_lengths": [-1]}, "shard_lengths is no list"),
        ({"filenames": ["a.tar"], "alt_label": 3}, "alt_label is no name"),
        ({"filenames": ["pipe:touch x"]}, "does not exist"),
        (3, "is no list of names"),
    ],
)
def test_descriptions_that_are_wrong(tmp_path, split, message):
    (tmp_path / "_info.json").write_text(json.dumps({"splits": {"train": split}}))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_data(f"wds/:{tmp_path}")


def test_another_number_of_samples_than_told(root):
    info(root, lengths=[9, 10, 4])
    with pytest.raises(ValueError, match=r"set-train-0000\.tar holds 10 samples .* says 9"):
        load_data(f"wds/:{root}").train[0]


def test_names_that_tell_no_part_or_two(root):
    write_shard(root / "stray.tar", samples(0, 1))
    with pytest.raises(ValueError, match=r"the names of stray\.tar in .* tell no part"):
        find_shards(root)
    (root / "stray.tar").rename(root / "train-test.tar")
    with pytest.raises(ValueError, match="tells two parts"):
        find_shards(root)
    with pytest.raises(ValueError, match="holds no shards"):
        find_shards((root / "empty").mkdir() or root / "empty")


def test_fingerprint_tells_other_shards(root):
    mark = load_data(f"wds/:{root}").train.fingerprint()
    assert load_data(f"wds/:{root}").train.fingerprint() == mark
    write_shard(root / "set-train-0002.tar", samples(30, 4))
    assert load_data(f"wds/:{root}").train.fingerprint() != mark
