"""The lambda layer with an ablation: normalisations, terms and starts, by the plain layer and the equations."""

import math

import pytest
import torch

from lambdanets import LambdaLayer
from lambdanets.layers.ablated_lambda import NORMALISATIONS, STARTS, AblatedLambdaLayer

OPTIONS = {"num_heads": 2, "dim_key": 3, "intra_depth": 2, "size": (4, 3), "dtype": torch.float64}


def pair(**changes):
    plain, ablated = LambdaLayer(6, 8, **OPTIONS), AblatedLambdaLayer(6, 8, **OPTIONS, **changes)
    ablated.load_state_dict(plain.state_dict())
    return plain, ablated


def expected(layer, x, normalise, terms):
    """Both terms by the equations."""
    query, key, value = layer.project(x)
    if normalise == "softmax of queries too":
        query = query.softmax(-1)
    if normalise.startswith("softmax"):
        key = key.softmax(2)
    elif normalise == "l2":
        key = key / key.square().sum(2, keepdim=True).sqrt()
    height, width = x.shape[2:]
    where = [(y, x) for y in range(height) for x in range(width)]
    table = layer.positions
    positions = torch.stack(
        [torch.stack([table[:, :, j - y + height - 1, m - x + width - 1] for j, m in where]) for y, x in where]
    )  # (n, m, u, k)
    content = torch.einsum("bhnk,bumk,bumv->bhnv", query, key, value)
    position = torch.einsum("bhnk,nmuk,bumv->bhnv", query, positions, value)
    out = {"content": content, "position": position, "both": content + position}[terms]
    return out.transpose(2, 3).flatten(1, 2).unflatten(2, (height, width))


@pytest.mark.parametrize("terms", ["both", "content", "position"])
@pytest.mark.parametrize("normalise", NORMALISATIONS)
def test_the_equations(normalise, terms):
    plain, layer = pair(normalise=normalise, terms=terms)
    x = torch.randn(2, 6, 4, 3, dtype=torch.float64)
    torch.testing.assert_close(layer(x), expected(plain, x, normalise, terms), rtol=1e-10, atol=1e-10)
    assert layer.positions.requires_grad == (terms != "content")


@pytest.mark.parametrize("norms", ["queries", "values"])
def test_one_norm_alone(norms):
    layer = AblatedLambdaLayer(6, 8, **OPTIONS, norms=norms)
    x = torch.randn(2, 6, 4, 3, dtype=torch.float64)
    names = {"queries": "norm_query", "values": "norm_value"}
    has = {kind: isinstance(getattr(layer, name), torch.nn.BatchNorm2d) for kind, name in names.items()}
    assert has == {kind: kind == norms for kind in names}
    query, _, value = layer.project(x)
    # What has no norm is the projection itself, which starts as in a layer without norms.
    torch.testing.assert_close(layer(x), expected(layer, x, "softmax", "both"), rtol=1e-10, atol=1e-10)
    raw = layer.qkv(x)
    plain = raw[:, :6].unflatten(1, (2, 3)) if norms == "values" else raw[:, 12:].unflatten(1, (2, 4))
    got = query if norms == "values" else value
    torch.testing.assert_close(got, plain.flatten(3).transpose(2, 3), rtol=1e-12, atol=1e-12)
    without = LambdaLayer(6, 8, **{**OPTIONS, "dtype": torch.float32}, norm_layer="none")
    part = slice(0, 6) if norms == "values" else slice(12, 20)
    assert layer.qkv.weight[part].std().item() == pytest.approx(without.qkv.weight[part].std().item(), rel=0.6)


