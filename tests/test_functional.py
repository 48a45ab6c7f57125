"""The contract of ``lambda_apply``: what it refuses, and how it says so."""

import pytest
import torch

from helpers import dense_call, edge_call, grid_call, outputs_and_gradients, random_call
from lambdanets import DensePositions, EdgePositions, GridPositions, LambdaLayer, lambda_apply
from lambdanets.functional import lambda_apply_by_graph


@pytest.mark.parametrize("kernel", [None, "reference"])
@pytest.mark.parametrize(
    "make", [lambda: grid_call((3, 4), (5, 7)), lambda: dense_call(4, 5), lambda: edge_call(4, 5, 9)]
)
def test_the_two_terms_add_up(make, kernel):
    query, key, value, positions = make().args
    position_only = lambda_apply(query, None, value, positions, kernel=kernel)
    content_only = lambda_apply(query, key, value, kernel=kernel)
    torch.testing.assert_close(position_only + content_only, lambda_apply(query, key, value, positions))


@pytest.mark.parametrize("scale", [1e4, 6e4])
def test_large_keys_do_not_overflow(scale):
    call = random_call(9, u=2, dtype=torch.float32)
    call.key = torch.randn_like(call.key).sign() * scale
    out, *grads = outputs_and_gradients(lambda c: lambda_apply(*c.args, **c.kwargs), call)
    assert all(torch.isfinite(t).all() for t in (out, *grads))


def change(call, **named):
    for name, new in named.items():
        setattr(call, name, new)
    return call


