"""Weights to start from: whatever holds them, they are fitted and said to be, or refused by name."""

import dataclasses
import os

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from lambdanets import resize_positions
from lambdanets.training import Recipe, train
from lambdanets.training.data import load_data
from lambdanets.training.data.transforms import InputTransform
from lambdanets.training.engine.loaders import input_transform
from lambdanets.training.engine.plan import plan_recipe
from lambdanets.training.engine.start import initial_model
from lambdanets.training.engine.weights import open_source

TINY = "lambda_resnet_tiny.digits"


def start(init_from, *, classes=10, channels=1, size=8, **fields):
    """The model that a training of these choices begins with."""
    recipe = Recipe(**{"name": "r", "model": "lambda_resnet_tiny", "data": "digits", "init_from": init_from, **fields})
    names = tuple(map(str, range(classes)))
    data = dataclasses.replace(load_data("digits"), class_names=names, channels=channels)
    transform = InputTransform(size, channels, (0.5,) * channels, (0.5,) * channels)
    return initial_model(recipe, data, transform, open_source(init_from))


def same(model, weights, but=()):
    found = model.state_dict()
    assert found.keys() == weights.keys()
    return {name for name, tensor in found.items() if not torch.equal(tensor, weights[name])} == set(but)


@pytest.fixture(scope="module")
def shipped():
    return open_source(TINY).read()


def test_weights_of_the_package(shipped):
    begun = start(TINY)
    assert same(begun.model, shipped)
    assert begun.notes == (f"Starts from the weights of {TINY}.",)
    assert begun.weights == TINY


def test_another_number_of_classes(shipped):
    begun = start(TINY, classes=3)
    assert same(
        begun.model, {**shipped, **{f"fc.{key}": begun.model.fc.state_dict()[key] for key in ("weight", "bias")}}
    )
    assert begun.notes[1:] == (f"The classifier for 3 classes is new, with random weights; that of {TINY} was for 10.",)
    torch.manual_seed(0)
    expected = timm.create_model("lambda_resnet_tiny", num_classes=3, in_chans=1)
    torch.manual_seed(0)
    assert torch.equal(start(TINY, classes=3).model.fc.weight, expected.fc.weight)


def test_other_classes_of_the_same_number():
    names = ("zero", *map(str, range(1, 10)))
    data = dataclasses.replace(load_data("digits"), class_names=names)
    recipe = Recipe(name="r", model="lambda_resnet_tiny", data="digits", init_from=TINY)
    begun = initial_model(recipe, data, InputTransform(8, 1, (0.5,), (0.5,)), open_source(TINY))
    assert begun.notes[1].startswith("The classifier is kept; its classes were 0, 1, 2")


def test_colours_from_grey(shipped):
    begun = start(TINY, channels=3)
    torch.testing.assert_close(begun.model.conv1.weight.sum(1, keepdim=True), shipped["conv1.weight"])
    assert same(begun.model, {**shipped, "conv1.weight": begun.model.conv1.weight.detach()})
    assert begun.notes[1:] == ("The first convolution is fitted to images of 3 channels, from 1.",)


GLOBAL = {"lambda_args": {"scope": None}, "img_size": 16}


@pytest.fixture
def run(recipe, tmp_path):
    """A finished run of a model with global layers, at 16 pixels."""
    recipe = recipe.override(model_kwargs=GLOBAL, image_size=16, epochs=1, drop_path_rate=0.0)
    return train(recipe, output=tmp_path / "run").run


def test_a_run_at_another_size(run, recipe, tmp_path):
    """Its tables of positions are resampled; the new run does not need the old one again."""
    planned = plan_recipe(None, {"init_from": str(run.path), "data": recipe.data, "image_size": "32"})
    assert (planned.model, planned.model_kwargs["img_size"]) == ("lambda_resnet_tiny", 16)
    begun = start(str(run.path), classes=3, channels=3, size=32, model_kwargs=planned.model_kwargs)
    expected = resize_positions(run.load_model(), 32)
    assert same(begun.model, expected.state_dict())
    assert begun.recipe.model_kwargs["img_size"] == 32
    assert "3 tables of positions are resampled for the image size: layer2.0.conv2.positions" in begun.notes[-1]
    result = train(planned.override(epochs=1, batch_size=16, workers=0), output=tmp_path / "new")
    os.rename(run.path, tmp_path / "elsewhere")
    assert result.run.load_model().img_size == (32, 32)
    assert result.run.config["model"]["weights"] == str(run.path)


