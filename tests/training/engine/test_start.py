"""What can be known before work is said before work: one message, and no run folder."""

import dataclasses
import io
import json
import logging

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file

from lambdanets.training import Run, get_recipe, list_recipes, plan_recipe, train
from lambdanets.training.data import load_data
from lambdanets.training.data.transforms import InputTransform
from lambdanets.training.engine.start import check_training_step, describe_without_effect, initial_model
from lambdanets.training.runs.model import build_model


def write_images(folder, counts, size=8):
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (size, size), (index, len(name), 0)).save(folder / name / f"{index}.png")
    return str(folder)


@pytest.mark.parametrize(
    ("counts", "changes", "message"),
    [
        ({"cat": 9}, {}, r"have 1 class \(cat\); a classifier needs at least 2"),
        ({"cat": 9, "dog": 2}, {}, "dog holds 2 images; at least 3 are needed"),
        (
            {"cat": 9, "dog": 9},
            {"batch_size": 1},
            r"batch_size is 1 for 14 .* on 1 process, .* larger --batch",
        ),
        ({"cat": 9, "dog": 9}, {"precision": "fp16"}, "precision is 'fp16', which needs a GPU"),
        ({"cat": 9, "dog": 9}, {"optimizer": "adamv"}, "unknown optimizer 'adamv'. Did you mean"),
        (
            {"cat": 9, "dog": 9},
            {"model": "local-dir:no/where"},
            "'local-dir:no/where' and its weights cannot be",
        ),
        ({"cat": 9, "dog": 9}, {"model": "local-dir:"}, "'local-dir:' and its weights cannot be loaded"),
    ],
)
@pytest.mark.skipif(torch.accelerator.is_available(), reason="fp16 is refused where there is no GPU")
def test_refused_before_work(recipe, tmp_path, counts, changes, message):
    data = write_images(tmp_path / "data", counts)
    with pytest.raises(ValueError, match=message):
        train(recipe.override(data=data, **changes), output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", 2**32),
        ("seed", -1),
        ("workers", 10000),
        ("lr", float("nan")),
        ("lr", 10**400),
        ("epochs", True),
        ("image_size", 10**9),
        ("batch_size", 10**9),
        ("model", 3),
        ("model_kwargs", {"pretrained": True}),
    ],
)
def test_choices_out_of_range(recipe, name, value):
    with pytest.raises(ValueError, match=rf"^{name}"):
        recipe.override(**{name: value})


