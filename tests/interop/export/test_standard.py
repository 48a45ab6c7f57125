"""PyTorch's own exporters and tracers, after a plain ``import lambdanets``."""

import copy
import pickle

import onnxruntime
import pytest
import timm
import torch
from timm.utils.onnx import onnx_export
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from interop.peers import calibrate, randomise
from lambdanets import DensePositions, GraphLambdaLayer, GridPositions, LambdaLayer, lambda_apply, replace_attention
from lambdanets.interop import TwoOrderLambdaLayer
from lambdanets.kernels.decompositions import decompositions
from lambdanets.layers import TokenLambda
from lambdanets.layers.augmented_conv import AugmentedConv
from lambdanets.layers.axial_attention import AxialAttention
from lambdanets.layers.global_attention import GlobalAttention
from lambdanets.layers.linear_attention_conv import LinearAttentionConv
from lambdanets.layers.local_attention import LocalAttention

DYNAMIC = torch.export.Dim.DYNAMIC
SMALL = {"layers": (1, 1, 1, 1), "channels": (8, 16, 32, 64), "stem_width": 8, "num_classes": 5}


class Grids(nn.Module):
    """Layers over sequences, images, volumes and tokens: local, global, causal, masked, strided, u = 1 and 4."""

    def __init__(self):
        super().__init__()
        self.sequences = LambdaLayer(8, size=12, ndim=1, causal=True, intra_depth=4)
        self.images = LambdaLayer(8, scope=5, stride=2, kernel="spectral", position_bias=True)
        self.volumes = LambdaLayer(8, scope=3, ndim=3)
        self.tokens = TokenLambda(8, positions="2d", size=(3, 4), prefix_tokens=2)

    def forward(self, sequence, image, mask, volume, tokens):
        return (
            self.sequences(sequence),
            self.images(image, None, mask),
            self.volumes(volume),
            self.tokens(tokens),
        )

    @staticmethod
    def inputs(batch, length, height, width, depth):
        image = torch.randn(batch, 8, height, width)
        mask = torch.rand(batch, height, width) > 0.3
        volume = torch.randn(batch, 8, depth, height, width)
        return torch.randn(batch, 8, length), image, mask, volume, torch.randn(batch, 14, 8)

    shapes = ({0: DYNAMIC, 2: DYNAMIC}, {0: DYNAMIC, 2: DYNAMIC, 3: DYNAMIC})
    shapes += (dict.fromkeys((0, 1, 2), DYNAMIC), dict.fromkeys((0, 2, 3, 4), DYNAMIC), {0: DYNAMIC})
    sizes = ((2, 9, 7, 9, 4), (1, 12, 9, 5, 5), (3, 3, 3, 4, 3))


class Graphs(nn.Module):
    """Both layers over graphs, and the op with positions that are written out."""

    def __init__(self):
        super().__init__()
        self.one, self.many = GraphLambdaLayer(8), GraphLambdaLayer(8, dim_edge=3, intra_depth=2)
        self.embedding = nn.Parameter(torch.randn(6, 6, 4, 2))

    def forward(self, nodes, edges, attributes, batch, rows):
        written_out = DensePositions(self.embedding)
        return (
            self.one(nodes, edges),
            self.many(nodes, edges, attributes, batch),
            lambda_apply(rows, rows[:, :2], rows[:, :2], written_out),
        )

    @staticmethod
    def inputs(nodes, edges):
        batch = torch.randint(4, (nodes,)).sort().values
        source = torch.randint(nodes, (edges,))
        target = torch.searchsorted(batch, batch[source])  # the first node of the same graph
        rows = torch.randn(nodes, 3, 6, 4)
        return torch.randn(nodes, 8), torch.stack([source, target]), torch.randn(edges, 3), batch, rows

    shapes = ({0: DYNAMIC}, {1: DYNAMIC}, {0: DYNAMIC}, {0: DYNAMIC}, {0: DYNAMIC})
    sizes = ((9, 20), (5, 7), (3, 2))


def assert_same_outputs(path, model, sizes):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for size in sizes:
        args = model.inputs(*size)
        named = zip((given.name for given in session.get_inputs()), args, strict=True)
        actual = session.run(None, {name: arg.numpy() for name, arg in named})
        with torch.no_grad():
            for a, e in zip(actual, model(*args), strict=True):
                torch.testing.assert_close(torch.from_numpy(a), e, rtol=1e-4, atol=1e-5)


# Both exporters of PyTorch are covered by this file; the older one warns of itself and of every number that it records.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")


