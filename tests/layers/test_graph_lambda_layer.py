"""The layer for graphs: batches of graphs of different sizes equal the graphs one by one."""

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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


def batch_of_two():
    """Nodes 0 to 3 and 4 to 5, nine edges within the graphs."""
    x, index, attributes, batch = collate([random_graph(4, 6), random_graph(2, 3)])
    return {"x": x, "edge_index": index, "edge_attr": attributes, "batch": batch}


ACROSS = torch.tensor([[0, 1, 5, 4], [1, 0, 4, 3]])
BAD_INPUTS = {
    "no tensor": ({"x": [1.0]}, TypeError, r"x must be a torch.Tensor, got list"),
    "integer nodes": ({"x": torch.ones(6, 8).long()}, TypeError, r"x must be a floating-point.*int64.*\.float\(\)"),
    "half nodes": ({"x": torch.ones(6, 8).half()}, TypeError, r"x must have the dtype .*float64, got torch.float16"),
    "double edges": (
        {"edge_attr": torch.ones(9, 3).float()},
        TypeError,
        r"edge_attr must have the dtype .*float64, got torch.float32; convert it with edge_attr.to\(",
    ),
    "other channels": ({"x": torch.ones(6, 7)}, ValueError, r"x must have shape \(nodes, 8\).*got \(6, 7\)"),
    "three axes": ({"x": torch.ones(2, 3, 8)}, ValueError, r"in one axis, got \(2, 3, 8\); use x.flatten\(0, 1\)"),
    "one axis": ({"x": torch.ones(8)}, ValueError, r"x must have shape \(nodes, 8\).*got \(8,\)"),
    "float index": (
        {"edge_index": torch.ones(2, 9)},
        TypeError,
        r"edge_index must be an int64 tensor of shape \(2, edges\).*got torch.float32; use .long\(\)",
    ),
    "a list": ({"edge_index": [[0], [1]]}, TypeError, r"edge_index must be a torch.Tensor of shape .* got list"),
    "int32 index": ({"edge_index": torch.ones(2, 9).int()}, TypeError, "edge_index must be an int64.*torch.int32"),
    "edges as rows": ({"edge_index": torch.ones(9, 2).long()}, ValueError, r"got \(9, 2\); use edge_index.t\(\)"),
    "flat index": ({"edge_index": torch.ones(9).long()}, ValueError, r"edge_index must have shape .* got \(9,\)"),
    "node out of range": (
        {"edge_index": torch.full((2, 9), 6)},
        ValueError,
        r"edge_index must hold nodes of x in \[0, 6\), got values from 6 to 6",
    ),
    "negative node": ({"edge_index": torch.full((2, 9), -1)}, ValueError, "got values from -1 to -1"),
    "edge across graphs": (
        {"edge_index": ACROSS, "edge_attr": torch.ones(4, 3).double()},
        ValueError,
        "edge 3 goes from node 4 in graph 1 to node 3 in graph 0; correct batch or the edge",
    ),
    "index elsewhere": (
        {"edge_index": torch.ones(2, 9, dtype=torch.int64, device="meta")},
        ValueError,
        "edge_index must be on the device of x, cpu, got meta",
    ),
    "no attributes": ({"edge_attr": None}, ValueError, "edge_attr must be given.*dim_edge=3"),
    "integer attributes": ({"edge_attr": torch.ones(9, 3).int()}, TypeError, "edge_attr must be a floating.*int32"),
    "other attributes": ({"edge_attr": torch.ones(9, 4)}, ValueError, r"with dim_edge=3.*got \(9, 4\)"),
    "attributes elsewhere": (
        {"edge_attr": torch.ones(9, 3, device="meta")},
        ValueError,
        "edge_attr .*device of x, cpu",
    ),
    "flat attributes": ({"edge_attr": torch.ones(9)}, ValueError, r"edge_attr must have shape .*got \(9,\)"),
    "attributes of fewer edges": (
        {"edge_attr": torch.ones(8, 3).double()},
        ValueError,
        r"a row for each edge.*edge_attr \(8, 3\) and edge_index \(2, 9\)",
    ),
    "batch of other length": (
        {"batch": torch.ones(5).long()},
        ValueError,
        r"batch must have shape \(6,\).*x, which has shape \(6, 8\); got \(5,\)",
    ),
    "float batch": ({"batch": torch.zeros(6)}, TypeError, r"batch must be an int64 .*torch.float32; use .long\(\)"),
    "negative graph": ({"batch": torch.full((6,), -2)}, ValueError, "number the graphs from 0, got values from -2 to"),
    "too few graphs": ({"num_graphs": 1}, ValueError, "0 to 1, got num_graphs=1; 2 or None would do"),
    "negative count": ({"num_graphs": -1}, ValueError, "num_graphs must not be negative, got -1"),
    "graphs without names": (
        {"batch": None, "num_graphs": 2},
        ValueError,
        "batch must name the graph of each node where num_graphs=2, got None",
    ),
    "no graph for nodes": (
        {"batch": None, "num_graphs": 0},
        ValueError,
        "batch must name the graph of each node where num_graphs=0, got None",
    ),
    "no count": ({"num_graphs": 2.0}, TypeError, "num_graphs must be an int or None, got 2.0"),
    "bool count": ({"num_graphs": True}, TypeError, "num_graphs must be an int or None, got True"),
}


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_inputs_are_named(name):
    change, error, message = BAD_INPUTS[name]
    layer = GraphLambdaLayer(8, dim_edge=3).double()
    with pytest.raises(error, match=message):
        layer(**{**batch_of_two(), **change})


