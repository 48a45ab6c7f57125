import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

from lambdanets.training.data import load_data, readers
from lambdanets.training.data.exam import load_exam
from lambdanets.training.data.transforms import UnreadableImageError
from lambdanets.training.engine.start import check_data


class Reader:
    def __init__(self, names):
        self.class_to_idx = {name: index for index, name in enumerate(names)}


class Indexed(Dataset):
    """What timm's ImageDataset looks like; the brightness tells the part and the place."""

    def __init__(self, first, count):
        self.reader = Reader(["zebra", "ant"])
        self.values = range(first, first + count)

    def __len__(self):
        return len(self.values)

    def __getitem__(self, index):
        return Image.new("L", (2, 2), self.values[index]), index % 2


class Stream(IterableDataset):
    reader = Reader(["a", "b"])

    def __iter__(self):
        yield from ()


@pytest.fixture
def offer(monkeypatch):
    """Makes timm know one data set of the given parts."""

    def with_parts(**parts):
        def create_dataset(name, root, split, **_):
            if split not in parts:
                raise RuntimeError(f"no part {split}")
            return parts[split]

        monkeypatch.setattr(readers, "create_dataset", create_dataset)

    return with_parts


def brightness(part):
    return {int(np.asarray(part[index][0])[0, 0, 0]) for index in range(len(part))}


def test_a_hugging_face_data_set(tmp_path, monkeypatch):
    """By timm's own reader, of a folder of parquet files."""
    datasets = pytest.importorskip("datasets", reason="pip install datasets")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["zebra", "ant"])})
    for part, count in (("train", 10), ("test", 4)):
        pixels = [Image.new("RGB", (4, 4), (10 * index, 0, 0)) for index in range(count)]
        labels = [index % 2 for index in range(count)]
        rows = datasets.Dataset.from_dict({"image": pixels, "label": labels}, features=kinds)
        rows.to_parquet(tmp_path / "data" / f"{part}-00000.parquet")
    data = load_data(f"hfds/{tmp_path}/data")
    assert data.class_names == ("zebra", "ant")
    assert (len(data.train), len(data.validation), len(data.test)) == (9, 1, 4)
    assert brightness(data.test) == {0, 10, 20, 30}
    assert [label for _, label in (data.test[index] for index in range(4))] == [0, 1, 0, 1]


def test_parts_of_the_reader(offer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    offer(train=Indexed(0, 20), val=Indexed(20, 5), test=Indexed(25, 4))
    data = load_data("hfds/some/name:cache")
    assert brightness(data.train) == set(range(20))
    assert brightness(data.validation) == set(range(20, 25))
    assert brightness(data.test) == set(range(25, 29))
    assert data.class_names == ("zebra", "ant")
    assert data.spec == f"hfds/some/name:{tmp_path.resolve() / 'cache'}"  # which is the same from any folder
    assert data.train[0][0].mode == "RGB"


def test_without_validation_training_images_are_held_back(offer):
    offer(train=Indexed(0, 20), test=Indexed(20, 4))
    data = load_data("hfds/name")
    assert len(data.validation) == 2
    assert brightness(data.train) | brightness(data.validation) == set(range(20))
    assert not brightness(data.train) & brightness(data.validation)
    assert brightness(data.validation) == brightness(load_data("hfds/name").validation)


def test_the_parts_have_their_own_transforms(offer):
    offer(train=Indexed(0, 20))
    data = load_data("hfds/name")
    data.train.transform = lambda image: "changed"
    assert data.train[0][0] == "changed"
    assert data.validation[0][0] != "changed"


def test_stream_without_validation(offer):
    offer(train=Stream())
    with pytest.raises(ValueError, match=r"no validation part .* a stream cannot be split"):
        load_data("tfds/name")


def test_reader_that_fails_is_told(offer):
    offer()
    with pytest.raises(ValueError, match="cannot open part 'train' of 'hfds/name': no part train"):
        load_data("hfds/name")


def test_reader_that_fails_without_a_word_is_told_by_its_error(monkeypatch):
    def fail(*_, **__):
        raise AssertionError

    monkeypatch.setattr(readers, "create_dataset", fail)
    with pytest.raises(ValueError, match="cannot open part 'train' of 'hfds/name': AssertionError"):
        load_data("hfds/name")


def test_classes_that_the_reader_does_not_tell_are_read_from_a_file(offer, tmp_path):
    part = Indexed(0, 20)
    del part.reader.class_to_idx
    offer(train=part)
    with pytest.raises(ValueError, match=f"names, one a line, into {tmp_path}/classes.txt"):
        load_data(f"hfds/name:{tmp_path}")
    (tmp_path / "classes.txt").write_text("hot dog\ncat")
    assert load_data(f"hfds/name:{tmp_path}").class_names == ("hot dog", "cat")


def test_torchvisions_data_through_timm(tmp_path, idx_bytes):
    folder = tmp_path / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for part, count in (("train", 20), ("t10k", 6)):
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx_bytes(np.full((count, 28, 28), 200)))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx_bytes(np.arange(count) % 10))
    data = load_data(f"torch/fashion_mnist:{tmp_path}")
    assert (len(data.train), len(data.validation), len(data.test)) == (18, 2, 6)
    assert len(data.class_names) == 10
    assert data.test[5][1] == 5
    assert data.test[5][0].mode == "RGB"


