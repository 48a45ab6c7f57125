"""From input to queries, keys and values: the modules are called as modules, with or without another context.

And the step from the input to the outputs that keeps the input alone: where it is taken, and what it gives.
"""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lambdanets import LambdaLayer
from lambdanets.experiments.bench.measure import saved_bytes
from lambdanets.kernels.terms import grid as terms
from lambdanets.layers import projection


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("name", ["qkv", "norm_query", "norm_value"])
def test_hooks_are_called(name, cross):
    layer = LambdaLayer(8, scope=3, dim_key=4, dtype=torch.float64).eval()
    x = torch.randn(2, 8, 5, 5, dtype=torch.float64)
    context = torch.randn_like(x) if cross else None
    expected, seen = layer(x, context), []
    layer.get_submodule(name).register_forward_hook(lambda module, inputs, output: seen.append(output))
    torch.testing.assert_close(layer(x, context), expected)
    assert len(seen) == (2 if cross and name == "qkv" else 1)


def test_a_projection_of_another_kind_is_called():
    layer = LambdaLayer(8, scope=3, dim_key=4, dtype=torch.float64).eval()
    x = torch.randn(2, 8, 5, 5, dtype=torch.float64)
    expected = layer(x)
    layer.qkv = nn.Sequential(layer.qkv)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("name", ["qkv", "norm_query", "norm_value"])
def test_a_replaced_forward_is_called(name, cross):
    layer = LambdaLayer(8, scope=3, dim_key=4, dtype=torch.float64).eval()
    x = torch.randn(2, 8, 5, 5, dtype=torch.float64)
    part = layer.get_submodule(name)
    original, seen = part.forward, []

    def forward(x):
        seen.append(x)
        return original(x)

    part.forward = forward
    layer(x, x if cross else None)
    assert len(seen) == (2 if cross and name == "qkv" else 1)


def test_global_and_backward_hooks_are_called():
    layer = LambdaLayer(8, scope=3, dim_key=4).eval()
    x, seen = torch.randn(2, 8, 5, 5), []
    layer.norm_value.register_full_backward_pre_hook(lambda module, grad: seen.append("backward"))
    layer(x).sum().backward()
    assert seen == ["backward"]
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    try:
        LambdaLayer(8, scope=3, dim_key=4).eval()(x)
    finally:
        handle.remove()
    assert {type(module) for module in seen[1:]} >= {nn.Conv2d, nn.BatchNorm2d}


def test_offloaded_layer():
    from accelerate import cpu_offload

    layer = LambdaLayer(8, scope=3, dim_key=4, dtype=torch.float64).eval()
    x = torch.randn(2, 8, 5, 5, dtype=torch.float64)
    expected = layer(x)
    cpu_offload(layer, execution_device=torch.device("cpu"))
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_norms_kept_in_float32_beside_a_half_projection(dtype, training):
    layer = LambdaLayer(8, scope=3, dim_key=4).to(dtype).train(training)
    layer.norm_query.float()
    layer.norm_value.float()
    assert layer(torch.randn(2, 8, 5, 5, dtype=dtype)).dtype == dtype