def test_attributes_need_a_layer_that_takes_them():
    with pytest.raises(ValueError, match="edge_attr must be None, since the layer was built with dim_edge=None"):
        GraphLambdaLayer(8).double()(**batch_of_two())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 3}, "num_heads must divide dim_out = 8, got num_heads=3"),
        ({"num_heads": 0}, "num_heads must be a positive int, got 0"),
        ({"dim_key": 1.5}, "dim_key must be a positive int, got 1.5"),
        ({"intra_depth": True}, "intra_depth must be a positive int, got True"),
        ({"dim_edge": 0}, "dim_edge must be a positive int, got 0"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        GraphLambdaLayer(8, **options)


def test_graphs_without_nodes_change_nothing():
    layer = layer_in_eval(dim_edge=3)
    inputs = batch_of_two()
    expected = layer(**inputs)
    torch.testing.assert_close(layer(**inputs, num_graphs=5), expected)
    inputs["batch"] = inputs["batch"] * 3  # graphs 0 and 3
    torch.testing.assert_close(layer(**inputs), expected)


@pytest.mark.parametrize("given", [{}, {"batch": torch.zeros(0, dtype=torch.int64)}])
@pytest.mark.parametrize("num_graphs", [None, 0, 2])
@pytest.mark.parametrize("training", [True, False])
def test_no_nodes_at_all(given, num_graphs, training):
    layer = layer_in_eval().train(training)
    x = torch.zeros(0, 8, dtype=torch.float64, requires_grad=True)
    out = layer(x, torch.zeros(2, 0, dtype=torch.int64), **given, num_graphs=num_graphs)
    assert out.shape == (0, 8)
    out.sum().backward()
    assert x.grad.shape == (0, 8)


def test_with_num_graphs_no_value_is_read():
    """Tensors of the meta device have none: what reads a value, and so waits for a GPU, would raise."""
    inputs = batch_of_two()
    layer = GraphLambdaLayer(8, dim_edge=3, dtype=torch.float64, device="meta")
    assert layer(**{name: tensor.to("meta") for name, tensor in inputs.items()}, num_graphs=2).shape == (6, 8)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        layer = GraphLambdaLayer(8, dim_edge=3, dtype=torch.float64)
        fake = {name: mode.from_tensor(tensor) for name, tensor in inputs.items()}
        assert layer(**fake, num_graphs=2).shape == (6, 8)


def test_a_large_graph_costs_the_others_nothing():
    """One graph of 4,000 nodes and 2,000 of one: padded to the largest they would hold 8 million nodes."""
    layer = GraphLambdaLayer(8, norm_layer=nn.Identity)
    sizes = torch.cat([torch.tensor([4000]), torch.ones(2000, dtype=torch.int64)])
    batch = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            largest = max([largest, *(t.numel() for t in tree_leaves(out) if isinstance(t, torch.Tensor))])
            return out

    x, edges = torch.randn(6000, 8), torch.arange(6000).repeat(2, 1)
    with Watch():
        layer(x, edges, batch=batch).square().sum().backward()
    assert largest <= 6000 * 16 * 8


def test_gradients_are_those_of_the_graphs_one_by_one():
    layer = GraphLambdaLayer(8, dim_edge=3, dim_key=4, intra_depth=2, norm_layer=nn.Identity, dtype=torch.float64)
    graphs = [random_graph(5, 12), random_graph(1, 1), random_graph(9, 0)]

    def gradients(outs):
        return torch.autograd.grad(sum(out.square().sum() for out in outs), list(layer.parameters()))

    expected = gradients([layer(*graph) for graph in graphs])
    torch.testing.assert_close(gradients([layer(*collate(graphs))]), expected, atol=1e-10, rtol=1e-10)


def test_gradients_of_each_sample():
    """torch.func over the parameters: graphs of one structure with nodes and edges of their own."""
    layer = GraphLambdaLayer(8, dim_edge=3, dim_key=4, norm_layer=nn.Identity, dtype=torch.float64)
    inputs = batch_of_two()
    index, batch = inputs["edge_index"], inputs["batch"]
    x, attributes = torch.randn(3, 6, 8).double(), torch.randn(3, 9, 3).double()

    def loss(parameters, x, attributes):
        return torch.func.functional_call(layer, parameters, (x, index, attributes, batch)).square().sum()

    parameters = dict(layer.named_parameters())
    actual = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, x, attributes)
    for i in range(3):
        out = layer(x[i], index, attributes[i], batch)
        expected = torch.autograd.grad(out.square().sum(), list(parameters.values()))
        torch.testing.assert_close([actual[name][i] for name in parameters], list(expected))


