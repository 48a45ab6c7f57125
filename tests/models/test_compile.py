"""Layers and models under torch.compile and torch.export: one graph for every batch and image size."""

import shutil

import pytest
import timm
import torch

from helpers import PRESENT, random_norms
from lambdanets import GraphLambdaLayer, LambdaLayer

DYNAMIC = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)

# The models have local layers with a stride.
LAYERS = {
    "global": {"size": 9},
    "deep": {"scope": 7, "intra_depth": 2, "position_bias": True, "qkv_bias": True, "kernel": "query_first"},
    "causal": {"scope": 3, "causal": True},
}
TRAINING = ("global", "deep")
# Squares among them, a size at which nothing of a global table is cut off, sizes below a local scope.
SIZES = ((2, 6, 5), (3, 7, 9), (5, 9, 9), (4, 4, 8), (2, 3, 3))

MODELS = {
    "gated": ("lambda_resnet50", {"stages": "CCCL"}),
    "llll": ("lambda_resnet50_llll", {}),
}
SMALL = {"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16), "stem_width": 8, "num_classes": 5}
IMAGES = ((2, 40, 48), (3, 64, 40), (4, 48, 48), (2, 47, 66))


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def small_model(name):
    kind, options = MODELS[name]
    return random_norms(timm.create_model(kind, **SMALL, **options))


def outputs_and_gradients(run, module, x):
    x = x.clone().requires_grad_()
    out = run(x)
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [out.detach(), *torch.autograd.grad(out.square().sum(), [x, *parameters])]


def assert_compiles_once(module, inputs):
    compiled = torch.compile(module.double(), fullgraph=True, dynamic=True, backend="aot_eager")
    stance = "default"
    for x in inputs:
        x = x.double()
        with torch.compiler.set_stance(stance):
            actual = outputs_and_gradients(compiled, module, x)
        stance = "fail_on_recompile"  # from the second size on
        for a, e in zip(actual, outputs_and_gradients(module, module, x), strict=True):
            torch.testing.assert_close(a, e)


@pytest.mark.parametrize("name", LAYERS)
def test_layer_compiles_once_for_all_sizes(name):
    layer = LambdaLayer(8, dim_key=4, **LAYERS[name]).train(name in TRAINING)
    assert_compiles_once(layer, [torch.randn(b, 8, h, w) for b, h, w in SIZES])


def test_causal_sequence_layer_compiles_once_for_all_lengths():
    layer = LambdaLayer(8, dim_key=4, ndim=1, size=40, causal=True)
    assert_compiles_once(layer, [torch.randn(b, 8, n) for b, n in ((2, 20), (3, 7), (2, 40))])


def test_graph_layer_compiles_once_for_all_graphs():
    layer = GraphLambdaLayer(8, dim_edge=3, dim_key=4, dtype=torch.float64)
    index, features = torch.randint(6, (2, 10)), torch.randn(10, 3, dtype=torch.float64)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    compiled(torch.randn(6, 8, dtype=torch.float64), index, features)
    index, features = torch.randint(9, (2, 21)), torch.randn(21, 3, dtype=torch.float64)
    nodes = torch.randn(9, 8, dtype=torch.float64)
    with torch.compiler.set_stance("fail_on_recompile"):
        torch.testing.assert_close(compiled(nodes, index, features), layer(nodes, index, features))


def test_model_in_training_compiles_once_for_all_sizes():
    """Outputs and the gradients of the images and of every parameter, squeeze-and-excitation among them."""
    assert_compiles_once(small_model("gated"), [torch.randn(b, 3, h, w) for b, h, w in IMAGES])


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_inductor(monkeypatch):
    """One graph for inference. With gradients inductor makes one for each size of a plain convolution too.

    Where CI is set, inductor refuses ops that have a decomposition, unless they are in a list of its own.
    """
    monkeypatch.setenv("CI", "true")
    layer = LambdaLayer(8, dim_key=4, scope=3, dtype=torch.float64).eval()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    stance = "default"
    for b, h, w in SIZES:
        x = torch.randn(b, 8, h, w, dtype=torch.float64)
        with torch.no_grad(), torch.compiler.set_stance(stance):
            torch.testing.assert_close(compiled(x), layer(x))
        stance = "fail_on_recompile"


def export(module, x):
    return torch.export.export(module, (x,), dynamic_shapes=(DYNAMIC,)).module()


@pytest.mark.parametrize("name", LAYERS)
def test_exported_layer_takes_all_sizes(name):
    layer = LambdaLayer(8, dim_key=4, dtype=torch.float64, **LAYERS[name]).eval()
    program = export(layer, torch.randn(2, 8, 6, 5, dtype=torch.float64))
    for b, h, w in (*SIZES, (1, 5, 7)):
        x = torch.randn(b, 8, h, w, dtype=torch.float64)
        torch.testing.assert_close(program(x), layer(x))


@pytest.mark.parametrize("name", MODELS)
def test_exported_model_takes_all_sizes(name):
    model = small_model(name).eval().double()
    program = export(model, torch.randn(2, 3, 72, 80, dtype=torch.float64))
    for b, h, w in (*IMAGES, (1, 48, 56)):
        x = torch.randn(b, 3, h, w, dtype=torch.float64)
        torch.testing.assert_close(program(x), model(x))


@pytest.mark.parametrize("kernel", PRESENT)
def test_a_kernel_by_name_exports_with_every_size(kernel):
    """Nothing of its limits is in the program: where it cannot run, the program raises what the layer raises."""
    layer = LambdaLayer(8, scope=5, dim_key=4, kernel=kernel).eval()
    program = torch.export.export(layer, (torch.randn(2, 8, 7, 9),), dynamic_shapes=(DYNAMIC,)).module()
    for x in (torch.randn(3, 8, 6, 11), torch.randn(2, 8, 12, 5)):
        torch.testing.assert_close(program(x), layer(x), rtol=1e-4, atol=1e-5)
    if kernel == "banded":
        for run in (layer, program):
            with pytest.raises(ValueError, match=f"kernel='{kernel}' cannot run here: it is for local contexts"):
                run(torch.randn(2, 8, 3, 2))
