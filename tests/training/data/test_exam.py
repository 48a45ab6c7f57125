import numpy as np
import pytest

from lambdanets.training.data.exam import class_indices, load_exam

CLASSES = ("ant", "cat", "dog")


def write(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


@pytest.mark.smoke
def test_every_image_of_class_folders_is_taken(tmp_path):
    write(tmp_path, *(f"{name}/{index}.png" for name in ("cat", "dog") for index in range(50)))
    exam = load_exam(str(tmp_path), CLASSES)
    assert (exam.part, exam.spec) == ("all", f"imagefolder:{tmp_path}")
    assert np.bincount(exam.images.labels).tolist() == [0, 50, 50]
    assert all(
        path.parent.name == CLASSES[label] for path, label in zip(exam.images.paths, exam.images.labels, strict=True)
    )
    assert exam.notes == ("No images of 1 class of the model: ant.",)


def test_one_image_is_enough(tmp_path):
    write(tmp_path, "dog/1.webp", "dog/notes.txt", "cat/readme", "loose.png")
    exam = load_exam(str(tmp_path), CLASSES)
    assert (exam.images.names, exam.images.labels) == (["dog/1.webp"], [2])
    assert exam.notes == (
        f"Left out of {tmp_path}: 3 files and folders, cat/readme, dog/notes.txt, loose.png.",
        "No images of 2 classes of the model: ant, cat.",
    )


@pytest.mark.parametrize(
    ("folders", "scored", "part"),
    [
        (["test"], "test", "test"),
        (["val"], "val", "validation"),
        (["Validation"], "Validation", "validation"),
        (["train", "val"], "val", "validation"),
        (["train", "val", "TEST"], "TEST", "test"),
        (["val", "test"], "test", "test"),
    ],
)
def test_the_rule_for_parts(tmp_path, folders, scored, part):
    for folder in folders:
        write(tmp_path / folder, "dog/1.png", "dog/2.png", "ant/1.png")
    exam = load_exam(str(tmp_path), CLASSES)
    assert exam.part == part
    assert exam.images.names == [f"{scored}/{name}" for name in ("ant/1.png", "dog/1.png", "dog/2.png")]
    left = sorted(f"{folder}/" for folder in folders if folder != scored)
    assert [note for note in exam.notes if "Left out" in note] == (
        [
            f"Left out of {tmp_path}: {len(left)} {'file or folder' if len(left) == 1 else 'files and folders'}, "
            f"{', '.join(left)}."
        ]
        if left
        else []
    )


def test_classes_that_are_named_as_parts(tmp_path):
    write(tmp_path, "test/1.png", "train/1.png")
    exam = load_exam(str(tmp_path), ("test", "train", "val"))
    assert (exam.part, exam.images.labels) == ("all", [0, 1])


@pytest.mark.parametrize("name", ["test", "val", "valid", "train"])
def test_a_name_of_a_part_and_of_a_class(tmp_path, name):
    """What is inside tells which of them it is."""
    classes = (name, "dog")
    write(tmp_path / "part" / name, f"{name}/1.png", "dog/1.png", "dog/2.png")
    write(tmp_path / "class", f"{name}/1.png", f"{name}/more/2.png", "dog/1.png")
    assert sorted(load_exam(str(tmp_path / "class"), classes).images.labels) == [0, 0, 1]
    data = tmp_path / "part" / name if name == "train" else tmp_path / "part"
    assert sorted(load_exam(str(data), classes).images.labels) == [0, 1, 1]


@pytest.mark.parametrize("name", ["test", "val", "valid", "train"])
@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["dog/1.png", "1.png"], r"images beside the class folders dog\. Let it"),
        (["cat/1.png"], r"folders of no class, cat\. Let it"),
    ],
)
def test_a_folder_that_may_be_a_part_or_a_class(tmp_path, name, names, message):
    write(tmp_path / name, *names)
    with pytest.raises(
        ValueError, match=rf"{name} can be a part of the data or the class '{name}' .* it holds {message}"
    ):
        load_exam(str(tmp_path), (name, "dog"))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train/dog/1.png"], "has train/ but neither test/ nor val/; give .*/train to score"),
        (["test/dog/1.png", "dog/1.png"], r"holds parts \(test/\) and classes \(dog\) side by side"),
        (
            ["dgo/1.png", "ant/1.png"],
            r"the model does not have: dgo; did you mean 'dog'\? Rename what is misspelt",
        ),
        (["x1/1.png", "x2/1.png"], "have 2 classes that the model does not have: x1, x2"),
        (["Dog/1.png"], "does not have: Dog"),
        (["dog/1.txt"], "holds no images in its class folders dog"),
        (["1.png"], r"has no class folders, .*`lambdanets predict` takes images without classes"),
    ],
)
def test_what_cannot_be_scored(tmp_path, names, message):
    write(tmp_path, *names)
    with pytest.raises(ValueError, match=message):
        load_exam(str(tmp_path), CLASSES)


def test_missing_folder_and_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        load_exam(str(tmp_path / "nowhere"), CLASSES)
    write(tmp_path, "a.zip")
    with pytest.raises(ValueError, match="is a file"):
        load_exam(str(tmp_path / "a.zip"), CLASSES)


def test_all_digits_with_the_models_indices():
    exam = load_exam("digits", tuple(str(digit) for digit in range(9, -1, -1)))
    assert (exam.part, len(exam.images)) == ("all", 1797)
    from sklearn.datasets import load_digits

    assert exam.images.labels == (9 - load_digits().target).tolist()


def test_fashion_mnist_without_the_training_files(tmp_path, idx_bytes):
    from lambdanets.training.data.fashion_mnist import CLASS_NAMES, TEST_IMAGES, TEST_LABELS

    (tmp_path / TEST_IMAGES).write_bytes(idx_bytes(np.full((6, 28, 28), 7)))
    (tmp_path / TEST_LABELS).write_bytes(idx_bytes(np.arange(6)))
    exam = load_exam(f"fashion-mnist:{tmp_path}", CLASS_NAMES[::-1])
    assert (exam.part, exam.images.labels) == ("test", [9, 8, 7, 6, 5, 4])


def test_class_indices_by_name():
    assert class_indices(("dog", "ant"), CLASSES, "x") == [2, 0]
