"""Exported files against the model, by the runtimes themselves, and without this package."""

import json
import math
import os
import resource
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from torch import nn

import lambdanets
from helpers import random_norms
from lambdanets import GraphLambdaLayer, LambdaLayer, export_model, replace_attention
from lambdanets.interop import ExportDifferenceError
from lambdanets.interop.export import export as export_module
from lambdanets.interop.export import formats as formats_module
from lambdanets.kernels import portable

EXAMPLE = torch.zeros(1, 3, 16, 12)


def wake(model):
    """Random batch-norms and a large head: fresh ones hide the lambda layers and give equal probabilities."""
    for module in random_norms(model).modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=1.0)
    return model.eval()


def network(middle=None, stride=2, **second):
    """Stem, a local lambda layer, ``middle``, another lambda layer and a classifier of five classes."""
    inner = [LambdaLayer(8, scope=5, stride=stride), *([] if middle is None else [middle])]
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.Sequential(*inner), LambdaLayer(8, **{"scope": 3, **second})]
    return wake(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)))


def plain(*middle):
    """A model without lambda layers but those given, which is exported quickly."""
    inner = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *middle)
    return nn.Sequential(nn.Identity(), inner, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 200)).eval()


def test_pytorchs_default_dtype_changes_nothing(tmp_path):
    model = wake(plain(LambdaLayer(8, scope=3)))
    torch.set_default_dtype(torch.float64)
    try:
        export_model(model, tmp_path / "model.pt2", example=EXAMPLE)
    finally:
        torch.set_default_dtype(torch.float32)
    images = torch.randn(2, 3, 16, 12)
    np.testing.assert_allclose(
        open_torch_export(tmp_path / "model.pt2")(images), model(images).softmax(1).detach(), atol=1e-5
    )


def open_onnx(path):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"image": images.numpy()})[0]


def open_torch_export(path):
    model = torch.export.load(path).module()
    return lambda images: model(images).numpy()


RUNTIMES = {"model.onnx": open_onnx, "model.pt2": open_torch_export}


CLASSES = ["cat", "dog", "é", "3", ""]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model with a local and a global layer, and what was exported of it, in both formats."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("exported")
    model = network(intra_depth=2, position_bias=True, qkv_bias=True, size=(8, 6), scope=None)
    options = {"model.onnx": {"opset": 18}, "model.pt2": {"output": "logits"}}
    return model, {
        name: export_model(model, folder / name, example=EXAMPLE, class_names=CLASSES, **options[name])
        for name in RUNTIMES
    }


@pytest.mark.parametrize("name", RUNTIMES)
def test_runtimes_give_the_models_outputs(exported, name):
    model, files = exported
    run = RUNTIMES[name](files[name].path)
    for size in ((16, 12), (9, 5), (2, 1)):
        for batch in (1, 2, 5):
            images = torch.randn(batch, 3, *size)
            expected = model(images).detach()
            expected = (expected if name == "model.pt2" else expected.softmax(1)).numpy()
            assert np.ptp(expected) > 0.05
            np.testing.assert_allclose(run(images), expected, atol=1e-4)


@pytest.mark.parametrize("name", RUNTIMES)
def test_export_tells_what_it_checked(exported, name):
    _, files = exported
    result = files[name]
    sizes = {(check.height, check.width) for check in result.checks}
    assert {check.batch for check in result.checks} == {1, 2, 3}
    assert len(sizes) == 3
    assert len(result.checks) == 9
    assert any(height != width for height, width in sizes)
    assert 0 < result.difference < 1e-4
    assert result.switched == {"1.0": None, "2": None}


def test_onnx_file_says_what_it_is(exported):
    _, files = exported
    session = onnxruntime.InferenceSession(str(files["model.onnx"].path), providers=["CPUExecutionProvider"])
    (given,), (returned,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.shape) == ("image", ["batch", 3, "height", "width"])
    assert (returned.name, returned.shape) == ("probabilities", ["batch", 5])
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["class_names"]) == CLASSES
    assert (metadata["input"], metadata["output"], metadata["model"]) == ("image", "probabilities", "Sequential")
    assert metadata["preprocessing"] == "null"
    assert onnx.load(files["model.onnx"].path).opset_import[0].version == 18


