import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from lambdanets.training.runs.model import build_model, build_model_for_size, read_weights, save_weights

NAMES = ("a", "b", "c")


def small(num_classes=3, channels=1, **kwargs):
    return build_model("lambda_resnet_tiny", num_classes=num_classes, in_chans=channels, **kwargs)


def test_weights_come_back(tmp_path):
    one, two = small(), small()
    save_weights(tmp_path / "w.safetensors", one.state_dict(), {"epoch": 3})
    two.load_state_dict(read_weights(two, tmp_path / "w.safetensors", NAMES))
    for name, tensor in two.state_dict().items():
        torch.testing.assert_close(tensor, one.state_dict()[name], rtol=0, atol=0)


def test_shared_tensors_can_be_saved(tmp_path):
    table = torch.arange(6.0)
    save_weights(tmp_path / "w.safetensors", {"one": table, "two": table, "row": table.view(2, 3).T}, {})
    loaded = load_file(tmp_path / "w.safetensors")
    assert loaded["one"].tolist() == loaded["two"].tolist() == table.tolist()
    assert loaded["row"].tolist() == table.view(2, 3).T.tolist()


def test_equal_weights_are_equal_files_that_others_may_read(tmp_path):
    """safetensors writes metadata in another order each time, and for the user alone."""
    facts = {"model": "m", "epoch": 3, "validation_top1": 0.5, "ü": 'a"\\\t\x01\x7f'}
    files = [tmp_path / f"{index}.safetensors" for index in range(6)]
    for file in files:
        save_weights(file, {"b": torch.ones(2), "a": torch.zeros(3)}, facts)
    assert len({file.read_bytes() for file in files}) == 1
    with safe_open(files[0], "pt") as opened:
        assert set(opened.metadata()) == set(facts)
        assert opened.metadata()["epoch"] == "3"
        assert opened.get_tensor("b").tolist() == [1, 1]
    (tmp_path / "new").touch()
    assert files[0].stat().st_mode == (tmp_path / "new").stat().st_mode


def test_weights_that_are_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(ValueError, match="are a folder, a pipe or a device; give a safetensors file"):
            read_weights(small(), path, NAMES)


def test_arguments_reach_the_model():
    model = small(drop_rate=0.25, drop_path_rate=0.1, stages="CCCC")
    assert model.drop_rate == 0.25
    assert model.conv1.in_channels == 1
    assert isinstance(model.layer4[0].conv2, nn.Conv2d)


def test_unknown_model_shows_the_nearest():
    with pytest.raises(ValueError, match=r"unknown model 'lambda_resnet_tny'\. Did you mean 'lambda_resnet_tiny'"):
        build_model("lambda_resnet_tny", num_classes=3, in_chans=1)


def test_argument_that_the_model_does_not_take():
    with pytest.raises(ValueError, match=r"'lambda_resnet_tiny' cannot be made with .*'colour'"):
        small(colour="red")


def for_size(name, size, **kwargs):
    torch.manual_seed(0)
    return build_model_for_size(name, size, num_classes=3, in_chans=1, drop_rate=0.0, drop_path_rate=0.0, **kwargs)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("vit_tiny_patch16_224", {"img_size": 32}),  # refuses other sizes, takes img_size
        ("xcit_nano_12_p16_224", {"img_size": 32}),  # takes img_size without a need
        ("lambda_resnet_tiny", {}),  # takes every size
        ("test_resnet", {}),  # takes no img_size
    ],
)
def test_a_model_is_told_the_size_where_it_asks_for_one(name, kwargs):
    model, used = for_size(name, 32)
    assert used == kwargs
    assert model.training
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 3)


def test_the_trial_leaves_no_trace_in_the_weights():
    """A model that fails before the one that is taken, and the image it is tried on, draw no random numbers."""
    model, used = for_size("crossvit_tiny_240", 32)  # made for one size, but it is img_size that it cannot take
    after = torch.rand(1)
    torch.manual_seed(0)
    expected = build_model("crossvit_tiny_240", num_classes=3, in_chans=1, **used)
    assert torch.equal(after, torch.rand(1))
    for (name, one), two in zip(model.state_dict().items(), expected.state_dict().values(), strict=True):
        assert torch.equal(one, two), name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "vit_tiny_patch16_224",
            r"of 8x8 pixels \(Input height \(8\) .*\)\. It was made for 224: give --image-size 224",
        ),
        ("halonet26t", r"of 8x8 pixels\. It was made for 256: give --image-size 256"),
    ],
)
def test_a_size_that_a_model_does_not_take(name, message):
    with pytest.raises(ValueError, match=f"the model '{name}' does not take images {message}"):
        for_size(name, 8)


def test_a_given_img_size_is_kept():
    with pytest.raises(ValueError, match=r"of 32x32 pixels \(Input height \(32\) doesn't match model \(64\)"):
        for_size("vit_tiny_patch16_224", 32, img_size=64)


def test_a_model_that_is_no_classifier():
    with pytest.raises(ValueError, match=r"for one image it gives list, not \(1, 3\)"):
        for_size("test_resnet", 32, features_only=True)


@pytest.mark.parametrize("classes", [2, 4])
def test_other_number_of_classes(tmp_path, classes):
    save_weights(tmp_path / "w.safetensors", small(classes).state_dict(), {})
    with pytest.raises(ValueError, match=rf"w\.safetensors have {classes} classes, but the data have 3 \(a, b, c\)"):
        read_weights(small(), tmp_path / "w.safetensors", NAMES)


def test_weights_of_another_model(tmp_path):
    save_weights(tmp_path / "w.safetensors", small(channels=3).state_dict(), {})
    with pytest.raises(ValueError, match=r"do not fit the model: conv1.*weight is \(.*3, 3, 3\), not \(.*1, 3, 3\)"):
        read_weights(small(), tmp_path / "w.safetensors", NAMES)


def test_missing_and_unknown_weights_are_named(tmp_path):
    weights = small().state_dict()
    del weights["bn1.weight"]
    weights["extra"] = torch.zeros(1)
    save_weights(tmp_path / "w.safetensors", weights, {})
    with pytest.raises(ValueError, match=r"bn1.weight is missing, .*; extra is unknown"):
        read_weights(small(), tmp_path / "w.safetensors", NAMES)


def test_damaged_weights(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, small().state_dict(), {})
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"w\.safetensors are damaged"):
        read_weights(small(), path, NAMES)


def test_missing_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors do not exist"):
        read_weights(small(), tmp_path / "none.safetensors", NAMES)
