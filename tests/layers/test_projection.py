"""From input to queries, keys and values: batch-norms folded into the projection, and the way round for who watches."""

import pytest
import torch
from torch import nn

from lambdanets import LambdaLayer
from lambdanets.layers.projection import is_plain, scale_and_shift


def trained_norm(channels, **options):
    norm = nn.BatchNorm2d(channels, **options).double()
    norm(torch.randn(8, channels, 3, 3, dtype=torch.float64) * 3 + 1)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm.eval()


@pytest.mark.parametrize("affine", [True, False])
def test_scale_and_shift_are_the_norm(affine):
    norm = trained_norm(5, affine=affine)
    x = torch.randn(2, 5, 4, 4, dtype=torch.float64)
    scale, shift = scale_and_shift(norm)
    torch.testing.assert_close(x * scale[:, None, None] + shift[:, None, None], norm(x), atol=1e-12, rtol=1e-12)


def test_none_for_a_norm_that_is_no_constant():
    assert scale_and_shift(trained_norm(5).train()) is None
    assert scale_and_shift(trained_norm(5, track_running_stats=False)) is None
    assert scale_and_shift(nn.GroupNorm(1, 5).eval()) is None
    assert scale_and_shift(nn.Identity().eval()) is None


def test_a_subclass_is_not_plain():
    class Other(nn.Conv2d):
        pass

    assert is_plain(nn.Conv2d(2, 2, 1))
    assert not is_plain(Other(2, 2, 1))


@pytest.mark.parametrize("name", ["qkv", "norm_query", "norm_value"])
def test_hooks_are_called_in_evaluation(name):
    layer = LambdaLayer(8, scope=3, dim_key=4).eval()
    x = torch.randn(2, 8, 8, 8)
    expected, seen = layer(x), []
    layer.get_submodule(name).register_forward_hook(lambda module, inputs, output: seen.append(output))
    torch.testing.assert_close(layer(x), expected)
    assert len(seen) == 1


def test_a_projection_of_another_kind_is_called():
    layer = LambdaLayer(8, scope=3, dim_key=4).eval()
    x = torch.randn(2, 8, 8, 8)
    expected = layer(x)
    layer.qkv = nn.Sequential(layer.qkv)
    torch.testing.assert_close(layer(x), expected)


def test_gradients_in_evaluation_reach_every_parameter():
    layer = LambdaLayer(8, scope=3, dim_key=4, dtype=torch.float64).eval()
    layer.norm_query.running_var.fill_(2.0)
    x = torch.randn(2, 8, 8, 8, dtype=torch.float64)
    folded = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
    layer.norm_query.register_forward_hook(lambda *_: None)
    called = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
    torch.testing.assert_close(folded, called, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("name", ["qkv", "norm_query", "norm_value"])
def test_a_replaced_forward_is_called(name):
    layer = LambdaLayer(8, scope=3, dim_key=4).eval()
    x = torch.randn(2, 8, 8, 8)
    part = layer.get_submodule(name)
    original, seen = part.forward, []

    def forward(x):
        seen.append(x)
        return original(x)

    part.forward = forward
    layer(x)
    assert len(seen) == 1


def test_global_and_backward_hooks_are_called():
    layer = LambdaLayer(8, scope=3, dim_key=4).eval()
    x, seen = torch.randn(2, 8, 8, 8), []
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

    layer = LambdaLayer(8, scope=3, dim_key=4).eval()
    x = torch.randn(2, 8, 8, 8)
    expected = layer(x)
    cpu_offload(layer, execution_device=torch.device("cpu"))
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_norms_kept_in_float32_beside_a_half_projection(dtype, training):
    layer = LambdaLayer(8, scope=3, dim_key=4).to(dtype).train(training)
    layer.norm_query.float()
    layer.norm_value.float()
    assert layer(torch.randn(2, 8, 8, 8, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_exact_in_evaluation_as_with_norms_that_are_called(dtype):
    layer = LambdaLayer(32, scope=5, dim_key=8)
    x = torch.randn(4, 32, 9, 9).relu() + 2
    for _ in range(30):
        layer(x + 0.1 * torch.randn_like(x))
    exact = layer.eval().double()(x.to(dtype).double())
    half = layer.to(dtype)

    def error():
        return (half(x.to(dtype)).double() - exact).norm() / exact.norm()

    direct = error()
    half.norm_query.register_forward_hook(lambda *_: None)
    assert direct <= 1.01 * error()


class Wrapped(nn.Module):
    """A projection with something added, as LoRA does it."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.weight, self.bias = inner, inner.weight, inner.bias

    def forward(self, x):
        return self.inner(x) + 1


@pytest.mark.parametrize("training", [True, False])
def test_another_context_goes_through_a_wrapped_projection(training):
    layer = LambdaLayer(8, scope=3, dim_key=4).train(training)
    layer.qkv = Wrapped(layer.qkv)
    x = torch.randn(2, 8, 8, 8)
    torch.testing.assert_close(layer(x, context=x), layer(x))
    assert "LambdaLayer" in repr(layer)
