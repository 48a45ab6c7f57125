"""From input to queries, keys and values: the modules are called as modules, with or without another context."""

import pytest
import torch
from torch import nn

from lambdanets import LambdaLayer


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
