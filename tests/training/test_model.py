import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lambdanets.training.model import build_model, load_weights, save_weights

NAMES = ("a", "b", "c")


def small(num_classes=3, channels=1, **kwargs):
    return build_model("lambda_resnet_tiny", num_classes=num_classes, in_chans=channels, **kwargs)


def test_weights_come_back(tmp_path):
    one, two = small(), small()
    save_weights(tmp_path / "w.safetensors", one.state_dict(), {"epoch": 3})
    load_weights(two, tmp_path / "w.safetensors", NAMES)
    for name, tensor in two.state_dict().items():
        torch.testing.assert_close(tensor, one.state_dict()[name], rtol=0, atol=0)


def test_shared_tensors_can_be_saved(tmp_path):
    table = torch.arange(6.0)
    save_weights(tmp_path / "w.safetensors", {"one": table, "two": table, "row": table.view(2, 3).T}, {})
    loaded = load_file(tmp_path / "w.safetensors")
    assert loaded["one"].tolist() == loaded["two"].tolist() == table.tolist()
    assert loaded["row"].tolist() == table.view(2, 3).T.tolist()


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


@pytest.mark.parametrize("classes", [2, 4])
def test_other_number_of_classes(tmp_path, classes):
    save_weights(tmp_path / "w.safetensors", small(classes).state_dict(), {})
    with pytest.raises(ValueError, match=rf"w\.safetensors have {classes} classes, but the data have 3 \(a, b, c\)"):
        load_weights(small(), tmp_path / "w.safetensors", NAMES)


def test_weights_of_another_model(tmp_path):
    save_weights(tmp_path / "w.safetensors", small(channels=3).state_dict(), {})
    with pytest.raises(ValueError, match=r"do not fit the model: conv1.*weight is \(.*3, 3, 3\), not \(.*1, 3, 3\)"):
        load_weights(small(), tmp_path / "w.safetensors", NAMES)


def test_missing_and_unknown_weights_are_named(tmp_path):
    weights = small().state_dict()
    del weights["bn1.weight"]
    weights["extra"] = torch.zeros(1)
    save_weights(tmp_path / "w.safetensors", weights, {})
    with pytest.raises(ValueError, match=r"bn1.weight is missing, .*; extra is unknown"):
        load_weights(small(), tmp_path / "w.safetensors", NAMES)


def test_damaged_weights(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, small().state_dict(), {})
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"w\.safetensors are damaged"):
        load_weights(small(), path, NAMES)


def test_missing_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors do not exist"):
        load_weights(small(), tmp_path / "none.safetensors", NAMES)
