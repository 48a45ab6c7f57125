"""``lambdanets export`` as a user types it, and the file as a user without this package uses it."""

import json
import re

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from helpers import random_norms
from lambdanets.interop.export import export
from lambdanets.models import lambda_resnet
from lambdanets.training import Recipe, Run, predict_images
from lambdanets.training.data import FileImages, ImageData
from lambdanets.training.data.transforms import InputTransform
from lambdanets.training.runs.model import save_weights

CLASSES = ("blue", "grün", "red")


def random_weights(model, seed):
    """Weights under which the lambda layers count: fresh models start with scales of zero."""
    generator = torch.Generator().manual_seed(seed)
    random_norms(model, generator)
    nn.init.normal_(model.fc.weight, std=0.5, generator=generator)
    return model.state_dict()


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run folder as a training leaves it."""
    recipe = Recipe(name="test", model="lambda_resnet_tiny", data="digits")
    data = ImageData.photographs("imagefolder:/colours", CLASSES, FileImages([], []), FileImages([], []), None)
    transform = InputTransform(20, 3, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), interpolation="bicubic", crop_pct=0.8)
    run = Run.create(tmp_path_factory.mktemp("runs") / "run", recipe, data, transform)
    model = timm.create_model("lambda_resnet_tiny", num_classes=3)
    for seed, name in enumerate(("best", "last")):
        save_weights(run.path / f"{name}.safetensors", random_weights(model, seed), {})
    return run.path


def prepare(image, steps):
    """What the file's metadata say, by Pillow and NumPy alone."""
    image = image.convert(steps["color"])
    ratio = steps["resize"]["shorter_side"] / min(image.size)
    resample = getattr(Image.Resampling, steps["interpolation"].upper())
    image = image.resize([int(side * ratio) for side in image.size], resample)
    width, height = steps["crop"]["width"], steps["crop"]["height"]
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    pixels = np.asarray(image.crop((left, top, left + width, top + height)), dtype=np.float32) * steps["scale"]
    pixels = (pixels - steps["mean"]) / steps["std"]
    return pixels.transpose(2, 0, 1)[None].astype(steps["dtype"])


def test_onnx_file_is_used_without_this_package(run, run_folder, tmp_path):
    code, output, error = run("export", run_folder)
    assert code == 0, error
    path = run_folder / "best.onnx"
    assert f"Wrote {path}" in output
    assert "3 lambda layers switched to the kernel 'portable'" in output
    assert "20 x 20" in output
    assert "20 x 30" in output
    assert all(f"batch {batch}" in output for batch in (1, 2, 3))

    pixels = np.random.default_rng(0).integers(0, 255, (37, 50, 3)).astype(np.uint8)
    image = Image.fromarray(pixels).resize((100, 74))
    image.save(tmp_path / "image.png")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    names = json.loads(metadata["class_names"])
    (probabilities,) = session.run(None, {"image": prepare(image, json.loads(metadata["preprocessing"]))})
    (prediction,) = predict_images(run_folder, [tmp_path / "image.png"])
    assert dict(zip(names, probabilities[0], strict=True)) == pytest.approx(dict(prediction.classes), abs=1e-4)
    assert max(probabilities[0]) - min(probabilities[0]) > 0.05

    code, _, error = run("export", run_folder)
    assert (code, f"{path} exists" in error) == (2, True)


def test_torch_export_of_the_last_weights(run, run_folder, tmp_path):
    path = tmp_path / "model.pt2"
    code, output, error = run("export", run_folder, "--checkpoint", "last", "--output", path, "--logits")
    assert code == 0, error
    assert "torch-export: image (batch, channels, height, width) in, logits (batch, classes) out" in output
    extra = {"metadata.json": ""}
    model = torch.export.load(path, extra_files=extra).module()
    assert json.loads(extra["metadata.json"])["class_names"] == list(CLASSES)
    images = torch.randn(2, 3, 17, 24)
    with torch.no_grad():
        torch.testing.assert_close(model(images), Run.open(run_folder).load_model("last")(images), atol=1e-4, rtol=1e-4)