class Wrapped(nn.Module):
    """A projection with something added, as LoRA does it."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.weight, self.bias = inner, inner.weight, inner.bias

    def forward(self, x):
        return self.inner(x) + 1


@pytest.mark.parametrize("training", [True, False])
def test_another_context_goes_through_a_wrapped_projection(training):
    layer = LambdaLayer(8, scope=3, dim_key=4, dtype=torch.float64).train(training)
    layer.qkv = Wrapped(layer.qkv)
    x = torch.randn(2, 8, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(layer(x, context=x), layer(x))
    assert "LambdaLayer" in repr(layer)


def test_many_gradients_at_once():
    layer = LambdaLayer(4, ndim=1, scope=3, dim_key=2, num_heads=2).double().eval()
    x = torch.randn(2, 4, 9, dtype=torch.float64, requires_grad=True)
    out, grads = layer(x), torch.randn(3, 2, 4, 9, dtype=torch.float64)
    together = torch.autograd.grad(out, (x, layer.qkv.weight), grads, is_grads_batched=True, retain_graph=True)
    for i, grad in enumerate(grads):
        alone = torch.autograd.grad(out, (x, layer.qkv.weight), grad, retain_graph=True)
        torch.testing.assert_close([t[i] for t in together], list(alone), rtol=1e-10, atol=1e-10)


def test_a_frozen_projection():
    layer = LambdaLayer(4, ndim=1, scope=3, dim_key=2, num_heads=2)
    layer.qkv.requires_grad_(False)
    x = torch.randn(2, 4, 9)
    layer(x).sum().backward()
    assert layer.positions.grad is not None
    assert layer.qkv.weight.grad is None
    layer.qkv.requires_grad_(True)
    layer(x).sum().backward()
    assert layer.qkv.weight.grad is not None
    assert x.grad is None


def small(training=True, **options):
    """A layer in float64 whose parameters, running statistics among them, are not those of the start."""
    torch.manual_seed(0)
    options = {"dim_key": 4, "dtype": torch.float64, "recompute": True, **(options or {"scope": 3})}
    layer = LambdaLayer(8, **options).train(training)
    for norm in (layer.norm_query, layer.norm_value):
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            nn.init.uniform_(tensor, 0.5, 1.5)
    return layer


def inputs(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)


def apart(layer):
    """A copy of the layer that goes operation by operation."""
    other = copy.deepcopy(layer)
    other.recompute = False
    return other


CALLS = {
    "sequence": ((3, 8, 13), {"ndim": 1, "size": 13, "intra_depth": 2, "stride": 2}),
    "image": ((3, 8, 7, 10), {"scope": (3, 5), "stride": 2, "qkv_bias": True}),
    "one example": ((1, 8, 7, 7), {"size": 7, "num_heads": 1}),
    "one position": ((3, 8, 1, 1), {}),
    "volume": ((2, 8, 3, 4, 5), {"ndim": 3, "scope": 3, "stride": 2}),
    "kernel": ((2, 8, 6, 6), {"scope": 3, "kernel": "spectral"}),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("case", CALLS)
def test_from_the_input_alone_results_are_those_of_all_operations(case, training):
    shape, options = CALLS[case]
    layer, x = small(training, **options), inputs(*shape)
    other = apart(layer)
    assert saved_bytes(copy.deepcopy(layer), x) == 0 < saved_bytes(copy.deepcopy(other), x)
    results = []
    for one in (layer, other):
        out = one(x)
        grads = torch.autograd.grad(out, [x, *one.parameters()], inputs(*out.shape).detach())
        results.append([out, *grads, *one.buffers()])
    torch.testing.assert_close(results[0], results[1], atol=1e-12, rtol=1e-12)


def test_kernels_run_once_in_forward(monkeypatch):
    seen, layer, x = [], small(), inputs(2, 8, 5, 5)
    forward = terms._run_forward
    monkeypatch.setattr(terms, "_run_forward", lambda *args: seen.append("forward") or forward(*args))
    out = layer(x).sum()
    assert seen == ["forward"]
    out.backward()
    assert seen == ["forward"]


@pytest.mark.parametrize("frozen", ["x", *(name for name, _ in small(scope=3, qkv_bias=True).named_parameters())])
def test_frozen_tensors_have_no_gradient(frozen):
    layer, x = small(scope=3, qkv_bias=True), inputs(2, 8, 5, 5)
    tensors = {"x": x, **dict(layer.named_parameters())}
    tensors.pop(frozen).requires_grad_(False)
    for create_graph in (False, True):
        found = torch.autograd.grad(layer(x).square().sum(), list(tensors.values()), create_graph=create_graph)
        other = apart(layer)
        wanted = [x if name == "x" else other.get_parameter(name) for name in tensors]
        torch.testing.assert_close(found, torch.autograd.grad(other(x).square().sum(), wanted))


@pytest.mark.parametrize("training", [True, False])
def test_derivatives_of_every_kind(training):
    layer, x = small(training, scope=3, stride=2), inputs(2, 8, 3, 3)
    parameters = dict(layer.named_parameters())

    def call(x, *tensors):
        return torch.func.functional_call(layer, dict(zip(parameters, tensors, strict=True)), (x,))

    torch.autograd.gradcheck(call, (x, *parameters.values()), fast_mode=True)
    torch.autograd.gradgradcheck(call, (x, *parameters.values()), fast_mode=True, atol=1e-4)
    out = layer(x)
    many = torch.randn(3, *out.shape, dtype=torch.float64)
    together = torch.autograd.grad(out, list(parameters.values()), many, retain_graph=True, is_grads_batched=True)
    for i in range(3):
        alone = torch.autograd.grad(out, list(parameters.values()), many[i], retain_graph=True)
        torch.testing.assert_close([grad[i] for grad in together], list(alone))
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert any("grid_term_backward" in str(operation) for operation in counter.get_flop_counts()["Global"])


@pytest.mark.parametrize("create_graph", [False, True])
def test_one_norm_in_both_places(create_graph):
    layer, x = small(scope=3, num_heads=2, dim_key=4, dim_out=16), inputs(2, 8, 5, 5)
    layer.norm_value = layer.norm_query
    results = []
    for one in (layer, apart(layer)):
        out = one(x)
        grads = torch.autograd.grad(out.square().sum(), [x, *one.parameters()], create_graph=create_graph)
        results.append([*grads, *one.buffers()])
    torch.testing.assert_close(results[0], results[1])


CHANGED = {
    "a hook of the projection": lambda layer: layer.qkv.register_forward_hook(lambda *_: None),
    "a hook before a norm": lambda layer: layer.norm_query.register_forward_pre_hook(lambda *_: None),
    "a hook in backward": lambda layer: layer.norm_value.register_full_backward_hook(lambda *_: None),
    "a hook before backward": lambda layer: layer.norm_value.register_full_backward_pre_hook(lambda *_: None),
    "a function in place of forward": lambda layer: setattr(layer.qkv, "forward", layer.qkv.forward),
    "a wrapped projection": lambda layer: setattr(layer, "qkv", nn.Sequential(layer.qkv)),
    "a wide projection": lambda layer: setattr(layer, "qkv", nn.Conv2d(8, 22, 3, padding=1).double()),
    "a grouped projection": lambda layer: setattr(layer, "qkv", nn.Conv2d(8, 22, 1, groups=2).double()),
    "a frozen projection": lambda layer: layer.qkv.requires_grad_(False),
    "a parametrized projection": lambda layer: nn.utils.parametrizations.weight_norm(layer.qkv),
    "a norm of another class": lambda layer: setattr(layer, "norm_value", nn.GroupNorm(1, 2).double()),
    "norms of several processes": nn.SyncBatchNorm.convert_sync_batchnorm,
    "a causal order": lambda layer: setattr(layer.eval(), "causal", True),
    "a bias of positions": lambda layer: setattr(layer, "position_bias", nn.Parameter(layer.positions[0, :, 0, 0])),
    "a plain kernel": lambda layer: setattr(layer, "kernel", "portable"),
    "a projection method of the object": lambda layer: setattr(layer, "project", partial(LambdaLayer.project, layer)),
    "another sum": lambda layer: setattr(layer, "__class__", AblatedSum),
    "half precision": lambda layer: layer.bfloat16(),
}


class Marked(torch.Tensor):
    """A tensor of another class."""


class AblatedSum(LambdaLayer):
    """A layer whose outputs are the queries."""

    def apply_lambdas(self, query, key, value, positions, mask):
        return query[..., :2]


@pytest.fixture
def steps(monkeypatch):
    """The inputs of each step from input to outputs."""
    found, apply = [], projection.FromInput.apply
    monkeypatch.setattr(projection.FromInput, "apply", lambda *args: found.append(args[1]) or apply(*args))
    return found


@pytest.mark.parametrize("name", CHANGED)
def test_a_changed_layer_goes_operation_by_operation(name, steps):
    layer, x = small(), inputs(2, 8, 5, 5)
    layer(x)
    assert len(steps) == 1
    CHANGED[name](layer)
    layer(x.detach().to(layer.positions.dtype).requires_grad_())
    assert len(steps) == 1


def test_calls_that_go_operation_by_operation(steps, monkeypatch):
    layer, x = small(), inputs(2, 8, 5, 5)
    x32, layer32 = x.detach().float().requires_grad_(), copy.deepcopy(layer).float()
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    layer(x)
    handle.remove()
    layer(x, context=x)
    layer.eval()
    layer(x, mask=torch.ones(2, 25, dtype=torch.bool))
    with torch.no_grad():
        layer(x)
    with FlopCounterMode(display=False):
        layer(x)
    with torch.autocast("cpu"):
        layer32(x32)
    with torch.autograd.forward_ad.dual_level():
        layer(x)
    torch.func.grad(lambda x: layer(x).sum())(x)
    copy.deepcopy(layer).to("meta")(x.to("meta"))
    with torch.no_grad():
        seen = copy.deepcopy(layer)
        seen.positions = nn.Parameter(seen.positions.as_subclass(Marked))
    assert not seen._saves_only_input(x, None, None)
    assert not steps
    for traced in (torch.compiler, "is_compiling"), (torch.jit, "is_tracing"):
        with monkeypatch.context() as patch:
            patch.setattr(*traced, lambda: True)
            assert not layer._saves_only_input(x, None, None)
    layer32(x32)
    assert len(steps) == 1


def test_it_is_asked_for():
    x = torch.randn(1, 8, 5, 5)
    assert saved_bytes(LambdaLayer(8, scope=3, stride=2), x) > 0
    layer = LambdaLayer(8, scope=3, stride=2, recompute=True)
    assert saved_bytes(layer, x) == 0
    assert "recompute=True" in repr(layer)
    with pytest.raises(TypeError, match="recompute must be True or False, got 1"):
        LambdaLayer(8, scope=3, recompute=1)
