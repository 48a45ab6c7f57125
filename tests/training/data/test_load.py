import pytest

from lambdanets.training.data import DataSpec, load_data, recipe_for_data, resolve_data


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


@pytest.mark.parametrize("value", [2, 0, 0.6, "0.1"])
def test_numbers_out_of_range(value):
    with pytest.raises(ValueError, match=f"^validation_share is {value!r}; use a"):
        load_data("digits", validation_share=value)


def test_a_folder_in_the_home_folder(tmp_path, monkeypatch):
    """As in a recipe's file, where no shell writes the folder out."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "images").mkdir()
    assert resolve_data("~/images") == resolve_data("imagefolder:~/images") == DataSpec("imagefolder", "~/images")