@pytest.mark.parametrize(("kind", "captured"), [(Grids, False), (Graphs, True)])
def test_onnx_of_every_layer(tmp_path, kind, captured):
    """Of the model, and of a program that torch.export made of it before."""
    model = kind().eval()
    args = model.inputs(*model.sizes[0])
    path = tmp_path / "model.onnx"
    if captured:
        program = torch.export.export(model, args, dynamic_shapes=model.shapes)
        torch.onnx.export(program, None, path, dynamo=True, verbose=False)
    else:
        torch.onnx.export(model, args, path, dynamo=True, dynamic_shapes=model.shapes, verbose=False)
    assert_same_outputs(path, model, model.sizes)


def test_onnx_of_every_layer_over_grids_by_torchscript(tmp_path):
    model, path = Grids().eval(), tmp_path / "model.onnx"
    names = ["sequence", "image", "mask", "volume", "tokens"]
    axes = {name: {axis: f"{name}_{axis}" for axis in sizes} for name, sizes in zip(names, model.shapes, strict=True)}
    args = model.inputs(*model.sizes[0])
    torch.onnx.export(model, args, path, dynamo=False, input_names=names, dynamic_axes=axes)
    assert_same_outputs(path, model, model.sizes)


class Mapped(nn.Module):
    """A layer for maps of 6x5."""

    def __init__(self, kind, fused):
        super().__init__()
        options = {LocalAttention: {"scope": 3}, LinearAttentionConv: {}}.get(kind, {"size": (6, 5)})
        if kind is not LinearAttentionConv:
            options["fused"] = fused
        self.layer = kind(16, num_heads=4, **options)

    def forward(self, x):
        return (self.layer(x),)

    @staticmethod
    def inputs(batch):
        return (torch.randn(batch, 16, 6, 5),)

    shapes = ({0: DYNAMIC},)
    sizes = ((2,), (3,), (1,))


COMPARED = [LocalAttention, AxialAttention, GlobalAttention, AugmentedConv, LinearAttentionConv]


@pytest.mark.parametrize(
    ("kind", "fused"), [(kind, fused) for kind in COMPARED for fused in (False, True)][: 2 * len(COMPARED) - 1]
)
def test_layers_that_lambda_is_compared_with_for_any_batch(kind, fused, tmp_path):
    model, path = Mapped(kind, fused).eval(), tmp_path / "model.onnx"
    program = torch.export.export(model, model.inputs(2), dynamic_shapes=model.shapes).module()
    for size in model.sizes:
        args = model.inputs(*size)
        torch.testing.assert_close(program(*args), model(*args), rtol=1e-4, atol=1e-5)
    if kind is LocalAttention and fused:  # its windows have no form in that exporter, which says so
        return
    torch.onnx.export(model, model.inputs(2), path, dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "batch"}})
    assert_same_outputs(path, model, model.sizes)


def test_torchscript_exporter_is_refused_for_graphs(tmp_path):
    """It writes sums over equal indices that ONNX Runtime does not add up."""
    model = Graphs().eval()
    args = model.inputs(*model.sizes[0])
    for layer, given in ((model.one, args[:2]), (model.many, args[:4])):
        with pytest.raises(ValueError, match=r"cannot be exported by .*dynamo=False.*; use dynamo=True"):
            torch.onnx.export(layer, given, tmp_path / "model.onnx", dynamo=False)


@pytest.mark.parametrize("dynamo", [True, False])
def test_timms_onnx_script(tmp_path, dynamo):
    model = timm.create_model("lambda_resnet50_llll", stages="CCCL", **SMALL)
    calibrate(randomise(model), torch.randn(4, 3, 64, 64))
    path = str(tmp_path / "model.onnx")
    # It compares three decimals with the model's outputs itself.
    onnx_export(
        model, path, input_size=(3, 64, 96), batch_size=2, check_forward=True, use_dynamo=dynamo, dynamic_size=True
    )


def test_programs_keep_the_ops_unless_they_are_decomposed(monkeypatch):
    ours = torch.ops.lambdanets.grid_term.default

    def refuse(*args):
        raise AssertionError("taken for a shape function")

    layer = LambdaLayer(8, scope=5, dtype=torch.float64).eval()
    sizes = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    example = torch.zeros(2, 8, 9, 7, dtype=torch.float64)
    with monkeypatch.context() as patch:
        patch.setitem(torch._decomp.decomposition_table, ours, refuse)
        program = torch.export.export(layer, (example,), dynamic_shapes=(sizes,))
    assert ours in {node.target for node in program.run_decompositions().graph.nodes}
    table = torch.export.default_decompositions()
    table.update(decompositions())
    plain = program.run_decompositions(table)
    assert not any("lambdanets" in str(node.target) for node in plain.graph.nodes)
    for size in ((2, 2), (12, 31)):  # smaller than the scope, and larger than the example
        images = torch.randn(3, 8, *size, dtype=torch.float64)
        for each in (program, plain):
            torch.testing.assert_close(each.module()(images), layer(images))


