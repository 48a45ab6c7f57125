import pytest

from lambdanets.training.data import DataSpec, load_data, recipe_for_data, resolve_data
from lambdanets.training.data.exam import load_exam


@pytest.mark.parametrize(
    ("spec", "kind", "rest"),
    [
        ("digits", "digits", None),
        ("fashion-mnist", "fashion-mnist", None),
        ("fashion-mnist:/data/f", "fashion-mnist", "/data/f"),
        ("imagefolder:images", "imagefolder", "images"),
        ("hfds/uoft-cs/cifar10", "hfds/uoft-cs/cifar10", None),
        ("torch/cifar10:/data", "torch/cifar10", "/data"),
        ("wds/:/data", "wds/", "/data"),
    ],
)
def test_specifications(spec, kind, rest):
    assert resolve_data(spec) == DataSpec(kind, rest)


def test_a_folder_is_an_image_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    assert resolve_data("photos") == DataSpec("imagefolder", "photos")
    assert resolve_data(str(tmp_path)) == DataSpec("imagefolder", str(tmp_path))


def test_recipes_by_data(tmp_path):
    assert recipe_for_data("fashion-mnist:/data") == "fashion-mnist"
    assert recipe_for_data("digits") == "digits"
    assert recipe_for_data(str(tmp_path)) == "image-folder"
    assert recipe_for_data("hfds/x") == "image-folder"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digts", "unknown data 'digts'. Did you mean 'digits'"),
        ("fashion_mnist", "Did you mean 'fashion-mnist'"),
        ("xyz", "Known: digits, fashion-mnist, imagefolder"),
        ("imagefolder:", "names no folder; give imagefolder:DIR"),
        ("digits:here", "take no folder"),
    ],
)
def test_unknown_specifications(spec, message):
    with pytest.raises(ValueError, match=message):
        resolve_data(spec)


def test_missing_path():
    with pytest.raises(FileNotFoundError, match="data folder no/such does not exist"):
        resolve_data("no/such")


@pytest.mark.parametrize(
    ("name", "value"), [("batch_size", 0), ("batch_size", 2.5), ("seed", -1), ("validation_share", 2)]
)
def test_numbers_out_of_range(name, value):
    with pytest.raises(ValueError, match=f"^{name} is {value}; use a"):
        load_data("digits", **{name: value})
    if name == "batch_size":
        with pytest.raises(ValueError, match=f"^{name} is {value}; use an integer"):
            load_exam("digits", ["0"], batch_size=value)