def test_vmap_over_the_graphs_of_nodes():
    layer, inputs = layer_in_eval(), batch_of_two()
    index, batches = inputs["edge_index"][:, :0], torch.stack([inputs["batch"], inputs["batch"].flip(0) * 0])
    actual = torch.func.vmap(lambda batch: layer(inputs["x"], index, None, batch, 2))(batches)
    for out, batch in zip(actual, batches, strict=True):
        torch.testing.assert_close(out, layer(inputs["x"], index, None, batch, 2))


def test_what_is_not_a_number_stays_in_its_graph():
    layer = layer_in_eval(dim_edge=3)
    inputs = batch_of_two()
    expected = layer(**inputs)
    inputs["x"][4:] = float("nan")
    torch.testing.assert_close(layer(**inputs)[:4], expected[:4])


@pytest.mark.parametrize("num_graphs", [None, 2])
@pytest.mark.parametrize("compiled", [False, True])
def test_compiles_and_exports_for_any_number_of_nodes_edges_and_graphs(compiled, num_graphs):
    layer = GraphLambdaLayer(8, dim_edge=3, dim_key=4, num_heads=2, dtype=torch.float64).eval()
    inputs = {**batch_of_two(), "num_graphs": num_graphs}
    if compiled:
        other = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    else:
        nodes, edges = torch.export.Dim("nodes", max=10**6), torch.export.Dim("edges", max=10**6)
        shapes = {"x": {0: nodes}, "edge_index": {1: edges}, "edge_attr": {0: edges}, "batch": {0: nodes}}
        shapes["num_graphs"] = None if num_graphs is None else torch.export.Dim.DYNAMIC
        other = torch.export.export(layer, (), inputs, dynamic_shapes=shapes).module()
    torch.testing.assert_close(other(**inputs), layer(**inputs))
    x, index, attributes, batch = collate([random_graph(3, 2), random_graph(1, 4), random_graph(7, 9)])
    more = {"x": x, "edge_index": index, "edge_attr": attributes, "batch": batch}
    more["num_graphs"] = None if num_graphs is None else 3
    torch.testing.assert_close(other(**more), layer(**more))
    if compiled:
        expected, actual = (
            torch.autograd.grad(function(**more).square().sum(), list(layer.parameters()))
            for function in (layer, other)
        )
        torch.testing.assert_close(actual, expected)


def test_a_number_of_graphs_that_a_tensor_holds_can_be_exported():
    class Counted(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = GraphLambdaLayer(8, dim_edge=3, dtype=torch.float64).eval()

        def forward(self, graphs, **inputs):
            return self.layer(**inputs, num_graphs=graphs.item())

    model, inputs = Counted(), batch_of_two()
    program = torch.export.export(model, (torch.tensor(2),), inputs).module()
    torch.testing.assert_close(program(torch.tensor(4), **inputs), model(torch.tensor(4), **inputs))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    layer = GraphLambdaLayer(8, dim_edge=3).eval()
    inputs = {name: t.float() if t.is_floating_point() else t for name, t in batch_of_two().items()}
    with torch.autocast("cpu", dtype=dtype):
        out = layer(**inputs)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), layer(**inputs), atol=0.1, rtol=0.1)
    out.float().square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters())