GRID = ((3, 4), (5, 7))
BAD_CALLS = {
    "integer query": (
        lambda: change(grid_call(*GRID), query=torch.ones(2, 3, 12, 4, dtype=torch.int64)),
        TypeError,
        r"query must be a floating-point tensor, got torch.int64; convert it with .float\(\)",
    ),
    "no tensor": (
        lambda: change(random_call(4), key=[1.0]),
        TypeError,
        "key must be a torch.Tensor, got list",
    ),
    "nothing to compute": (
        lambda: change(random_call(4), key=None),
        ValueError,
        "key and positions must not both",
    ),
    "mixed dtypes": (
        lambda: change(random_call(4), value=torch.ones(2, 1, 4, 5)),
        TypeError,
        "query, key and value must have one dtype.*value torch.float32",
    ),
    "three axes": (
        lambda: change(random_call(4), query=torch.ones(2, 4, 4, dtype=torch.float64)),
        ValueError,
        r"query must have shape \(b, h, n, k\), got \(2, 4, 4\)",
    ),
    "key and value disagree": (
        lambda: change(random_call(4), value=torch.ones(2, 1, 5, 5, dtype=torch.float64)),
        ValueError,
        r"key and value must agree.*\(2, 1, 4, 4\).*\(2, 1, 5, 5\)",
    ),
    "batches disagree": (
        lambda: change(random_call(4), query=torch.ones(3, 3, 4, 4, dtype=torch.float64)),
        ValueError,
        "query and value must have one batch size",
    ),
    "depths disagree": (
        lambda: change(random_call(4), query=torch.ones(2, 3, 4, 6, dtype=torch.float64)),
        ValueError,
        "query and key must have one query depth k",
    ),
    "positions of another k": (
        lambda: change(random_call(12), positions=GridPositions(torch.ones(1, 6, 5, 7), (3, 4))),
        ValueError,
        r"positions must have the queries' depth k = 4, got 6: query .*\(2, 3, 12, 4\).*table .*\(1, 6, 5, 7\)",
    ),
    "positions of another u": (
        lambda: change(random_call(12), positions=GridPositions(torch.ones(2, 4, 5, 7), (3, 4))),
        ValueError,
        r"positions must have the values' intra-depth u = 1, got 2: value .*\(2, 1, 12, 5\).*table .*\(2, 4, 5, 7\)",
    ),
    "grid that is not n": (
        lambda: change(random_call(12), positions=GridPositions(torch.ones(1, 4, 5, 7), (3, 5))),
        ValueError,
        r"got n = 12 and m = 12: positions.grid = \(3, 5\) has 15 positions",
    ),
    "dense positions of another k": (
        lambda: change(dense_call(3, 4), positions=DensePositions(torch.ones(3, 4, 5, 1))),
        ValueError,
        r"depth k = 4, got 5: query .*, positions.embedding has shape \(3, 4, 5, 1\)",
    ),
    "edges of another u": (
        lambda: change(edge_call(3, 4, 2), positions=EdgePositions(torch.ones(2, 2).long(), torch.ones(2, 4, 3))),
        ValueError,
        r"intra-depth u = 1, got 3: value .*, positions.embedding has shape \(2, 4, 3\)",
    ),
    "grid without positions for some": (
        lambda: change(random_call(12), positions=GridPositions(torch.ones(1, 4, 5, 7), (0, 12))),
        ValueError,
        r"positions.grid = \(0, 12\) has 0 positions; pass the grid of this input",
    ),
    "another context on a grid": (
        lambda: change(random_call(12, 7), positions=GridPositions(torch.ones(1, 4, 5, 7), (3, 4))),
        ValueError,
        r"n = 12 queries and m = 7 context positions on positions.grid = \(3, 4\); for another context use "
        r"DensePositions with an embedding \(n, m, k, u\) = \(12, 7, 4, 1\), or positions=None",
    ),
    "causal of another type": (
        lambda: change(random_call(4), causal="yes"),
        TypeError,
        "causal must be True or False, got 'yes'",
    ),
    "causal for another context": (
        lambda: change(random_call(4, 5), causal=True),
        ValueError,
        "causal=True needs as many queries as context positions, got n = 4 and m = 5",
    ),
    "dense of another m": (
        lambda: change(dense_call(3, 4), positions=DensePositions(torch.ones(3, 5, 4, 1))),
        ValueError,
        r"got n = 3 and m = 4: positions.embedding must have shape \(n, m, k, u\) = \(3, 4, 4, 1\)",
    ),
    "edges out of range": (
        lambda: change(
            edge_call(3, 4, 2), positions=EdgePositions(torch.tensor([[0, 3], [0, 1]]), torch.ones(2, 4, 1))
        ),
        ValueError,
        r"row 0 must hold query positions in \[0, 3\), got values from 0 to 3",
    ),
    "positions of another type": (
        lambda: change(random_call(4), positions=torch.ones(1, 4, 3)),
        TypeError,
        "positions must be GridPositions.*got Tensor",
    ),
    "integer mask": (
        lambda: change(random_call(4), mask=torch.ones(2, 4)),
        TypeError,
        r"mask must be a bool tensor.*got torch.float32; convert it with mask.bool\(\)",
    ),
    "mask of another shape": (
        lambda: change(random_call(4), mask=torch.ones(2, 5, dtype=torch.bool)),
        ValueError,
        r"mask must have shape \(b, m\) = \(2, 4\), got \(2, 5\)",
    ),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_arguments_are_named(name):
    make, error, message = BAD_CALLS[name]
    call = make()
    with pytest.raises(error, match=message):
        lambda_apply(*call.args, **call.kwargs)


def test_unknown_kernel_gives_the_nearest():
    call = grid_call(*GRID)
    with pytest.raises(ValueError, match="got 'query_frist'; did you mean 'query_first'"):
        lambda_apply(*call.args, kernel="query_frist")


@pytest.mark.parametrize("name", ["key", "value", "mask", "positions.table"])
def test_tensors_on_two_devices_are_refused(name):
    call = grid_call((3, 3), (3, 3))
    tensors = {"key": call.key, "value": call.value, "mask": torch.ones(2, 9, dtype=torch.bool)}
    table = call.positions.table.to("meta") if name == "positions.table" else call.positions.table
    if name in tensors:
        tensors[name] = tensors[name].to("meta")
    with pytest.raises(ValueError, match=f"{name} must be on the device of query, cpu, got meta"):
        lambda_apply(call.query, tensors["key"], tensors["value"], GridPositions(table, (3, 3)), mask=tensors["mask"])


def test_autocast_leaves_float64_alone():
    call = grid_call((3, 3), (3, 3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert lambda_apply(*call.args).dtype == torch.float64


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kernel", [None, "query_first", "spectral", "banded", "portable", "reference"])
def test_a_grid_without_positions_gives_none(kernel, causal):
    call = grid_call((0, 5), (3, 3)).requiring_grad()
    out = lambda_apply(*call.args, causal=causal, kernel=kernel)
    assert out.shape == (2, 3, 0, 5)
    out.sum().backward()


@pytest.mark.parametrize(("n", "m"), [(0, 4), (4, 0), (0, 0)])
def test_no_queries_or_no_context(n, m):
    call = dense_call(n, m, u=2).requiring_grad()
    out = lambda_apply(*call.args)
    assert torch.equal(out, torch.zeros(2, 3, n, 5, dtype=out.dtype))
    out.sum().backward()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("make", [lambda d: grid_call((3, 4), (5, 7), dtype=d), lambda d: random_call(12, dtype=d)])
def test_the_meta_device_gives_shapes(make, dtype, causal):
    with torch.device("meta"):
        call = make(dtype).requiring_grad()
    out = lambda_apply(*call.args, causal=causal)
    assert (out.shape, out.dtype, out.device.type) == ((2, 3, 12, 5), dtype, "meta")
    out.sum().backward()
    assert call.query.grad.shape == call.query.shape


def no_edges():
    index, embedding = torch.zeros(2, 0, dtype=torch.int64), torch.zeros(0, 4, 1, dtype=torch.float64)
    return random_call(0, positions=EdgePositions(index, embedding))


@pytest.mark.parametrize("has_key", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("make", [lambda: grid_call((0,), (3,)), lambda: dense_call(0, 0), no_edges])
def test_no_positions_without_values(make, causal, has_key):
    """On the meta device and for many samples at once, where no value can be read."""
    with torch.device("meta"):
        call = grid_call((0, 3), (3, 3))
        out = lambda_apply(call.query, call.key if has_key else None, call.value, call.positions, causal=causal)
        assert out.shape == (2, 3, 0, 5)
    query, key, value, positions = make().args
    key = key if has_key else None

    def op(query):
        return lambda_apply(query, key, value, positions, causal=causal)

    assert torch.func.vmap(op)(torch.stack([query, query])).shape == (2, 2, 3, 0, 5)


GRAPHS = {"batch": torch.tensor([0, 1, 1, 2]), "num_graphs": 3}
BAD_GRAPHS = {
    "no key": ({"key": None}, TypeError, "key must be a torch.Tensor, got None"),
    "list": (
        {"batch": [0, 1, 1, 2]},
        TypeError,
        r"batch must be a torch.Tensor of shape \(nodes,\), .* int64, got list",
    ),
    "int32": (
        {"batch": GRAPHS["batch"].int()},
        TypeError,
        r"batch must be an int64 tensor.*got torch.int32; use .long",
    ),
    "other nodes": (
        {"batch": GRAPHS["batch"][:3]},
        ValueError,
        r"batch must have shape \(nodes,\) = \(4,\), got \(3,\)",
    ),
    "two axes": ({"batch": GRAPHS["batch"][None]}, ValueError, r"batch must have shape .* got \(1, 4\)"),
    "device": (
        {"batch": GRAPHS["batch"].to("meta")},
        ValueError,
        "batch must be on the device of query, cpu, got meta",
    ),
    "key's device": ({"key": torch.ones(2, 1, 4, 4, device="meta", dtype=torch.float64)}, ValueError, "key must be on"),
    "float": ({"num_graphs": 3.0}, TypeError, "num_graphs must be an int, got 3.0"),
    "bool": ({"num_graphs": True}, TypeError, "num_graphs must be an int, got True"),
    "negative": ({"num_graphs": -1}, ValueError, "num_graphs must not be negative, got -1"),
    "grid": ({"positions": GridPositions(torch.ones(1, 4, 3), (4,))}, TypeError, "positions must be EdgePositions or"),
    "queries": ({"query": torch.ones(2, 3, 5, 4).double()}, ValueError, "query and value must have the same nodes"),
}


@pytest.mark.parametrize("name", BAD_GRAPHS)
def test_bad_arguments_of_graphs_are_named(name):
    changed, error, message = BAD_GRAPHS[name]
    query, key, value = random_call(4).args[:3]
    arguments = {"query": query, "key": key, "value": value, **GRAPHS, "positions": None}
    assert lambda_apply_by_graph(**arguments).shape == (2, 3, 4, 5)
    with pytest.raises(error, match=message):
        lambda_apply_by_graph(**{**arguments, **changed})


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_dtypes_without_arithmetic_are_refused(dtype):
    query, key, value = (t.to(dtype) for t in random_call(4).args[:3])
    with pytest.raises(TypeError, match=r"query must be of one of the dtypes float64, .*got torch.float8"):
        lambda_apply(query, key, value)


@pytest.mark.parametrize("has_key", [False, True])
@pytest.mark.parametrize("kernel", [None, "spectral", "banded", "reference", "portable"])
@pytest.mark.parametrize("sizes", [{"u": 0}, {"k": 0}, {"v": 0}, {"h": 0}, {"b": 0}])
def test_an_empty_sum_is_zero(sizes, kernel, has_key):
    call = grid_call((3, 4), (3, 3), **sizes).requiring_grad()
    out = lambda_apply(call.query, call.key if has_key else None, call.value, call.positions, kernel=kernel)
    assert torch.equal(out, torch.zeros(call.query.shape[:3] + call.value.shape[3:], dtype=torch.float64))
    for grad in torch.autograd.grad(out.sum(), [call.query, call.value, call.positions.table]):
        assert not grad.any()


SPARSE = {
    "query": lambda t: lambda_apply(t, None, torch.zeros(1, 1, 4, 3), GridPositions(torch.zeros(1, 2, 3), (4,))),
    "key": lambda t: lambda_apply(torch.zeros(1, 1, 4, 2), t, torch.zeros(1, 1, 4, 3)),
    "value": lambda t: lambda_apply(torch.zeros(1, 1, 4, 2), torch.zeros(1, 1, 4, 2), t),
    "positions.table": lambda t: GridPositions(t[0], (4,)),
    "positions.embedding": lambda t: DensePositions(t),
    "x": lambda t: LambdaLayer(4, scope=3)(t),
}


@pytest.mark.parametrize("name", SPARSE)
def test_a_sparse_or_nested_tensor_is_named(name):
    dense = torch.zeros(1, 1, 4, 2)
    with pytest.raises(TypeError, match=rf"^{name} must be a dense tensor, .*torch\.sparse_coo; use \.to_dense\(\)"):
        SPARSE[name](dense.to_sparse())
    if name != "positions.table":  # a nested tensor has no index 0 of this shape
        nested = torch.nested.nested_tensor([torch.zeros(1, 4, 2)])
        with pytest.raises(TypeError, match=rf"^{name} must be a dense tensor, got a nested one; use \.to_padded"):
            SPARSE[name](nested)


def test_a_sparse_mask_or_graph_is_named():
    tensor, some = torch.zeros(1, 1, 4, 2), torch.ones(1, 4, dtype=torch.bool)
    with pytest.raises(TypeError, match=r"^mask must be a dense tensor"):
        lambda_apply(tensor, tensor, tensor, mask=some.to_sparse())
    with pytest.raises(TypeError, match=r"^batch must be a dense tensor"):
        lambda_apply_by_graph(tensor, tensor, tensor, torch.zeros(4, dtype=torch.long).to_sparse(), 1)
    with pytest.raises(TypeError, match=r"^positions\.index must be a dense tensor"):
        EdgePositions(torch.zeros(2, 3, dtype=torch.long).to_sparse(), torch.zeros(3, 2, 1))