@pytest.mark.parametrize("normalise", ["softmax", "softmax of queries too"])
def test_a_position_bias_meets_the_query_of_the_position_term(normalise):
    layer = AblatedLambdaLayer(6, 8, **OPTIONS, normalise=normalise, position_bias=True)
    x = torch.randn(2, 6, 4, 3, dtype=torch.float64)
    without = layer(x)
    torch.nn.init.normal_(layer.position_bias)
    query = layer.norm_query(layer.qkv(x)[:, :6]).unflatten(1, (2, 3))  # (b, h, k, *grid)
    query = query if normalise == "softmax" else query.softmax(2)
    added = torch.einsum("bhkij,k->bhij", query, layer.position_bias).repeat_interleave(4, dim=1)
    torch.testing.assert_close(layer(x), without + added, rtol=1e-10, atol=1e-10)


def test_by_default_it_is_the_layer_itself():
    torch.manual_seed(0)
    plain = LambdaLayer(6, 8, **OPTIONS)
    torch.manual_seed(0)
    ablated = AblatedLambdaLayer(6, 8, **OPTIONS)
    torch.testing.assert_close(ablated.state_dict(), plain.state_dict(), rtol=0, atol=0)
    x = torch.randn(2, 6, 4, 3, dtype=torch.float64)
    torch.testing.assert_close(ablated(x), plain(x), rtol=0, atol=0)


@pytest.mark.parametrize("context", [{"size": 7}, {"scope": 7}])
def test_starts(context):
    layers = {start: AblatedLambdaLayer(64, **context, start=start) for start in STARTS}
    spread = {start: layer.positions.std().item() for start, layer in layers.items()}
    assert spread["unit positions"] == pytest.approx(1, rel=0.1)
    assert spread["default"] == pytest.approx((16 * 49) ** -0.5, rel=0.1)
    assert spread["balanced"] == pytest.approx((16 * 49) ** -0.5, rel=0.1)
    # A uniform distribution up to 1/√49 has a deviation of 1/√(3 · 49).
    convolution = 1 if "size" in context else (3 * 49) ** -0.5
    assert spread["convolution"] == pytest.approx(convolution, rel=0.1)
    assert layers["convolution"].qkv.weight.abs().max() <= 64**-0.5
    out = layers["balanced"](torch.randn(64, 64, 7, 7))
    if "size" in context:
        assert out.var().item() == pytest.approx(1, rel=0.25)
    assert layers["balanced"].norm_query.weight[0].item() == pytest.approx((1 + 16 * math.e / 49) ** -0.5)


@pytest.mark.parametrize("changes", [{"norm_layer": "none"}, {"norms": "values"}])
def test_balanced_without_a_norm_of_the_queries(changes):
    layer = AblatedLambdaLayer(64, size=7, start="balanced", **changes)
    assert layer(torch.randn(64, 64, 7, 7)).var().item() == pytest.approx(1, rel=0.25)
    assert "start='balanced'" in repr(layer)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"start='balanced' scales the queries, which norm_layer's InstanceNorm2d"):
        AblatedLambdaLayer(8, scope=3, start="balanced", norm_layer=torch.nn.InstanceNorm2d)
    for name, message in [
        ("normalise", "unknown normalise 'sofmax'. Did you mean 'softmax'"),
        ("terms", "unknown terms 'sofmax'.*'position'"),
        ("start", "unknown start 'sofmax'.*'balanced'"),
    ]:
        with pytest.raises(ValueError, match=message):
            AblatedLambdaLayer(8, scope=3, **{name: "sofmax"})
    with pytest.raises(ValueError, match="must be for images and not causal, got ndim=1"):
        AblatedLambdaLayer(8, scope=3, ndim=1)
    with pytest.raises(ValueError, match=r"kernel='banded' cannot run here: .* got no positions"):
        AblatedLambdaLayer(8, scope=3, terms="content", kernel="banded")
    with pytest.raises(ValueError, match="position_bias=True adds to the position term, which terms='content'"):
        AblatedLambdaLayer(8, scope=3, terms="content", position_bias=True)
    layer = AblatedLambdaLayer(8, scope=3, normalise="none")
    with pytest.raises(ValueError, match="mask must be None with normalise='none'"):
        layer(torch.randn(2, 8, 2, 2), mask=torch.ones(2, 4, dtype=torch.bool))