@pytest.mark.parametrize("open_part", [load_data, lambda spec: load_exam(spec, ("zebra", "ant"))])
def test_a_part_of_torchvisions_data_that_cannot_be_opened(offer, open_part):
    """It is there by its description: without it, an evaluation would score the images that were trained on."""
    offer(train=Indexed(0, 20))
    with pytest.raises(ValueError, match="cannot open part 'validation' of 'torch/imagenet': no part validation"):
        open_part("torch/imagenet")


def test_torchvisions_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=f"give --data imagefolder:{tmp_path}"):
        load_data(f"torch/folder:{tmp_path}")


@pytest.mark.parametrize(
    ("parts", "part", "values"),
    [
        ({"train": Indexed(0, 20), "val": Indexed(20, 5), "test": Indexed(25, 4)}, "test", range(25, 29)),
        ({"train": Indexed(0, 20), "val": Indexed(20, 5)}, "validation", range(20, 25)),
        ({"train": Indexed(0, 20)}, "train", range(20)),
        ({"test": Indexed(0, 3)}, "test", range(3)),
    ],
)
def test_evaluation_takes_a_whole_part_and_matches_names(offer, parts, part, values):
    offer(**parts)
    exam = load_exam("hfds/name", ("ant", "bee", "zebra"))
    assert (exam.part, brightness(exam.images)) == (part, set(values))
    assert [exam.images[index][1] for index in range(2)] == [2, 0]  # zebra, ant
    with pytest.raises(ValueError, match="does not have: zebra"):
        load_exam("hfds/name", ("ant", "bee"))


def test_part_without_labels_is_refused(offer):
    class Unlabelled(Indexed):
        def __getitem__(self, index):
            return super().__getitem__(index)[0], -1

    offer(test=Unlabelled(0, 3))
    with pytest.raises(ValueError, match="the label of an image is -1: this part of the data has no labels"):
        load_exam("hfds/name", ("ant", "zebra")).images[0]


class Labelled(Indexed):
    """As of Hugging Face data sets: the reader knows labels without reading images, and all splits."""

    def __init__(self, labels, splits=(), names=("zebra", "ant")):
        super().__init__(0, len(labels))
        self.reader.class_to_idx = dict(zip(names, range(len(names)), strict=True))
        self.reader.iter_targets = lambda: iter(labels)
        self.reader.dataset = SimpleNamespace(info=SimpleNamespace(splits=dict.fromkeys(splits)))


