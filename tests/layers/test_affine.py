"""Batch-norms that become part of the projection: the same numbers, and the way round for who watches."""

import pytest
import torch
from torch import nn

from lambdanets import LambdaLayer
from lambdanets.layers.affine import is_plain, scale_and_shift


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
    x = torch.randn(2, 8, 5, 5)
    expected, seen = layer(x), []
    layer.get_submodule(name).register_forward_hook(lambda module, inputs, output: seen.append(output))
    torch.testing.assert_close(layer(x), expected)
    assert len(seen) == 1


def test_a_projection_of_another_kind_is_called():
    layer = LambdaLayer(8, scope=3, dim_key=4).eval()
    x = torch.randn(2, 8, 5, 5)
    expected = layer(x)
    layer.qkv = nn.Sequential(layer.qkv)
    torch.testing.assert_close(layer(x), expected)


def test_gradients_in_evaluation_reach_every_parameter():
    layer = LambdaLayer(8, scope=3, dim_key=4, dtype=torch.float64).eval()
    layer.norm_query.running_var.fill_(2.0)
    x = torch.randn(2, 8, 5, 5, dtype=torch.float64)
    folded = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
    layer.norm_query.register_forward_hook(lambda *_: None)
    called = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
    torch.testing.assert_close(folded, called, atol=1e-10, rtol=1e-10)