def test_images_larger_than_a_global_layer_are_refused_by_the_file_too(exported):
    _, files = exported
    with pytest.raises(AssertionError, match="Guard failed"):
        open_torch_export(files["model.pt2"].path)(torch.randn(1, 3, 18, 12))


def test_torch_export_file_runs_without_this_package(exported, tmp_path):
    model, files = exported
    images = torch.randn(2, 3, 10, 11)
    torch.save(images, tmp_path / "images.pt")
    program = f"""if True:
        import sys
        sys.modules["lambdanets"] = sys.modules["timm"] = None  # importing them fails
        import json, torch
        extra = {{"metadata.json": ""}}
        model = torch.export.load({str(files["model.pt2"].path)!r}, extra_files=extra).module()
        logits = model(torch.load("images.pt"))
        print(json.dumps({{"logits": logits.tolist(), **json.loads(extra["metadata.json"])}}))
    """
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=1800, check=False
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    torch.testing.assert_close(torch.tensor(told["logits"]), model(images).detach())
    assert (told["class_names"], told["output"]) == (CLASSES, "logits")


def test_model_itself_is_not_changed_and_an_old_file_is_replaced_where_asked(tmp_path):
    path = tmp_path / "model.pt2"
    path.write_text("old")
    model = network(kernel="banded").double().train()
    model[1][0].kernel = "reference"
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = export_model(model, path, example=EXAMPLE.double(), overwrite=True)
    # The reference is plain PyTorch too, so it stays.
    assert result.switched == {"2": "banded"}
    assert (model[1][0].kernel, model[2].kernel) == ("reference", "banded")
    assert all(module.training for module in model.modules())
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], atol=0, rtol=0)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() != b"old"


def test_one_size_for_models_that_take_one(tmp_path):
    class Flat(nn.Module):
        def forward(self, x):
            return x.reshape(x.shape[0], 8, 48).unflatten(2, (8, 6))

    model = network(Flat())
    with pytest.raises(ValueError, match=r"the model takes images of 16 x 12, but not of .* fixed_size=True"):
        export_model(model, tmp_path / "model.pt2", example=EXAMPLE)
    result = export_model(model, tmp_path / "model.pt2", example=EXAMPLE, fixed_size=True)
    assert [(check.batch, check.height, check.width) for check in result.checks] == [(b, 16, 12) for b in (1, 2, 3)]
    images = torch.randn(5, 3, 16, 12)
    expected = model(images).softmax(1).detach().numpy()
    np.testing.assert_allclose(open_torch_export(tmp_path / "model.pt2")(images), expected, atol=1e-5)


def test_example_is_of_the_size_that_the_model_was_built_for(tmp_path):
    vit = wake(timm.create_model("test_vit", img_size=32, depth=1, num_classes=5))
    result = export_model(vit, tmp_path / "model.pt2", fixed_size=True)
    assert {(check.height, check.width) for check in result.checks} == {(32, 32)}
    model = timm.create_model("lambda_resnet_tiny", lambda_args={"scope": None}, img_size=(64, 48))
    assert export_module._example(model, None).shape[2:] == (64, 48)


def test_default_example_that_the_model_refuses_is_called_a_default(tmp_path):
    model = Strided(32)
    model.pretrained_cfg = {"input_size": (3, 64, 64)}
    with pytest.raises(ValueError, match=r"example must be given, .* the default, 64 x 64 with 3 channels: not a size"):
        export_model(model, tmp_path / "model.pt2")


class Strided(nn.Module):
    """Takes multiples of 32 up to ``largest``, as networks with global tables that add up feature maps."""

    def __init__(self, largest):
        super().__init__()
        self.largest = largest

    def forward(self, x):
        if max(x.shape[2:]) > self.largest or x.shape[2] % 32 or x.shape[3] % 32:
            raise ValueError("not a size of this model")
        return x.mean(dim=(2, 3))