def test_splits_of_other_names_are_told(offer):
    offer(train=Labelled([0, 1] * 5, splits=("train", "test", "extra", "unlabelled")), test=Labelled([0, 1]))
    line = "Left out of hfds/name: 2 splits with a name of no part, extra, unlabelled."
    assert load_data("hfds/name").notes == (line,)
    offer(test=Labelled([0, 1], splits=("test", "extra")))
    assert load_exam("hfds/name", ("ant", "zebra")).notes == (
        "Left out of hfds/name: 1 split with a name of no part, extra.",
    )


def test_a_second_split_for_validation_is_told(offer):
    splits = ("valid", "train", "validation")
    offer(train=Labelled([0, 1] * 5, splits=splits), validation=Labelled([0, 1]), valid=Labelled([0, 1]))
    assert load_data("hfds/name").notes == ("Left out of hfds/name: 1 split for validation beside validation, valid.",)


def test_classes_without_training_images_are_refused(offer):
    offer(train=Labelled([0] * 10), test=Labelled([0, 1]))
    with pytest.raises(ValueError, match="have no training images of ant"):
        check_data(load_data("hfds/name"))
    offer(train=Labelled([0, 1, 2] * 5))
    with pytest.raises(ValueError, match=r"the label of a train image .* is 2, and they have 2 classes"):
        check_data(load_data("hfds/name"))
    offer(train=Labelled([0, 1] * 5, names=("zebra", "")))
    with pytest.raises(ValueError, match=r"class_names of the data 'hfds/name'\[1\] is ''"):
        check_data(load_data("hfds/name"))


@pytest.mark.parametrize("label", [-1, None])
def test_test_images_without_labels_are_not_used(offer, label):
    offer(train=Labelled([0, 1] * 5), test=Labelled([label] * 3))
    data = load_data("hfds/name")
    assert data.test is None
    assert data.notes == ("The 3 test images of hfds/name have no labels and are not used.",)
    check_data(data)


def test_too_few_images_to_split(offer):
    offer(train=Indexed(0, 1))
    with pytest.raises(ValueError, match="the training part of 'hfds/name' has 1 image; at least 2"):
        load_data("hfds/name")


def test_fingerprint_tells_other_images(offer):
    offer(train=Indexed(0, 20))
    data = load_data("hfds/name")
    assert data.train.fingerprint() == load_data("hfds/name").train.fingerprint()
    assert data.train.fingerprint() != data.validation.fingerprint()
    offer(train=Indexed(0, 21))
    assert data.train.fingerprint() != load_data("hfds/name").train.fingerprint()


def test_streams_are_converted_as_all_images(offer):
    class Transparent(Stream):
        def __iter__(self):
            yield Image.new("RGBA", (1, 1)), 1

        def __len__(self):
            return 1

    offer(train=Transparent(), validation=Transparent())
    data = load_data("tfds/name:root")
    ((image, label),) = data.train
    assert (np.asarray(image).tolist(), label) == ([[[255] * 3]], 1)
    data.train.transform = lambda image: "changed"
    assert next(iter(data.train))[0] == "changed"


def test_streams_are_read_whole_by_one_process(offer):
    """timm's readers give each process a share of their own, and repeat images where they do not divide."""

    class Shared(Stream):
        def __init__(self):
            self.reader = Reader(["a", "b"])
            self.reader.dist_rank, self.reader.dist_num_replicas = 1, 2

    opened = []
    part = Shared()

    def create_dataset(name, split, is_training, **_):
        opened.append(is_training)
        return part

    offer()
    readers.create_dataset = create_dataset  # put back by the fixture
    load_data("tfds/name")
    assert set(opened) == {False}
    assert (part.reader.dist_rank, part.reader.dist_num_replicas) == (0, 1)