def test_unreadable_images_are_found_before_the_run_folder_is_made(recipe, tmp_path):
    data = write_images(tmp_path / "data", {"cat": 9, "dog": 9})
    for name in ("cat/1.png", "dog/2.png"):
        content = (tmp_path / "data" / name).read_bytes()
        (tmp_path / "data" / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"cannot be read: .*; nor can 1 other: "):
        train(recipe.override(data=data), output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_output_that_cannot_be_written(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("lambdanets.files.os.access", lambda *_: False)  # root may write anywhere
    with pytest.raises(ValueError, match=rf"run cannot be written: no permission for {tmp_path}; give another folder"):
        train(recipe, output=tmp_path / "run")


def model_for(name, channels=3):
    return build_model(name, num_classes=2, in_chans=channels)


@pytest.mark.parametrize(
    ("name", "size", "images", "batch_size", "processes", "fits"),
    [
        ("lambda_resnet_tiny", 8, 10, 1, 1, False),  # one position in the last stage
        ("lambda_resnet_tiny", 8, 10, 2, 1, True),
        ("lambda_resnet_tiny", 8, 10, 2, 2, False),
        ("lambda_resnet_tiny", 8, 1, 32, 1, False),  # a batch of all images, of which there is one
        ("lambda_resnet_tiny", 8, 3, 32, 2, True),
        ("test_vit", 160, 10, 1, 1, True),  # no batch-norm
    ],
)
def test_smallest_batch(recipe, name, size, images, batch_size, processes, fits):
    data = load_data("digits")
    data = dataclasses.replace(data, train=range(images), channels=3)
    recipe = recipe.override(model=name, batch_size=batch_size)
    model = model_for(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    drawn = torch.get_rng_state()
    if fits:
        check_training_step(model, recipe, data, size, processes)
    else:
        with pytest.raises(ValueError, match=rf"batch_size is {batch_size} for {images} .* on {processes} "):
            check_training_step(model, recipe, data, size, processes)
    assert model.training
    assert torch.equal(drawn, torch.get_rng_state())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.fixture
def hub(tmp_path):
    """A folder as timm writes it, of a model with seven classes."""
    torch.manual_seed(3)
    model = timm.create_model("test_resnet", num_classes=7)
    timm.models.save_for_hf(model, tmp_path / "hub", safe_serialization=True)
    return tmp_path / "hub"


def started(recipe, name, classes=10):
    data = dataclasses.replace(load_data("digits"), class_names=tuple(map(str, range(classes))), channels=3)
    transform = InputTransform(32, 3, (0.5,) * 3, (0.5,) * 3)
    return initial_model(dataclasses.replace(recipe, model=name, drop_path_rate=0.0), data, transform)


def test_weights_that_the_name_has_are_loaded(recipe, hub):
    start = started(recipe, f"local-dir:{hub}", classes=7)
    stored = load_file(hub / "model.safetensors")
    for name, tensor in start.model.state_dict().items():
        torch.testing.assert_close(tensor, stored[name], rtol=0, atol=0)
    assert (start.weights, start.recipe.model) == (f"local-dir:{hub}", "test_resnet")
    assert start.notes == (f"Starts from the weights of local-dir:{hub}.",)


@pytest.mark.parametrize(("chosen", "used"), [(0.0, 0.25), (0.5, 0.5)])
def test_a_stored_drop_rate_is_the_recipes(recipe, hub, chosen, used):
    config = json.loads((hub / "config.json").read_text())
    (hub / "config.json").write_text(json.dumps({**config, "model_args": {"drop_rate": 0.25}}))
    start = started(dataclasses.replace(recipe, drop_rate=chosen), f"local-dir:{hub}", classes=7)
    assert (start.model.drop_rate, start.recipe.drop_rate) == (used, used)
    assert "drop_rate" not in start.recipe.model_kwargs
    assert "drop_rate" not in plan_recipe(None, {"init_from": f"local-dir:{hub}", "data": "digits"}).model_kwargs


def test_new_classifier_is_told(recipe, hub):
    start = started(recipe, f"local-dir:{hub}")
    stored = load_file(hub / "model.safetensors")
    for name, tensor in start.model.state_dict().items():
        if not name.startswith("fc."):
            torch.testing.assert_close(tensor, stored[name], rtol=0, atol=0)
    assert start.model.fc.out_features == 10
    assert (
        f"The classifier for 10 classes is new, with random weights; that of local-dir:{hub} was for 7." in start.notes
    )
    assert any("timm: Missing keys (fc.weight, fc.bias)" in note for note in start.notes)


def test_weights_that_are_not_there_or_do_not_fit(recipe, hub):
    weights = load_file(hub / "model.safetensors")
    left_out = next(name for name in weights if name.endswith("weight"))
    save_file({name: tensor for name, tensor in weights.items() if name != left_out}, hub / "model.safetensors")
    with pytest.raises(ValueError, match="and its weights cannot be loaded"):
        started(recipe, f"local-dir:{hub}", classes=7)
    level = logging.getLogger("timm.models").level
    # With another classifier timm takes what there is.
    assert any(left_out in note for note in started(recipe, f"local-dir:{hub}").notes)
    assert logging.getLogger("timm.models").level == level
    (hub / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="and its weights cannot be loaded"):
        started(recipe, f"local-dir:{hub}")


def test_weights_that_a_tag_names_are_told_not_to_load(recipe):
    (note,) = started(recipe, "test_resnet.r160_in1k").notes
    assert note.startswith("The weights 'r160_in1k' that test_resnet.r160_in1k names are not loaded")
    assert started(recipe, "test_resnet").notes == ()


def test_fields_that_change_nothing_are_told(recipe):
    changed = recipe.replace({"clip_mode": "agc", "min_lr": 1e-5, "schedule": "constant", "scale": (0.5, 1.0)})
    assert describe_without_effect(changed) == (
        "min_lr is 1e-05 and changes nothing: it needs the schedule cosine or one-cycle.",
        "clip_mode is 'agc' and changes nothing: it needs clip_grad.",
        "scale is (0.5, 1.0) and changes nothing: it needs the crop resized.",
    )
    assert (
        describe_without_effect(changed.replace({"clip_grad": 1.0, "schedule": "cosine", "crop": "resized"}))
        == (
            "rotation is 5 and changes nothing: it needs another crop than resized.",
            "padding is 1 and changes nothing: it needs the crop padded.",
        )[::-1]
    )
    for name in list_recipes():
        assert describe_without_effect(get_recipe(name)) == ()


def test_what_changes_nothing_is_said_at_the_start(recipe, tmp_path, monkeypatch):
    text = io.StringIO()
    monkeypatch.setattr("lambdanets.training.engine.fit._run", lambda *_: None)
    train(recipe.override(clip_mode="agc"), output=tmp_path / "run", console=Console(file=text, width=300))
    assert "clip_mode is 'agc' and changes nothing: it needs clip_grad." in text.getvalue().splitlines()


def test_run_does_not_need_the_folder_of_the_weights_again(recipe, hub, tmp_path):
    data = write_images(tmp_path / "data", {"cat": 9, "dog": 9})
    (tmp_path / "data" / "notes.txt").touch()
    text = io.StringIO()
    console = Console(file=text, width=300)
    chosen = recipe.override(data=data, model=f"local-dir:{hub}", image_size=32, epochs=1, batch_size=4)
    train(dataclasses.replace(chosen, drop_path_rate=0.0), output=tmp_path / "run", console=console)
    (hub / "config.json").unlink()
    run = Run.open(tmp_path / "run")
    assert run.config["model"] == {
        "name": "test_resnet",
        "kwargs": run.config["model"]["kwargs"],
        "weights": f"local-dir:{hub}",
    }
    run.load_model()
    for line in (
        f"Left out of {data}: 1 file or folder, notes.txt.",
        "Each epoch takes 12 of the 14 training images, in full batches of 4; a different 2 are left out in each.",
        f"Starts from the weights of local-dir:{hub}.",
    ):
        assert line in text.getvalue().splitlines()


def test_numbers_of_weights_are_checked(recipe, tmp_path):
    from lambdanets.training.runs.model import read_weights, save_weights

    model = model_for("lambda_resnet_tiny")
    good = model.state_dict()
    for change, message in (
        (lambda tensor: torch.full_like(tensor, np.nan), "not finite, in conv1"),
        (lambda tensor: tensor.to(torch.int64), "has numbers of type torch.int64, not torch.float32"),
        (lambda tensor: tensor.double(), "has numbers of type torch.float64"),
    ):
        name = next(iter(good))
        save_weights(tmp_path / "w.safetensors", {**good, name: change(good[name])}, {})
        with pytest.raises(ValueError, match=message):
            read_weights(model, tmp_path / "w.safetensors", ("a", "b"))