def test_smaller_sizes_are_checked_of_a_model_that_takes_none_larger():
    sizes = export_module._checked_sizes(Strided(256), torch.zeros(2, 3, 256, 256))
    assert sizes == [(256, 256), (192, 256), (224, 256)]


def test_only_refused_sizes_are_called_refused():
    with pytest.raises(ValueError, match="takes images of") as error:
        export_module._checked_sizes(Strided(32), torch.zeros(2, 3, 32, 32))
    taken, refused = str(error.value).split(", but not of ")
    assert taken.endswith(" 32 x 32")
    assert refused.startswith("32 x 48, 24 x 32, 32 x 22, 24 x 22, 32 x 64 and 64 x 32;")


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_vision_transformer_with_lambda_layers(tmp_path, name):
    """Layers over tokens are switched as those over grids; such a model takes one size."""
    vit = replace_attention(timm.create_model("test_vit", img_size=32, depth=1, num_classes=5), verbose=False)
    wake(vit)
    images = torch.randn(3, 3, 32, 32)
    result = export_model(vit, tmp_path / name, example=images, fixed_size=True)
    assert result.switched == {"blocks.0.attn.tokens": None}
    expected = vit(images).softmax(1).detach().numpy()
    assert np.ptp(expected) > 0.05
    np.testing.assert_allclose(RUNTIMES[name](tmp_path / name)(images), expected, atol=1e-4)
    assert vit.blocks[0].attn.tokens.kernel is None


