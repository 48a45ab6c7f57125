"""The maps S: layers whose maps are known, and every kind of layer against the reference."""

import numpy as np
import pytest
import torch
from torch import nn

import lambdanets
from explanation_layers import layer_and_input
from lambdanets import DensePositions, EdgePositions, GraphLambdaLayer, GridPositions, LambdaLayer, lambda_apply
from lambdanets.explanation.capture import parts_of
from lambdanets.layers import TokenLambda


def plain_layer(**arguments):
    """One head and one channel of everything: the query is 1, the key 50 times the input, the value the input."""
    layer = LambdaLayer(1, num_heads=1, dim_key=1, qkv_bias=True, norm_layer=nn.Identity, **arguments).eval()
    with torch.no_grad():
        layer.qkv.weight.copy_(torch.tensor([0.0, 50.0, 1.0]).reshape(layer.qkv.weight.shape))
        layer.qkv.bias.copy_(torch.tensor([1.0, 0.0, 0.0]))
        layer.positions.zero_()
    return layer


@pytest.mark.smoke
def test_a_table_that_shifts():
    layer = plain_layer(size=(4, 5))
    with torch.no_grad():
        layer.positions[0, 0, 3 + 1, 4 + 0] = 1.0  # offset (1, 0)
        layer.qkv.weight[1] = 0
    x = torch.randn(1, 1, 4, 5)
    explanation = lambdanets.explain(layer, x)
    for row in range(4):
        for column in range(5):
            expected = np.zeros((4, 5), np.float32)
            if row < 3:
                expected[row + 1, column] = 1
            np.testing.assert_array_equal(explanation.maps("(model)", (row, column), 0, "position"), expected)
            np.testing.assert_allclose(explanation.maps("(model)", (row, column), 0, "content"), 1 / 20, rtol=1e-6)
    out = layer(x)[0, 0] - x.mean()
    torch.testing.assert_close(out[:3], x[0, 0, 1:])


def test_keys_that_pick_one_position():
    x = torch.zeros(1, 1, 4, 5)
    x[0, 0, 2, 3] = 1.0
    explanation = lambdanets.explain(plain_layer(scope=3), x)
    expected = np.zeros((4, 5))
    expected[2, 3] = 1
    for query in ((0, 0), (2, 3), (3, 1)):
        np.testing.assert_allclose(explanation.maps("(model)", query, 0, "content"), expected, atol=1e-6)
        assert not explanation.maps("(model)", query, 0, "position").any()
        np.testing.assert_allclose(explanation.maps("(model)", query, 0, weighted=True), expected, atol=1e-6)


def test_a_scope_ends_where_it_ends():
    layer = plain_layer(scope=(3, 1))
    with torch.no_grad():
        layer.positions.copy_(torch.tensor([2.0, 3.0, 4.0]).reshape(1, 1, 3, 1))
    explanation = lambdanets.explain(layer, torch.randn(1, 1, 4, 2))
    np.testing.assert_array_equal(explanation.maps("(model)", (0, 1), 0, "position"), [[0, 3], [0, 4], [0, 0], [0, 0]])
    np.testing.assert_array_equal(explanation.maps("(model)", (2, 0), 0, "position"), [[0, 0], [2, 0], [3, 0], [4, 0]])


def dense_positions(layer, n, m, grid):
    """E of TokenLambda with prefix tokens, written out from the table in its docstring."""
    p = layer.prefix_tokens
    dense = torch.zeros(n, m, layer.dim_key, layer.intra_depth, dtype=torch.float64)
    dense[p:, p:] = GridPositions(layer.positions, grid).dense()
    dense[p:, :p] = layer.prefix_keys.permute(2, 1, 0)
    dense[:p, p:] = layer.prefix_queries.permute(2, 1, 0)[:, None]
    dense[:p, :p] = layer.prefix_pairs.permute(2, 3, 1, 0)
    return DensePositions(dense)