def test_a_model_of_the_family_from_pictures_to_a_file(run, tmp_path, monkeypatch):
    """train, evaluate, export and predict with lambda_resnet50, few and narrow blocks of it; file and model agree."""
    whole = lambda_resnet._family
    few = {"channels": (16, 32, 32, 64)}
    monkeypatch.setattr(
        lambda_resnet,
        "_family",
        lambda variant, layers, pretrained, given: whole(variant, (1, 1, 1, 1), pretrained, {**few, **given}),
    )
    data, folder = tmp_path / "pictures", tmp_path / "run"
    random = np.random.default_rng(0)
    for channel, name in enumerate(("red", "green")):
        (data / name).mkdir(parents=True)
        for index in range(8):
            pixels = random.integers(0, 120, (40, 32, 3))
            pixels[..., channel] += 100
            Image.fromarray(pixels.astype(np.uint8)).save(data / name / f"{index}.png")
    sizes = ("--image-size", 32, "--epochs", 1, "--batch-size", 8, "--workers", 0)
    commands = (
        ("train", "--data", data, "--model", "lambda_resnet50", *sizes, "--output", folder),
        ("evaluate", folder),
        ("export", folder, "--format", "torch-export"),
        ("predict", folder, data / "red" / "3.png", "--json"),
    )
    for words in commands:
        code, output, error = run(*words)
        assert code == 0, error
    (prediction,) = json.loads(output)
    extra = {"metadata.json": ""}
    model = torch.export.load(folder / "best.pt2", extra_files=extra).module()
    metadata = json.loads(extra["metadata.json"])
    with Image.open(data / "red" / "3.png") as image:
        (probabilities,) = model(torch.from_numpy(prepare(image, metadata["preprocessing"]))).tolist()
    expected = {each["class"]: each["probability"] for each in prediction["classes"]}
    assert dict(zip(metadata["class_names"], probabilities, strict=True)) == pytest.approx(expected, abs=1e-4)


def test_differing_file_is_told_with_the_table(run, run_folder, monkeypatch):
    def differ(model, path, **options):
        export._check_difference([export.Check(2, 20, 30, 0.25)], 1e-4, "probabilities", path)

    monkeypatch.setattr("lambdanets.training.inference.export.export_model", differ)
    code, output, error = run("export", run_folder, "--overwrite")
    assert code == 2
    assert re.search(r"20 x 30 .* 2\.5e-01", output)
    assert error.startswith("Error: the file gives other probabilities than the model: they differ by 2.5e-01")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("RUN --format onxx", "unknown format 'onxx'. Did you mean 'onnx'?"),
        ("RUN --checkpoint beste", "unknown checkpoint 'beste'. Did you mean 'best'"),
        ("RUN --output no/where.onnx", "the folder no for the output where.onnx does not exist"),
        ("RUN --output model.txt", "path must end in .onnx or .pt2"),
        ("RUN --output model.pt2 --opset 20", "opset is for format"),
        ("RUN --output model.onnx --opset 7", "opset must be from 18 to"),
        ("no/where", "the run folder no/where does not exist"),
    ],
)
def test_wrong_words_are_one_message(run, run_folder, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    code, output, error = run("export", *words.replace("RUN", str(run_folder)).split())
    assert code == 2
    assert error.startswith("Error: ")
    assert error.count("\n") == 1
    assert message in error
    assert "Traceback" not in output + error
    assert not list(tmp_path.iterdir())


def test_names_with_colons_are_printed_as_they_are(run):
    code, output, error = run("export", "no/:boom:run")
    assert code == 2
    assert "Exporting no/:boom:run: " in output
    assert "the run folder no/:boom:run does not exist" in error


def test_missing_packages_are_one_message(run, run_folder, tmp_path, monkeypatch):
    from lambdanets.interop.export import formats

    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None)
    code, _, error = run("export", run_folder, "--output", tmp_path / "model.onnx")
    assert code == 2
    assert "install with: pip install 'lambdanets[export]'" in error
