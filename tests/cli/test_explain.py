"""The command ``lambdanets explain`` as a user types it."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

import lambdanets
from lambdanets.explanation import learnt
from lambdanets.models.shipped import DEFAULT
from lambdanets.training.runs.folder import Run


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run of one epoch on pictures of two colours."""
    from lambdanets.training import Recipe, train

    folder = tmp_path_factory.mktemp("explain")
    random = np.random.default_rng(0)
    for channel, name in ((0, "red"), (2, "blue")):
        (folder / "data" / name).mkdir(parents=True)
        for index in range(20):
            pixels = random.integers(0, 120, (8, 8, 3))
            pixels[..., channel] += 100
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "data" / name / f"{index}.png")
    recipe = Recipe(
        name="test",
        model="lambda_resnet_tiny",
        data=str(folder / "data"),
        image_size=8,
        epochs=1,
        batch_size=16,
        lr=1e-3,
    )
    train(recipe, output=folder / "run[1]")
    (folder / "run[1]" / "samples").mkdir(exist_ok=True)
    (folder / "data" / "red" / "3.png").rename(folder / "run[1]" / "samples" / "red-3.png")
    (folder / "data" / "red" / "4.png").rename(folder / "run[1]" / "samples" / "red-4.png")
    return folder / "run[1]"


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def data_of(path):
    return json.loads(re.search(r'id="data">(.*?)</script>', path.read_text(encoding="utf-8")).group(1))


def test_a_run_and_one_of_its_images(run, run_folder, tmp_path):
    code, out, error = run("explain", run_folder)
    assert code == 0, error
    assert "Wrote explain.html (0." in out
    sample = Run.open(run_folder).samples[0]
    text = (tmp_path / "explain.html").read_text(encoding="utf-8")
    assert f"<h1>run[1] on {sample.name}</h1>" in text
    assert sample.name == "red-3.png"
    opened = Run.open(run_folder)
    image = opened.transform.build()(Image.open(sample).convert("RGB"))
    expected = lambdanets.explain(opened.load_model(), image)
    for name, made in expected.checks.items():
        assert re.search(rf"{name} .* {made.error:.1e}", out)
        assert f"{made.error:.1e}" in text
    assert f"Predicted: {opened.class_names[expected.target()]} " in out
    assert "What matters for" in text


def test_one_layer_of_another_image(run, run_folder, tmp_path):
    Image.new("RGB", (30, 20), (200, 10, 10)).save(tmp_path / "<b>.png")
    code, out, error = run(
        "explain", run_folder, "<b>.png", "--layer", "layer3.0.conv2", "--output", "one.html", "--no-decision"
    )
    assert code == 0, error
    assert "layer2.0.conv2" not in out
    assert [layer["name"] for layer in data_of(tmp_path / "one.html")["layers"]] == ["layer3.0.conv2"]
    assert "&lt;b&gt;.png" in (tmp_path / "one.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--layer", "layer3.conv2"], "unknown layer 'layer3.conv2'. Did you mean 'layer3.0.conv2'"),
        (["nothing.png"], "the image nothing.png does not exist"),
        (["broken.png"], "the image broken.png cannot be read"),
        (["--output", "no/where.html"], "--output no/where.html is in no, which is no folder"),
        (["--random-weights"], "--random-weights is for models of timm's registry"),
        (["--checkpoint", "middle"], "unknown checkpoint 'middle'"),
    ],
)
def test_what_is_wrong_is_said(run, run_folder, tmp_path, words, message):
    (tmp_path / "broken.png").write_bytes(b"no image")
    code, _, error = run("explain", run_folder, *words)
    assert code == 2
    assert error.startswith(f"Error: {message}")
    assert not (tmp_path / "explain.html").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lambda_resnet_tiny", "--checkpoint", "last"], "--checkpoint is 'last', for the weights of a run, and"),
        (["lambda_resnet_tiny", "--no-decision"], "--no-decision leaves out a part of the page of an image, and there"),
        (["a/config.json"], "a/config.json is a file; give a run folder, or the name of a model"),
        (["config.json"], "config.json is a file; give a run folder, or the name of a model"),
        (["a/b", "--checkpoint", "last"], "the run folder a/b does not exist"),
    ],
)
def test_what_means_nothing_is_refused(run, tmp_path, words, message):
    (tmp_path / "a").mkdir()
    for name in ("config.json", "a/config.json"):
        (tmp_path / name).write_text("{}")
    code, out, error = run("explain", *words)
    assert (code, out) == (2, "")
    assert error.startswith(f"Error: {message}")
    assert not (tmp_path / "explain.html").exists()