def test_torchvisions_files_are_read_by_the_same_rules(offer, tmp_path):
    """By its own loader it would take transparent pixels as black, and the orientation as it is stored."""

    class Files(Indexed):
        loader = staticmethod(lambda path: Image.open(path).convert("RGB"))

        def __getitem__(self, index):
            return self.loader(tmp_path / "a.png"), 0

    Image.new("RGBA", (1, 1)).save(tmp_path / "a.png")
    offer(train=Files(0, 20), validation=Files(0, 5))
    assert np.asarray(load_data("torch/imagenet").train[0][0]).tolist() == [[[255] * 3]]
    (tmp_path / "a.png").write_bytes(b"damaged")
    with pytest.raises(UnreadableImageError, match=r"a\.png cannot be read"):
        load_data("torch/imagenet").train[0]


@pytest.mark.parametrize(
    "spec",
    [
        "wds/:pipe:touch x",
        "wds/x:pipe:touch x",
        "WDS/:pipe:touch x",
        "wds/:a|b",
        "wds/:http://host/x",
        "wds/:s3:bucket",
        "wds/:s3://bucket",
        "tfds/x:gs://bucket",
        "torch/cifar10:$(touch x)",
        "hfds/a b",
        "hfds/a`b`",
        "hfds/a|b",
    ],
)
def test_commands_and_addresses_are_not_opened(spec):
    for load in (load_data, lambda spec: load_exam(spec, ("a", "b"))):
        with pytest.raises(ValueError, match=r"commands and addresses are not opened|is no name of a data set"):
            load(spec)


@pytest.mark.parametrize(
    "label", [torch.tensor([5, 0, 1]), np.array([1.0, 2.0]), torch.tensor(0.5), 1.5, (0, 1), "cat", {"name": 1}]
)
def test_labels_that_are_no_single_whole_number(offer, label):
    """As of torch/qmnist, of several attributes, or of a regression."""
    message = r"the data hfds/name cannot be used: a label is .*, which is no single whole number"
    for parts in ({"train": Labelled([0, label] * 5)}, {"train": Labelled([0, 1] * 5), "test": Labelled([0, label])}):
        offer(**parts)
        with pytest.raises(ValueError, match=message):
            load_data("hfds/name")
        with pytest.raises(ValueError, match=message):
            load_exam("hfds/name", ("ant", "zebra"))

    class Unknown(Indexed):  # until an image is read
        def __getitem__(self, index):
            return super().__getitem__(index)[0], label

    offer(test=Unknown(0, 3))
    with pytest.raises(ValueError, match="which is no single whole number"):
        load_exam("hfds/name", ("ant", "zebra")).images[0]


class Files(Indexed):
    """As timm's data sets over a reader that looks up an image's name in a file."""

    class FilesReader(Reader):
        def __init__(self, *contents):
            super().__init__(["a"])
            self.contents, self.asked = contents, []

        def __getitem__(self, index):
            return io.BytesIO(self.contents[index]), 0

        def filename(self, index):
            self.asked.append(index)
            return f"{index}.png"

        def iter_targets(self):
            self.asked.append("labels")
            return iter([0] * len(self.contents))

    def __init__(self, *contents):
        super().__init__(0, len(contents))
        self.reader = Files.FilesReader(*contents)


def test_readers_are_asked_once():
    """For names only where an image cannot be read."""
    file = io.BytesIO()
    Image.new("RGB", (2, 2)).save(file, "png")
    base = Files(file.getvalue(), b"no image")
    part = readers.ReaderImages(base, [0, 1])
    assert part.read(0)[1] == 0
    assert base.reader.asked == []
    with pytest.raises(UnreadableImageError, match=r"1 of FilesReader \(1\.png\) cannot be read"):
        part.read(1)
    assert base.reader.asked == [1]
    assert part.known_labels() == part.select([0, 1]).known_labels() == [0, 0]
    assert part.fingerprint() == part.fingerprint()
    assert base.reader.asked == [1, "labels"]


@pytest.mark.parametrize("label", [np.int64(1), np.uint8(1), np.array(1), torch.tensor(1), True])
def test_whole_numbers_of_other_types(offer, label):
    offer(train=Labelled([0, label] * 5))
    assert load_data("hfds/name").train.known_labels().count(1) > 3