class Plain(nn.Module):
    """An encoder layer's attention and a layer over tokens, each called by name."""

    def __init__(self):
        super().__init__()
        encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        replace_attention(encoder, positions="1d", size=12, verbose=False)
        self.attention, self.tokens = encoder.self_attn, TokenLambda(8, scope=3)

    def forward(self, x):
        return self.tokens(self.attention(x, x, x)[0] + x)


def edges(nodes):
    return torch.randn(nodes, 8), torch.randint(nodes, (2, 3 * nodes))


TRACED = {
    "the layer itself": (lambda: LambdaLayer(8, scope=3, position_bias=True), lambda s: (torch.randn(2, 8, s, 4),)),
    "with context and mask": (
        lambda: LambdaLayer(8, size=9, stride=2),
        lambda s: (torch.randn(2, 8, s, 4), torch.randn(2, 8, s, 4), torch.rand(2, s, 4) > 0.3),
    ),
    "in a model": (
        lambda: nn.Sequential(LambdaLayer(8, scope=3), TwoOrderLambdaLayer(8, size=9, intra_depth=2), nn.ReLU()),
        lambda s: (torch.randn(2, 8, s, 4),),
    ),
    "tokens": (lambda: TokenLambda(8, size=9, prefix_tokens=1), lambda s: (torch.randn(2, s, 8),)),
    "attention": (Plain, lambda s: (torch.randn(2, s, 8),)),
    "a graph": (lambda: GraphLambdaLayer(8), edges),
    "a family": (lambda: timm.create_model("lambda_resnet50", **SMALL), lambda s: (torch.randn(2, 3, 12 * s, 64),)),
}


@pytest.mark.parametrize("name", TRACED)
def test_fx_traces_layers_as_one_node(name):
    make, inputs = TRACED[name]
    model = make()
    traced = torch.fx.symbolic_trace(model)
    assert list(traced.state_dict()) == list(model.state_dict())
    for graph in (traced, pickle.loads(pickle.dumps(copy.deepcopy(traced)))):
        for training in (True, False):
            eager = copy.deepcopy(model).train(training)
            graph.load_state_dict(model.state_dict())
            graph.train(training)
            for size in (5, 8):
                args = inputs(size)
                with torch.random.fork_rng():
                    expected = eager(*args)
                torch.testing.assert_close(graph(*args), expected)
            for key, value in eager.state_dict().items():  # running statistics
                torch.testing.assert_close(graph.state_dict()[key], value)
    owned = [str(node.target) for node in traced.graph.nodes if node.op == "call_module"]
    assert not any(".qkv" in target for target in owned)


class Outer:
    class Layer(LambdaLayer):
        pass


def test_fx_of_a_layer_whose_class_is_not_at_the_top_of_its_module():
    layer, x = Outer.Layer(8, scope=3).eval(), torch.randn(2, 8, 4, 5)
    torch.testing.assert_close(torch.fx.symbolic_trace(layer)(x), layer(x))

    class Local(LambdaLayer):
        pass

    with pytest.raises(ValueError, match=r"cannot find the class .*Local again; define it outside of a function"):
        torch.fx.symbolic_trace(Local(8, scope=3))
    wrapped = nn.Sequential(Local(8, scope=3)).eval()
    torch.testing.assert_close(torch.fx.symbolic_trace(wrapped)(x), wrapped(x))


def test_torchvisions_feature_extraction():
    model = timm.create_model("lambda_resnet50", **SMALL).eval()
    features = create_feature_extractor(model, {"layer1": "map", "layer4.0.conv2": "lambda"})
    images = torch.randn(2, 3, 64, 96)
    out = features(images)
    torch.testing.assert_close(out["map"], model.layer1(model.maxpool(model.act1(model.bn1(model.conv1(images))))))
    assert out["lambda"].shape == (2, 64, 2, 3)


def test_fx_of_the_op_itself_names_the_way_out():
    def apply(rows, table):
        return lambda_apply(rows, rows, rows, GridPositions(table, (3, 3)))

    with pytest.raises(TypeError, match=r"positions\.table must be a torch\.Tensor, got Proxy; .*torch\.fx\.wrap"):
        torch.fx.symbolic_trace(apply)
    with pytest.raises(TypeError, match=r"query must be a torch\.Tensor, got Proxy; .*torch\.fx\.wrap"):
        torch.fx.symbolic_trace(lambda rows: lambda_apply(rows, rows, rows))