@pytest.mark.parametrize("name", RUNTIMES)
def test_full_disk_is_an_error_that_names_the_file(tmp_path, name):
    """PyTorch's writer of programs would end the process."""
    (tmp_path / name).write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
        with pytest.raises(OSError, match=f"File too large: '{tmp_path / name}'"):
            export_model(plain(), tmp_path / name, example=EXAMPLE, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == [tmp_path / name]
    assert (tmp_path / name).read_text() == "old"


class Random(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


class Conditional(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Bessel(nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x)


@torch.library.custom_op("tests::doubled", mutates_args=())
def doubled(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


@doubled.register_fake
def _(x):
    return torch.empty_like(x)


class OfAnotherPackage(nn.Module):
    def forward(self, x):
        return doubled(x)


class OwnCall(nn.Module):
    """The op without a layer."""

    def forward(self, x):
        rows = x.flatten(2).transpose(1, 2)[:, None]
        positions = lambdanets.GridPositions(x.new_ones(1, 8, 3, 3), x.shape[2:])
        return lambdanets.lambda_apply(rows, rows, rows, positions)[:, 0].transpose(1, 2).reshape(x.shape)


class Pixels(nn.Module):
    """Pixels as the nodes of a graph, each with an edge to itself."""

    def __init__(self):
        super().__init__()
        self.layer = GraphLambdaLayer(8, dim_key=4)

    def forward(self, x):
        nodes = x.flatten(2).transpose(1, 2).flatten(0, 1)
        to_itself = torch.arange(nodes.shape[0]).expand(2, -1)
        return self.layer(nodes, to_itself).reshape(x.shape[0], -1, 8).transpose(1, 2).reshape(x.shape)


def test_what_calls_the_ops_without_a_switch_is_decomposed(tmp_path):
    model = wake(plain(OwnCall(), Pixels(), LambdaLayer(8, scope=3)))
    result = export_model(model, tmp_path / "model.pt2", example=EXAMPLE)
    assert result.difference < 1e-5
    program = torch.export.load(result.path)
    assert not any("lambdanets" in str(node.target) for node in program.graph.nodes)


@pytest.mark.parametrize(
    ("layers", "example", "name", "kind"),
    [
        ((nn.Conv1d, nn.AdaptiveAvgPool1d), torch.zeros(1, 3, 24), "model.onnx", "sequence"),
        ((nn.Conv3d, nn.AdaptiveAvgPool3d), torch.zeros(1, 3, 6, 5, 7), "model.pt2", "volume"),
    ],
)
def test_sequences_and_volumes(tmp_path, layers, example, name, kind):
    conv, pool = layers
    ndim = example.ndim - 2
    layer = LambdaLayer(8, scope=5, ndim=ndim, intra_depth=2, causal=ndim == 1)
    model = wake(nn.Sequential(conv(3, 8, 3, padding=1), layer, pool(1), nn.Flatten(), nn.Linear(8, 5)))
    result = export_model(model, tmp_path / name, example=example)
    assert result.metadata["input"] == kind
    sizes = {check.size for check in result.checks}
    assert len(sizes) == 3
    assert tuple(example.shape[2:]) in sizes
    images = torch.randn(5, 3, *(side + 1 for side in example.shape[2:]))
    expected = model(images).softmax(1).detach().numpy()
    assert np.ptp(expected) > 0.05
    if name == "model.pt2":
        np.testing.assert_allclose(open_torch_export(result.path)(images), expected, atol=1e-5)
    else:
        session = onnxruntime.InferenceSession(str(result.path), providers=["CPUExecutionProvider"])
        assert session.get_inputs()[0].shape == ["batch", 3, "length"]
        np.testing.assert_allclose(session.run(None, {kind: images.numpy()})[0], expected, atol=1e-4)


@pytest.mark.parametrize("fails", [False, True])
def test_large_volumes_of_a_causal_layer_are_tried_without_numbers(tmp_path, monkeypatch, fails):
    """With numbers the matrix of all pairs of positions of a volume of 40x48x56 takes 11 GB for each example."""
    positions, reference = [], portable.reference

    def watched(call):
        if type(call.query) is not torch.Tensor:
            return reference(call)
        positions.append(call.query.shape[2])
        return reference(call) if positions[-1] < 1000 else call.query.new_zeros(*call.query.shape[:3], 2)

    monkeypatch.setattr(portable, "reference", watched)
    end = Conditional() if fails else nn.Identity()
    layer = LambdaLayer(8, scope=3, ndim=3, causal=True)
    model = wake(nn.Sequential(layer, end, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 5)))
    if fails:
        with pytest.raises(ValueError, match=r"the layer '1' \(Conditional\) cannot be exported: .*data-dependent"):
            export_model(model, tmp_path / "model.pt2", example=torch.zeros(1, 8, 4, 5, 6))
    else:
        assert export_model(model, tmp_path / "model.pt2", example=torch.zeros(1, 8, 4, 5, 6)).difference < 1e-5
    assert max(positions, default=0) < 1000


def test_other_numbers_are_an_error_and_leave_no_file(tmp_path):
    with pytest.raises(ExportDifferenceError, match="the file gives other probabilities than the model") as error:
        export_model(wake(plain(Random())), tmp_path / "model.pt2", example=EXAMPLE)
    assert len(error.value.checks) == 9
    assert not list(tmp_path.iterdir())


def test_numbers_that_are_none_are_an_error(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model[0].bias.data.fill_(float("nan"))
    with pytest.raises(ExportDifferenceError, match="they differ by nan"):
        export_model(model, tmp_path / "model.pt2", example=EXAMPLE)


@pytest.mark.parametrize(
    ("layer", "name", "message"),
    [
        (Conditional, "model.pt2", r"the layer '1\.1' \(Conditional\) cannot be exported: .*data-dependent"),
        (
            Bessel,
            "model.onnx",
            r"the layer '1\.1' \(Bessel\) has no ONNX form: .*bessel_j0.*torch-export",
        ),
        (
            OfAnotherPackage,
            "model.pt2",
            r"the layer '1\.1' \(OfAnotherPackage\) cannot be exported: it calls tests\.doubled.*own operations",
        ),
    ],
)
def test_layer_that_cannot_be_exported_is_named(tmp_path, capfd, layer, name, message):
    with pytest.raises(ValueError, match=message):
        export_model(plain(layer()), tmp_path / name, example=EXAMPLE)
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


class Empty(nn.Module):
    def forward(self, x):
        return x[:, :0]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"format": "onxx"},
            ValueError,
            r"format must be one of .*, got 'onxx'; did you mean 'onnx'\?",
        ),
        ({"format": "onnx"}, ValueError, r"path must end in \.onnx for format 'onnx', got .*model\.pt2"),
        ({"path": "model"}, ValueError, r"path must end in \.onnx or \.pt2, or format be one of"),
        ({"path": "no/model.pt2"}, FileNotFoundError, r"the folder .*no for the output model\.pt2 does not exist"),
        ({"path": "there.pt2"}, FileExistsError, r"there\.pt2 exists; give another name, or overwrite it"),
        ({"path": os.fsdecode(b"out\xfe.pt2")}, ValueError, r"out\\xfe\.pt2' is not valid UTF-8; rename it"),
        ({"path": "folder.pt2"}, IsADirectoryError, r"folder\.pt2 is a folder"),
        ({"output": "classes"}, ValueError, "output must be one of probabilities, logits, got 'classes'"),
        ({"example": None}, ValueError, "example must be given for a model without a timm configuration"),
        ({"example": torch.zeros(8, 8)}, ValueError, r"example must be a tensor of shape .*, got \(8, 8\)"),
        ({"example": torch.zeros(1, 8, 8)}, ValueError, "example must be sequences that the model takes, got 8 with 8"),
        (
            {"example": torch.zeros(1, 1, 8, 8)},
            ValueError,
            "example must be images that the model takes, got 8 x 8",
        ),
        ({"model": network()[:3]}, ValueError, r"needs a classifier, but the model gives shape .*output=\"logits\""),
        ({"model": torch.sum}, TypeError, "model must be a torch.nn.Module, got builtin_function_or_method"),
        ({"opset": 20}, ValueError, 'opset is for format="onnx", got 20'),
        ({"opset": 9, "path": "model.onnx"}, ValueError, "opset must be from 18 to .*, got 9"),
        ({"opset": "18", "path": "model.onnx"}, TypeError, "opset must be a whole number, got '18'"),
        ({"tolerance": None}, ValueError, "tolerance must be a number above 0, got None"),
        ({"tolerance": math.inf}, ValueError, "tolerance must be a number above 0, got inf"),
        ({"class_names": "abcd"}, TypeError, "class_names must be a sequence of texts, one for each .*, got 'abcd'"),
        ({"class_names": ["x"]}, ValueError, r"class_names has 1 name, and the model has \d+ outputs"),
        ({"preprocessing": {"mean": torch.zeros(3)}}, ValueError, "preprocessing must be of plain values, as JSON has"),
        ({"model": network().to("meta")}, ValueError, "must have memory for its weights, got some on the meta device"),
        (
            {"model": nn.Sequential(network(), Empty())},
            ValueError,
            r"must give numbers, got an output of shape",
        ),
    ],
)
def test_bad_arguments(tmp_path, change, error, message):
    (tmp_path / "there.pt2").touch()
    (tmp_path / "folder.pt2").mkdir()
    arguments = {"model": network(), "path": "model.pt2", "example": EXAMPLE, **change}
    arguments["path"] = tmp_path / arguments["path"]
    before = sorted(tmp_path.iterdir())
    with pytest.raises(error, match=message):
        export_model(**arguments)
    assert sorted(tmp_path.iterdir()) == before


def test_missing_packages_are_told_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(formats_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"needs onnx, onnxscript, onnxruntime; install with: pip install"):
        export_model(network(), tmp_path / "model.onnx", example=EXAMPLE)


def test_a_runtime_that_fails_without_words_is_named():
    def run(images):
        raise NotImplementedError

    with pytest.raises(ValueError, match=r"does not take a batch of 1 of .* exports one size: NotImplementedError$"):
        export_module._compare(network(), run, 3, [(16, 16)])
