"""Weights that come with the package: what timm makes of them, and that they are what their cards say."""

import json
import os

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import lambdanets  # noqa: F401  # registers the models
from lambdanets.models.shipped import DEFAULT, FOLDER, shipped_cfgs, shipped_folder, shipped_names
from lambdanets.training import evaluate_run

NAMES = shipped_names()


def result_of(name):
    return json.loads((FOLDER / name / "result.json").read_text(encoding="utf-8"))["test"]


def test_there_are_some_and_each_is_small():
    assert NAMES[0] == DEFAULT == "lambda_resnet_tiny.digits"
    assert all((FOLDER / name / "best.safetensors").stat().st_size < 2_000_000 for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_timm_makes_the_model_with_its_weights(name):
    model = timm.create_model(name, pretrained=True)
    weights = load_file(FOLDER / name / "best.safetensors")
    state = model.state_dict()
    assert set(weights) == set(state)
    assert all(torch.equal(value, weights[key]) for key, value in state.items())
    config = model.pretrained_cfg
    assert len(config["label_names"]) == model.num_classes
    with safe_open(FOLDER / name / "best.safetensors", "pt") as file:
        assert json.loads(file.metadata()["class_names"]) == list(config["label_names"])
    assert config["input_size"][0] == model.in_chans
    assert model.eval()(torch.zeros(1, *config["input_size"])).shape == (1, model.num_classes)


@pytest.mark.parametrize("name", NAMES)
def test_weights_have_the_accuracy_that_the_card_states(name, tmp_path):
    expected = result_of(name)
    assert f"{expected['top1']:.2%} of {expected['images']:,} images" in (FOLDER / name / "README.md").read_text()
    try:
        # Of image folders the card's data are where the user has them: CIFAR10=/data/cifar10 pytest ...
        evaluation = evaluate_run(name, data=os.environ.get(name.partition(".")[2].upper()), output=tmp_path, workers=0)
    except FileNotFoundError as error:
        pytest.skip(f"the data are not on this machine: {error}")
    assert (evaluation.scores.images, evaluation.scores.top1) == (expected["images"], expected["top1"])


def test_without_weights_images_have_three_channels():
    assert timm.create_model("lambda_resnet_tiny").in_chans == 3
    assert timm.create_model("lambda_resnet_tiny", pretrained=True).in_chans == timm.create_model(DEFAULT).in_chans


def test_weights_serve_other_channels_and_classes():
    model = timm.create_model("lambda_resnet_tiny.digits", pretrained=True, in_chans=3, num_classes=4).eval()
    grey = timm.create_model("lambda_resnet_tiny.digits", pretrained=True, num_classes=4).eval()
    images = torch.randn(2, 1, 8, 8)
    expected = grey.forward_features(images)
    torch.testing.assert_close(model.forward_features(images.expand(2, 3, 8, 8)), expected, atol=1e-4, rtol=1e-4)


def test_other_names_are_none():
    for name in ("lambda_resnet_tiny", "lambda_resnet_tiny.mnist", "", ".", "../weights"):
        assert shipped_folder(name) is None
    assert shipped_cfgs("lambda_resnet50") == {}
