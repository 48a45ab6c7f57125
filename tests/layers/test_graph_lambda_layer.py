"""The layer for graphs: batches of graphs of different sizes equal the graphs one by one."""

import pytest
import torch

from lambdanets import GraphLambdaLayer


def random_graph(nodes, edges, dim_edge=3):
    index = torch.randint(nodes, (2, edges)) if nodes else torch.zeros(2, 0, dtype=torch.int64)
    return (
        torch.randn(nodes, 8, dtype=torch.float64),
        index,
        torch.randn(index.shape[1], dim_edge, dtype=torch.float64),
    )


def layer_in_eval(**options):
    layer = GraphLambdaLayer(8, dim_key=4, num_heads=2, dtype=torch.float64, **options)
    layer(*random_graph(30, 90, options.get("dim_edge") or 3)[: 3 if options.get("dim_edge") else 2])
    return layer.eval()


def collate(graphs):
    """As PyTorch Geometric's Batch does: nodes one after the other, indices moved."""
    xs, indices, attributes = zip(*graphs, strict=True)
    sizes = [len(x) for x in xs]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    index = torch.cat([index + start for index, start in zip(indices, starts, strict=True)], dim=1)
    batch = torch.repeat_interleave(torch.arange(len(xs)), torch.tensor(sizes))
    return torch.cat(xs), index, torch.cat(attributes), batch


@pytest.mark.parametrize("u", [1, 2])
def test_a_batch_is_its_graphs_one_by_one(u):
    layer = layer_in_eval(dim_edge=3, intra_depth=u)
    graphs = [random_graph(5, 12), random_graph(1, 1), random_graph(17, 40), random_graph(3, 0)]
    expected = torch.cat([layer(*graph) for graph in graphs])
    x, index, attributes, batch = collate(graphs)
    torch.testing.assert_close(layer(x, index, attributes, batch), expected)

    # Neither the order of the nodes nor that of the edges matters.
    shuffled = torch.randperm(len(x))
    places = shuffled.argsort()
    edges = torch.randperm(index.shape[1])
    out = layer(x[shuffled], places[index][:, edges], attributes[edges], batch[shuffled])
    torch.testing.assert_close(out, expected[shuffled])


def test_equations_by_hand():
    layer = layer_in_eval(dim_edge=3, intra_depth=2, dim_out=6)
    x, index, attributes = random_graph(4, 6)
    query, key, value = layer.qkv(x).split([8, 8, 6], dim=1)
    query, value = layer.norm_query(query), layer.norm_value(value)
    expected = torch.zeros(4, 6, dtype=torch.float64)
    for node in range(4):
        total = torch.zeros(4, 3, dtype=torch.float64)  # the lambda, k x v
        for u in range(2):
            weights = key[:, 4 * u : 4 * u + 4].softmax(0)
            values = value[:, 3 * u : 3 * u + 3]
            total += weights.T @ values
            for edge in range(6):
                if index[1, edge] == node:
                    embedding = layer.edge(attributes[edge]).view(4, 2)[:, u]
                    total += torch.outer(embedding, values[index[0, edge]])
        for head in range(2):
            expected[node, 3 * head : 3 * head + 3] = query[node, 4 * head : 4 * head + 4] @ total
    torch.testing.assert_close(layer(x, index, attributes), expected)


def test_every_parameter_gets_a_gradient():
    layer = GraphLambdaLayer(8, dim_edge=3)
    x, index, attributes = (t.float() if t.is_floating_point() else t for t in random_graph(6, 9))
    layer(x, index, attributes, torch.zeros(6, dtype=torch.int64)).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in layer.parameters())


def test_edges_without_attributes_share_one_embedding():
    layer = layer_in_eval()
    x, index, _ = random_graph(6, 9)
    assert layer.edge.weight.shape == (4, 1)
    assert not torch.allclose(layer(x, index), layer(x, index[:, :0]))


@pytest.mark.parametrize(
    ("options", "change", "error", "message"),
    [
        ({"dim_edge": 3}, {"edge_attr": None}, ValueError, "edge_attr must be given.*dim_edge=3"),
        ({}, {}, ValueError, r"edge_attr must have shape.*dim_edge=None.*got \(9, 3\)"),
        (
            {"dim_edge": 3},
            {"x": torch.ones(6, 7)},
            ValueError,
            r"x must have shape \(nodes, 8\), got \(6, 7\)",
        ),
        (
            {"dim_edge": 3},
            {"batch": torch.ones(5).long()},
            ValueError,
            r"batch must be int64 of shape \(6,\)",
        ),
        ({"dim_edge": 3}, {"edge_index": torch.ones(2, 9)}, TypeError, "index must be an int64 tensor"),
        (
            {"dim_edge": 3},
            {"edge_index": torch.full((2, 9), 6)},
            ValueError,
            r"row 0 must hold query positions in \[0, 6\), got values from 6 to 6",
        ),
    ],
)
def test_bad_inputs_are_named(options, change, error, message):
    layer = GraphLambdaLayer(8, **options).double()
    x, index, attributes = random_graph(6, 9)
    arguments = {"x": x, "edge_index": index, "edge_attr": attributes, **change}
    with pytest.raises(error, match=message):
        layer(**arguments)


def test_heads_must_divide():
    with pytest.raises(ValueError, match="num_heads must divide dim_out = 8, got num_heads=3"):
        GraphLambdaLayer(8, num_heads=3)
