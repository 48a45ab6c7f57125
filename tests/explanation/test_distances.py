import pytest
import torch
from torch import nn

from lambdanets import GraphLambdaLayer, LambdaLayer
from lambdanets.explanation import learnt
from lambdanets.explanation.distances import offset_lengths


def test_distances_are_weighted_by_the_size_of_the_entries():
    layer = LambdaLayer(8, size=(5, 6), intra_depth=2)
    nn.init.zeros_(layer.positions)
    with torch.no_grad():
        layer.positions[1, 3, 4 + 3, 5 + 4] = -2.0  # offset (3, 4), of length 5
        layer.positions[0, 2, 4, 5] = 6.0  # offset 0
    (found,) = learnt(layer)
    assert found.distance == pytest.approx(5 * 2 / 8)
    assert found.table.shape == (2, 16, 9, 11)


def test_even_tables():
    layer = LambdaLayer(8, scope=3, ndim=1)
    nn.init.ones_(layer.positions)
    (found,) = learnt(layer)
    assert found.distance == pytest.approx(2 / 3)
    assert found.uniform == pytest.approx(2 / 3)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_tables_that_are_not_finite_are_refused(number):
    model = nn.Sequential(LambdaLayer(8, scope=3))
    with torch.no_grad():
        model[0].positions[0, 3, 1, 2] = number
    with pytest.raises(ValueError, match="table of positions of layer '0' has numbers that are not finite"):
        learnt(model)


def test_layers_without_a_table_are_left_out():
    model = nn.ModuleList([GraphLambdaLayer(8), LambdaLayer(8, scope=3)])
    assert [found.layer for found in learnt(model)] == ["1"]
    nn.init.zeros_(model[1].positions)
    assert learnt(model)[0].distance == 0


@pytest.mark.parametrize(("ndim", "scope"), [(1, 9), (2, (3, 5)), (3, 3)])
def test_entries_that_no_query_sees_do_not_count(ndim, scope):
    """Those of later positions in a causal layer, which no training reaches."""
    layer = LambdaLayer(8, scope=scope, ndim=ndim, causal=True)
    layer(torch.randn(1, 8, *[9] * ndim)).square().sum().backward()
    unseen = layer.positions.grad == 0
    (before,) = learnt(layer)
    with torch.no_grad():
        layer.positions[unseen] = 100.0
    (found,) = learnt(layer)
    assert (found.distance, found.uniform) == (before.distance, before.uniform)
    seen = ~unseen.all(dim=0).all(dim=0).numpy()
    assert found.uniform == pytest.approx(offset_lengths(seen.shape)[seen].mean())