def test_an_image_is_read_before_a_model_is_loaded(run, monkeypatch):
    monkeypatch.setattr("lambdanets_cli.explain._create", lambda *_: pytest.fail("the model was made"))
    code, _, error = run("explain", "lambda_resnet26t", "nothing.png")
    assert code == 2
    assert error.startswith("Error: the image nothing.png does not exist")


def test_models_of_the_registry_say_that_their_weights_are_random(run, tmp_path):
    Image.new("RGB", (30, 20), (200, 10, 10)).save(tmp_path / "red.png")
    code, out, error = run("explain", "lambda_resnet_tiny.untrained", "red.png", "--no-decision")
    assert code == 0, error
    assert out.startswith("RANDOM WEIGHTS (none are published with its name)")
    assert "RANDOM WEIGHTS" in (tmp_path / "explain.html").read_text(encoding="utf-8")


def test_without_arguments_it_shows_weights_and_an_image_of_the_package(run, tmp_path):
    code, out, error = run("explain")
    assert code == 0, error
    assert f"<h1>{DEFAULT} on " in (tmp_path / "explain.html").read_text(encoding="utf-8")
    assert "RANDOM WEIGHTS" not in out
    code, _, error = run("explain", DEFAULT, "--random-weights")
    assert code == 2
    assert "a run has weights of its own" in error


def test_without_an_image_it_shows_what_was_learnt(run, tmp_path):
    code, out, error = run("explain", "lambda_resnet_tiny", "--output", "learnt.html")
    assert code == 0, error
    assert "or give 'lambda_resnet_tiny.digits' or 'lambda_resnet_tiny.fashion_mnist', weights" in out
    assert "RANDOM" not in out
    shipped = learnt(Run.open_trained(DEFAULT).load_model())
    text = (tmp_path / "learnt.html").read_text(encoding="utf-8")
    for found in shipped:
        assert re.search(rf"{found.layer} .* 7x7 .* {found.distance:.2f} .* {found.uniform:.2f} ", out)
        assert f"{found.distance:.2f}" in text
    data = data_of(tmp_path / "learnt.html")
    assert [table["name"] for table in data["tables"]] == [found.layer for found in shipped]
    assert data["layers"] == []
    code, _, error = run("explain", "lambda_resnet_tiny", "--layer", "layer3.conv2")
    assert (code, "Did you mean 'layer3.0.conv2'" in error) == (2, True)


def test_lambda_layers_of_others_are_adopted(run, tmp_path):
    Image.new("RGB", (30, 20), (200, 10, 10)).save(tmp_path / "red.png")
    code, out, error = run("explain", "lambda_resnet26t", "red.png", "--no-decision", "--random-weights")
    assert code == 0, error
    assert out.startswith("RANDOM WEIGHTS (as asked for)")
    assert "stages.2.1.self_attn" in out


def test_published_weights_that_cannot_be_had(run, tmp_path, monkeypatch):
    import timm

    def refuse(name, pretrained):
        assert pretrained
        raise OSError("no network.")

    monkeypatch.setattr(timm, "create_model", refuse)
    Image.new("RGB", (8, 8)).save(tmp_path / "black.png")
    code, _, error = run("explain", "lambda_resnet26t", "black.png")
    assert code == 2
    assert "the weights of lambda_resnet26t cannot be loaded: no network. --random-weights shows" in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lambda_resnet_tny", "x.png"], "unknown model 'lambda_resnet_tny'. Did you mean 'lambda_resnet_tiny'"),
        (["runs/nothing", "x.png"], "the run folder runs/nothing does not exist"),
        (["lambda_resnet_tiny.fashion_mist", "x.png"], "Did you mean 'lambda_resnet_tiny.fashion_mnist'"),
        (["lambda_resnet50.nosuch", "x.png"], "unknown weights 'lambda_resnet50.nosuch'"),
        (
            ["resnet18", "x.png", "--random-weights"],
            "model has no lambda layer to explain, got ResNet; lambda layers of",
        ),
    ],
)
def test_models_that_are_not_there(run, tmp_path, words, message):
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    code, _, error = run("explain", *words)
    assert code == 2
    assert message in error


def test_a_check_that_fails_is_an_error(run, run_folder, monkeypatch):
    monkeypatch.setattr("lambdanets.explanation.checks.TOLERANCE", 1e-9)
    code, _, error = run("explain", run_folder)
    assert code == 2
    assert "do not add up to the layer's output within 1e-09" in error
    assert torch.is_grad_enabled()
