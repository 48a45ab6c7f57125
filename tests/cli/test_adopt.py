"""``lambdanets adopt`` as a user types it."""

import copy
import sys

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import lambdanets
from interop.peers import DLi14ResNet, LeaderResNet, calibrate, randomise

MODULE = """
from interop.peers import DLi14Layer, DLi14ResNet, LeaderResNet

def small(num_classes=5):
    return DLi14ResNet((1, 1, 1, 1), num_classes, dk=4, r=5)

def two_orders(num_classes=5):
    return LeaderResNet((1, 1, 1, 1), num_classes, k=4, m=5, u=2)

class Overflowing(DLi14ResNet):
    def forward(self, x):
        return super().forward(x) * float("nan")

class Peeking(DLi14ResNet):
    def forward(self, x):  # asks the layer for what ours does not have
        return super().forward(x) + getattr(self.layer1[0].conv2, "dk", 0)

def overflowing(num_classes=5):
    return Overflowing((1, 1, 1, 1), num_classes, dk=4, r=5)

def peeking(num_classes=5):
    return Peeking((1, 1, 1, 1), num_classes, dk=4, r=5)

def three():
    return 3
"""


@pytest.fixture
def run(run, monkeypatch, tmp_path):
    """``lambdanets adopt`` in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return lambda *words: run("adopt", *words)


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "their_models.py").write_text(MODULE)
    monkeypatch.delitem(sys.modules, "their_models", raising=False)


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def timm_model(images):
    torch.manual_seed(0)
    return calibrate(randomise(timm.create_model("lambda_resnet26t", num_classes=5)), images).eval()


def save_theirs(model, path, images):
    torch.manual_seed(0)
    model = calibrate(randomise(model), images).eval()
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in model.state_dict().items()}}, path)
    return model


def printed_python(output):
    """The lines under "In Python:", which must do what they say."""
    lines = output.split("In Python:")[1].strip().splitlines()
    names = {"timm": timm, "lambdanets": lambdanets}
    exec("\n".join(line.strip() for line in lines).replace("(...)", "()"), names)
    return names["model"].eval()


def test_timm_end_to_end(run, timm_model, images, tmp_path):
    torch.save({"state_dict": timm_model.state_dict(), "epoch": 3}, tmp_path / "weights.pth")
    words = ("weights.pth", "--from", "timm:lambda_resnet26t", "--image-size", 64, "--output", "adopted.safetensors")
    code, output, error = run(*words)
    assert (code, error) == (0, "")
    for word in ("Adopted 3", "stages.3.1.self_attn: LambdaLayer of timm", "2x3x64x64", "Wrote adopted.safetensors"):
        assert word in output
    lines = [line.strip() for line in output.splitlines() if line.startswith("  float")]
    assert [line.partition(" ")[0] for line in lines] == ["float32", "float64"]
    assert all(": equal" in line for line in lines)
    assert list(tmp_path.glob(".*")) == []
    with safe_open("adopted.safetensors", "pt") as file:
        metadata = file.metadata()
    assert (metadata["adopted_from"], metadata["checkpoint"]) == ("timm:lambda_resnet26t", "weights.pth")
    assert float(metadata["difference_float64"]) < 1e-12
    with torch.no_grad():
        torch.testing.assert_close(printed_python(output)(images), timm_model(images), atol=1e-4, rtol=1e-4)


def test_without_output_nothing_is_written(run, timm_model, tmp_path):
    save_file(timm_model.state_dict(), tmp_path / "weights.safetensors")
    code, output, _ = run("weights.safetensors", "--from", "timm:lambda_resnet26t", "--image-size", 64)
    assert code == 0
    assert "Nothing was written" in output
    assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]


def test_weights_that_nobody_trained_prove_nothing(run, timm_model, tmp_path):
    """Behind the lambda layers every residual branch ends in a scale of zero."""
    torch.manual_seed(0)
    model = timm.create_model("lambda_resnet26t", num_classes=5)
    torch.save(model.state_dict(), tmp_path / "fresh.pth")
    torch.save(timm_model.state_dict(), tmp_path / "trained.pth")
    words = ("--from", "timm:lambda_resnet26t", "--image-size", 64)
    for name, says in (("fresh", True), ("trained", False)):
        code, output, _ = run(f"{name}.pth", *words)
        assert code == 0
        assert ("Not one bit differs" in output) == says


def test_a_size_that_the_model_does_not_take(run, timm_model, tmp_path):
    torch.save(timm_model.state_dict(), tmp_path / "weights.pth")
    code, output, error = run("weights.pth", "--from", "timm:lambda_resnet26t", "--image-size", 100)
    assert (code, error.count("\n"), "Traceback" in output) == (2, 1, False)
    assert "timm:lambda_resnet26t does not take images of 100x100, give another image_size (--image-size)" in error


def test_weights_that_are_adopted_already(run, timm_model, tmp_path):
    adopted = lambdanets.adopt(copy.deepcopy(timm_model)).model
    save_file(adopted.state_dict(), tmp_path / "adopted.safetensors")
    code, _, error = run("adopted.safetensors", "--from", "timm:lambda_resnet26t")
    assert code == 2
    assert "in this library's form already, adopt the model alone" in error


def test_a_model_of_ones_own_code(run, own_module, images, tmp_path):
    theirs = save_theirs(DLi14ResNet((1, 1, 1, 1), 5, dk=4, r=5), tmp_path / "weights.pth", images)
    words = ("weights.pth", "--from", "python:their_models:small", "--image-size", 64, "--output", "out.safetensors")
    code, output, error = run(*words)
    assert (code, error) == (0, "")
    assert output.count("DLi14Layer of d-li14") == 4
    with torch.no_grad():
        torch.testing.assert_close(printed_python(output)(images), theirs(images), atol=1e-4, rtol=1e-4)


def test_two_orders(run, own_module, images, tmp_path):
    theirs = save_theirs(LeaderResNet((1, 1, 1, 1), 5, k=4, m=5, u=2), tmp_path / "weights.pth", images)
    words = ("weights.pth", "--from", "python:their_models:two_orders", "--image-size", 64)
    code, _, error = run(*words)
    assert (code, error.count("\n")) == (2, 1)
    assert "faithful=True" in error
    code, output, _ = run(*words, "--faithful", "--output", "out.safetensors")
    assert code == 0
    assert "adopt(model, faithful=True)" in output
    with torch.no_grad():
        torch.testing.assert_close(printed_python(output)(images), theirs(images), atol=1e-4, rtol=1e-4)


def test_d_li14_into_a_model_of_this_library(run, images, tmp_path):
    save_theirs(DLi14ResNet((1, 1, 1, 1)), tmp_path / "weights.pth", images)
    words = ("weights.pth", "--from", "timm:lambda_resnet50_llll", "--output", "out.safetensors")
    code, _, error = run(*words)
    assert code == 2
    assert "weights of another model than this LambdaResNet" in error
    assert not (tmp_path / "out.safetensors").exists()
    torch.save(DLi14ResNet().state_dict(), tmp_path / "weights.pth")
    code, output, _ = run(*words)
    assert code == 0
    for word in ("checkpoint weights.pth: d-li14, 16 lambda layers", "no outputs before to compare with", "Wrote out"):
        assert word in output
    printed_python(output)


def test_different_outputs_write_nothing(run, own_module, images, tmp_path):
    save_theirs(DLi14ResNet((1, 1, 1, 1), 5, dk=4, r=5), tmp_path / "weights.pth", images)
    for name, words in (("overflowing", "not finite numbers"), ("peeking", "differ")):
        origin = f"python:their_models:{name}"
        code, output, error = run("weights.pth", "--from", origin, "--image-size", 64, "--output", "out.safetensors")
        assert code == 1
        assert "DIFFERENT" in output
        assert words in error
        assert not (tmp_path / "out.safetensors").exists()


class TestOutput:
    def test_files_are_not_replaced_unasked(self, run, timm_model, tmp_path):
        save_file(timm_model.state_dict(), tmp_path / "weights.safetensors")
        (tmp_path / "out.safetensors").write_text("mine")
        words = ("weights.safetensors", "--from", "timm:lambda_resnet26t", "--image-size", 64, "--output")
        code, _, error = run(*words, "out.safetensors")
        assert code == 2
        assert "exists already; give another name, or --overwrite" in error
        assert (tmp_path / "out.safetensors").read_text() == "mine"
        code, output, _ = run(*words, "out.safetensors", "--overwrite")
        assert code == 0
        assert "Replaced out.safetensors" in output
        code, _, error = run(*words, "weights.safetensors", "--overwrite")
        assert code == 2
        assert "is the checkpoint itself" in error

    @pytest.mark.parametrize(
        ("name", "message"),
        [("out.pth", "must end in .safetensors"), ("no/out.safetensors", "which is no folder")],
    )
    def test_wrong_names(self, run, name, message):
        code, _, error = run("weights.pth", "--from", "timm:lambda_resnet26t", "--output", name)
        assert code == 2
        assert message in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("w.pth", "--from must name the model"),
        ("--from timm:lambda_resnet26t", "exactly one of CHECKPOINT and --pretrained must be given, got neither"),
        ("w.pth --pretrained --from timm:lambda_resnet26t", "got both"),
        ("w.pth --from timm:lambda_resnet26t --overwrite", "--overwrite is for a file that --output names; give"),
        ("w.pth --from timm:lambda_resnet26t", "the checkpoint w.pth does not exist"),
        ("own.pth --from lambda_resnet26t", "did you mean timm:lambda_resnet26t?"),
        (
            "own.pth --from timm:lambda_resnet26",
            "unknown model 'lambda_resnet26' of timm; did you mean 'lambda_resnet26t",
        ),
        ("own.pth --from timm:lambda_resnet26t.c1_in1", "Did you mean 'lambda_resnet26t.c1_in1k'?"),
        ("own.pth --from hub:thing", "must be timm:NAME (as timm:lambda_resnet26t) or python:MODULE:FUNCTION"),
        ("own.pth --from timm:resnet18", "the weights of another model than this ResNet"),
        ("own.pth --from python:no_such:thing", "python:no_such:thing cannot be imported"),
        ("own.pth --from python:boom:thing", "python:boom:thing cannot be imported"),
        ("own.pth --from python:their_models:smal", "cannot be imported: module 'their_models' has no attribute"),
        ("own.pth --from python:their_models:three", "made a int, not a torch.nn.Module"),
        ("--pretrained --from python:their_models:small", "has no published weights; give a checkpoint"),
        ("--pretrained --from timm:lambda_resnet_tiny", "no published weights"),
    ],
)
def test_wrong_words_are_one_message(run, own_module, tmp_path, words, message):
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "own.pth")
    code, output, error = run(*words.split())
    assert code == 2
    assert (error.startswith("Error: "), error.count("\n")) == (True, 1)
    assert message in error
    assert "Traceback" not in output + error


def test_help_has_examples(run):
    code, output, _ = run("--help")
    assert code == 0
    for word in ("For example", "timm:lambda_resnet26t", "--faithful"):
        assert word in output
