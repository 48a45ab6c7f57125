"""The description of a study's data: of every kind of part, and the same as long as the images are."""

import io
import json
import struct
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

from lambdanets.experiments.compare.study import LARGEST_IMAGE, DataFacts, check_images, inspect
from lambdanets.training.data import ArrayImages, FileImages, Part, load_data, readers
from lambdanets.training.data.readers import ReaderImages, StreamImages
from lambdanets.training.data.spec import DataSpec


class Reader:
    def __init__(self):
        self.class_to_idx = {"zebra": 0, "ant": 1}


class Indexed(Dataset):
    """A data set as timm opens it, of images of 9x11 pixels."""

    def __init__(self, count):
        self.reader, self.count = Reader(), count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return Image.new("L", (11, 9), index), index % 2


class Stream(IterableDataset):
    def __init__(self):
        self.reader = Reader()

    def __len__(self):
        return 4

    def __iter__(self):
        yield from ((Image.new("L", (11, 9)), index % 2) for index in range(4))


def offer(monkeypatch, make):
    parts = {"train": make(20), "validation": make(6), "test": make(4)}
    monkeypatch.setattr(readers, "create_dataset", lambda name, split, **_: parts[split])


def digits(folder, monkeypatch):
    return "digits"


def arrays(folder, monkeypatch):
    for part, count in (("train", 120), ("t10k", 10)):
        for name, values in (("images-idx3", np.full((count, 28, 28), 200)), ("labels-idx1", np.arange(count) % 10)):
            sizes = struct.pack(f">{values.ndim}I", *values.shape)
            head = bytes([0, 0, 8, values.ndim]) + sizes
            (folder / f"{part}-{name}-ubyte").write_bytes(head + values.astype(np.uint8).tobytes())
    return f"fashion-mnist:{folder}"


def torchvisions(folder, monkeypatch):
    (folder / "FashionMNIST" / "raw").mkdir(parents=True)
    arrays(folder / "FashionMNIST" / "raw", monkeypatch)
    return f"torch/fashion_mnist:{folder}"


def files(folder, monkeypatch):
    for name in ("ant", "zebra"):
        (folder / name).mkdir()
        for index in range(12):
            Image.new("RGB", (11, 9), (index, 0, 0)).save(folder / name / f"{index}.png")
    return str(folder)


def hugging_face(folder, monkeypatch):
    offer(monkeypatch, Indexed)
    return "hfds/some/name"


def shards(folder, monkeypatch):
    for part, count in (("train", 20), ("val", 6), ("test", 4)):
        with tarfile.open(folder / f"{part}.tar", "w") as archive:
            for index in range(count):
                picture = io.BytesIO()
                Image.new("L", (11, 9), index).save(picture, "PNG")
                for ending, content in (("png", picture.getvalue()), ("cls", str(index % 2).encode())):
                    member = tarfile.TarInfo(f"{index:04d}.{ending}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    (folder / "classes.txt").write_text("even\nodd\n")
    return f"wds/:{folder}"


def stream(folder, monkeypatch):
    offer(monkeypatch, lambda count: Stream())
    return "tfds/name"


KINDS = {
    digits: (ArrayImages, (8, 1, 10, (1259, 179, 359))),
    arrays: (ArrayImages, (28, 1, 10, (110, 10, 10))),
    torchvisions: (ReaderImages, (28, 3, 10, (108, 12, 10))),
    files: (FileImages, (9, 3, 2, (20, 2, 2))),
    hugging_face: (ReaderImages, (9, 3, 2, (20, 6, 4))),
    shards: (ReaderImages, (9, 3, 2, (20, 6, 4))),
    stream: (StreamImages, None),
}


@pytest.mark.parametrize("write", KINDS, ids=lambda write: write.__name__)
def test_data_of_every_kind_are_described(tmp_path, monkeypatch, write):
    spec, (kind, expected) = write(tmp_path, monkeypatch), KINDS[write]
    data = load_data(spec)
    assert {type(part) for part in data.parts.values()} == {kind}
    if expected is None:
        with pytest.raises(ValueError, match=r"data 'tfds/name' are a stream.*give --data imagefolder:DIR"):
            inspect(spec)
        return
    facts = inspect(spec)
    assert (facts.image_size, facts.channels, facts.classes, facts.images) == expected
    assert facts == inspect(spec)
    told = json.loads(json.dumps(facts.to_dict()))["spec"]
    assert told == DataSpec.parse(spec).label.rpartition("/")[2]
    assert str(tmp_path) not in told
    check_images(spec)


def test_unreadable_images_are_found_at_once(tmp_path, monkeypatch):
    spec = files(tmp_path, monkeypatch)
    file = load_data(spec).train.paths[3]
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(ValueError, match=rf"{file.name}.*\. Mend or remove what cannot be read"):
        check_images(spec)


def test_the_place_of_a_readers_data_set_is_no_name():
    facts = DataFacts("hfds/uoft-cs/cifar10:/cache/hf", "f", 8, 3, 10, (1, 1, 1))
    assert facts.to_dict()["spec"] == "cifar10"
    assert replace(facts, spec="wds/:/data/shards").to_dict()["spec"] == "shards"
    assert replace(facts, spec="imagefolder:/data/pets").to_dict()["spec"] == "pets"


def leaves(kind):
    """The classes of this package that none of its own derives from; other tests may have derived some."""
    below = [each for each in kind.__subclasses__() if each.__module__.startswith("lambdanets")]
    return set().union(*map(leaves, below)) if below else {kind}


def test_no_kind_of_part_is_left_out():
    assert leaves(Part) == {kind for kind, _ in KINDS.values()}


def test_other_images_are_other_data(tmp_path, monkeypatch):
    found = set()
    for count in (20, 21):
        monkeypatch.setattr(readers, "create_dataset", lambda name, split, count=count, **_: Indexed(count))
        found.add(inspect("hfds/name").fingerprint)
    for value in (0, 1):
        folder = tmp_path / str(value)
        folder.mkdir()
        spec = files(folder, monkeypatch)
        Image.new("RGB", (11, 9), (0, value, 0)).save(folder / "ant" / "0.png")
        found.add(inspect(spec).fingerprint)
    assert len(found) == 4


def test_large_images_are_scaled_down(tmp_path, monkeypatch):
    monkeypatch.setattr(Indexed, "__getitem__", lambda self, index: (Image.new("L", (300, 200)), 0))
    offer(monkeypatch, Indexed)
    assert inspect("hfds/name").image_size == LARGEST_IMAGE