@torch.no_grad()
def expected_weights(layer, args):
    """Content and position weights (n, h, u, m) by the reference: values that are a one for each context position."""
    x, context = args[0], args[1] if len(args) > 1 and not isinstance(layer, GraphLambdaLayer) else None
    mask = args[2].reshape(1, -1) if len(args) > 2 and not isinstance(layer, GraphLambdaLayer) else None
    query, key, _ = (part[0] for part in parts_of(layer, x, context))
    n, m, u = query.shape[1], key.shape[1], key.shape[0]
    graph = torch.zeros(n, dtype=torch.long)
    if isinstance(layer, GraphLambdaLayer):
        index = args[1]
        attributes = args[2] if len(args) > 2 else torch.ones(index.shape[1], 1).double()
        graph = args[3] if len(args) > 3 else graph
        embedding = layer.edge(attributes).unflatten(1, (layer.dim_key, u))
        positions = DensePositions(EdgePositions(index.flip(0), embedding).dense(n, m))
    elif layer.positions is None:
        positions = None
    elif isinstance(layer, TokenLambda):
        tokens = n - layer.prefix_tokens
        grid = {8: (2, 3), 10: (3, 3)}[n] if layer.ndim == 2 else (tokens,)
        positions = dense_positions(layer, n, m, grid) if layer.prefix_tokens else GridPositions(layer.positions, grid)
    else:
        positions = GridPositions(layer.positions, tuple(x.shape[2:]))
    content, position = torch.zeros(2, n, layer.num_heads, u, m, dtype=torch.float64)
    for one in graph.unique():
        own = graph == one
        seen = own[None] if mask is None else mask
        for d in range(u):
            value = torch.zeros(1, u, m, m, dtype=torch.float64)
            value[0, d] = torch.eye(m)
            options = {"causal": getattr(layer, "causal", False), "kernel": "reference"}
            visible = seen if m == n else mask
            by_content = lambda_apply(query[None], key[None], value, mask=visible, **options)[0]
            content[own, :, d] = by_content.transpose(0, 1)[own]
            if positions is not None:
                by_position = lambda_apply(query[None], None, value, positions, mask=mask, **options)[0]
                position[own, :, d] = by_position.transpose(0, 1)[own]
    return content, position


def test_every_kind_of_layer_against_the_reference(kind):
    layer, args = layer_and_input(kind)
    terms = lambdanets.explain(layer, args).terms["(model)"]
    content, position = expected_weights(layer, args)
    assert len(content) == terms.num_queries
    for query in range(terms.num_queries):
        weights = terms.weights(query)
        np.testing.assert_allclose(weights.content, content[query], atol=1e-10)
        np.testing.assert_allclose(weights.position, position[query], atol=1e-10)


def test_prefix_tokens_stand_apart():
    layer, args = layer_and_input("tokens, prefix")
    explanation = lambdanets.explain(layer, args)
    _, position = expected_weights(layer, args)
    on_grid = explanation.maps("(model)", (1, 2), 1, "position")
    of_token = explanation.maps("(model)", 1, 1, "position", prefix=True)
    np.testing.assert_allclose(on_grid, position[7, 1, :, 2:].detach().reshape(2, 2, 3), atol=1e-10)
    np.testing.assert_allclose(of_token, position[1, 1, :, :2].detach(), atol=1e-10)


def test_weights_of_edges():
    layer, args = layer_and_input("graphs")
    explanation = lambdanets.explain(layer, args)
    index = args[1]
    weights = explanation.edges("(model)", part="position")
    assert weights.shape == (4, 8)
    for node in range(7):
        summed = np.zeros((4, 7))
        for edge in range(8):
            if index[1, edge] == node:
                summed[:, index[0, edge]] += weights[:, edge]
        np.testing.assert_allclose(explanation.maps("(model)", node, part="position"), summed, atol=1e-10)
    content = explanation.edges("(model)", 2, "content")
    assert content[1] == pytest.approx(explanation.maps("(model)", 0, 2, "content")[1])


def test_memory_of_a_query_does_not_grow_with_all_queries():
    import tracemalloc

    side = 96
    explanation = lambdanets.explain(LambdaLayer(8, scope=7).eval(), torch.randn(1, 8, side, side))
    tracemalloc.start()
    explanation.maps("(model)", (5, 5))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 * side**2 * 4 < side**4