def test_mean_deviation_and_size_are_those_of_the_weights(recipe):
    data, before = load_data(recipe.data), InputTransform(20, 3, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    fitted = input_transform(data, dataclasses.replace(recipe, image_size=None), before)
    assert (fitted.image_size, fitted.mean, fitted.std) == (20, before.mean, before.std)
    assert input_transform(data, recipe, before).image_size == recipe.image_size
    assert input_transform(data, recipe, InputTransform(20, 1, (0.1,), (0.2,))).mean == data.mean


@pytest.mark.parametrize("form", ["safetensors", "torch.save", "nested", "half"])
def test_files(tmp_path, shipped, form):
    file = tmp_path / "w.bin"
    if form == "safetensors":
        save_file(shipped, file)
    elif form == "half":
        shipped = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in shipped.items()}
        torch.save(shipped, file)
        shipped = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in shipped.items()}
    else:
        wrapped = {f"module.{name}": tensor for name, tensor in shipped.items()}
        torch.save(shipped if form == "torch.save" else {"state_dict": wrapped, "epoch": 3}, file)
    assert same(start(str(file)).model, shipped)


def test_pretrained_weights_of_timm(tmp_path):
    model = timm.create_model("test_vit", num_classes=7)
    timm.models.save_for_hf(model, tmp_path / "hub", safe_serialization=True)
    name = f"local-dir:{tmp_path / 'hub'}"
    planned = plan_recipe(None, {"init_from": name, "data": "digits"})
    assert planned.model == "test_vit"
    begun = start(name, channels=3, size=64, model="test_vit", model_kwargs=planned.model_kwargs)
    assert begun.model.head.out_features == 10
    stored = load_file(tmp_path / "hub" / "model.safetensors")
    different = {name for name, tensor in begun.model.state_dict().items() if not torch.equal(tensor, stored[name])}
    assert different == {"head.weight", "head.bias", "pos_embed"}
    assert begun.notes[-1].startswith("1 table of positions is resampled for the image size: pos_embed, of 1 x ")


def refusals(tmp_path, shipped):
    name = "layer1.0.conv1.weight"
    without = {key: tensor for key, tensor in shipped.items() if key != name}
    return {
        "missing": ({**without}, rf"{name} is missing"),
        "unknown": ({**shipped, "more": torch.ones(1)}, "more is unknown"),
        "shape": ({**shipped, name: shipped[name][:1]}, rf"{name} is \(1, "),
        "nan": ({**shipped, name: shipped[name] * float("nan")}, "not finite"),
    }


@pytest.mark.parametrize("what", ["missing", "unknown", "shape", "nan"])
def test_what_does_not_fit_is_named(tmp_path, shipped, what):
    weights, message = refusals(tmp_path, shipped)[what]
    save_file({key: tensor.contiguous() for key, tensor in weights.items()}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=rf"^the weights .*w\.safetensors .*{message}"):
        start(str(tmp_path / "w.safetensors"))


@pytest.mark.parametrize("kind", ["sparse", "nested", "meta", "quantised"])
@pytest.mark.parametrize("name", ["layer1.0.conv1.weight", "fc.weight", "conv1.weight", "more"])
def test_tensors_that_are_not_plain(tmp_path, shipped, kind, name):
    make = {
        "sparse": lambda tensor: tensor.to_sparse(),
        "nested": lambda tensor: torch.nested.nested_tensor([tensor]),
        "meta": lambda tensor: tensor.to("meta"),
        "quantised": lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
    }[kind]
    torch.save({**shipped, name: make(shipped.get(name, torch.ones(2, 2)))}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=rf"^the weights .*w\.pth has 1 tensor that is .*, {name} the first"):
        start(str(tmp_path / "w.pth"))


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_sources_that_are_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"w": torch.ones(1)}, "args": Bomb()}, "bomb.pt")
    with pytest.raises(ValueError, match=r"bomb\.pt is a pickle that holds more than weights"):
        start("bomb.pt")
    assert not (tmp_path / "exploded").exists()
    (tmp_path / "folder").mkdir()
    for name, error, message in (
        ("gone.safetensors", FileNotFoundError, "init_from is 'gone.safetensors', and nothing is there"),
        ("folder", FileNotFoundError, "folder is not a run folder"),
        ("resnet5", ValueError, "unknown weights 'resnet5'. Did you mean"),
        ("local-dir:gone", ValueError, "init_from is 'local-dir:gone', which cannot be opened"),
    ):
        with pytest.raises(error, match=message):
            open_source(name)
    with pytest.raises(ValueError, match=r"weights of the model 'lambda_resnet_tiny', and model is 'resnet18'; give"):
        start(TINY, model="resnet18")
    with pytest.raises(ValueError, match=r"and model is 'local-dir:x', which names weights too; give one of both"):
        start(TINY, model="local-dir:x")
