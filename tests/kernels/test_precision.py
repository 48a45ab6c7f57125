"""Half precision: sums accumulate in float32, so errors stay near those of PyTorch's own attention."""

import functools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from helpers import EVERYWHERE, ORDERS, PRESENT, context_call, grid_call
from lambdanets import DensePositions, EdgePositions, GridPositions, lambda_apply
from lambdanets.functional import lambda_apply_by_graph

SIZE, HEADS, DIM_KEY, DIM_VALUE = 9, 4, 16, 32
N = SIZE**2


def errors(function, tensors, dtype):
    """Relative errors of the output and the gradients against float64, from the same rounded inputs."""
    rounded = [t.to(dtype).requires_grad_() for t in tensors]
    exact = [t.detach().double().requires_grad_() for t in rounded]
    out, expected = function(*rounded), function(*exact)
    grad = torch.randn(expected.shape, dtype=torch.float64).to(dtype)
    actual = [out, *torch.autograd.grad(out, rounded, grad)]
    exact = [expected, *torch.autograd.grad(expected, exact, grad.double())]
    return [(a.double() - e).norm().item() / e.norm().item() for a, e in zip(actual, exact, strict=True)]


def attention_errors(dtype):
    tensors = [torch.randn(2, HEADS, N, DIM_VALUE) for _ in range(3)]
    return errors(F.scaled_dot_product_attention, tensors, dtype)


def lambda_tensors(scope, u):
    return [
        torch.randn(2, HEADS, N, DIM_KEY) * DIM_KEY**-0.5,
        torch.randn(2, u, N, DIM_KEY),
        torch.randn(2, u, N, DIM_VALUE),
        torch.randn(u, DIM_KEY, scope, scope) * (u * min(scope**2, N)) ** -0.5,
    ]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("u", [1, 4])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("kernel", "scope"),
    [*((kernel, 5) for kernel in (*EVERYWHERE, "portable", "reference")), (None, 2 * SIZE - 1)],
)
def test_errors_are_within_twice_those_of_attention(kernel, scope, causal, u, dtype):
    def op(query, key, value, table):
        return lambda_apply(query, key, value, GridPositions(table, (SIZE, SIZE)), causal=causal, kernel=kernel)

    limit = attention_errors(dtype)
    actual = errors(op, lambda_tensors(scope, u), dtype)
    assert actual[0] < 2 * limit[0]
    assert max(actual[1:]) < 2 * max(limit[1:])


def opposed(*shape):
    """Embeddings whose terms nearly cancel the content term of values around 2: about -1/n each."""
    return torch.randn(*shape) / 280 - 1 / N


EVERY_EDGE = torch.cartesian_prod(torch.arange(N), torch.arange(N)).T
OPPOSED_CALLS = {
    "grid": (lambda: opposed(1, DIM_KEY, 17, 17), lambda *t: lambda_apply(*t[:3], GridPositions(t[3], (9, 9)))),
    "causal": (
        lambda: opposed(1, DIM_KEY, 17, 17),
        lambda *t: lambda_apply(*t[:3], GridPositions(t[3], (9, 9)), causal=True),
    ),
    "dense": (lambda: opposed(N, N, DIM_KEY, 1), lambda *t: lambda_apply(*t[:3], DensePositions(t[3]))),
    "edges": (
        lambda: opposed(N * N, DIM_KEY, 1),
        lambda *t: lambda_apply(*t[:3], EdgePositions(EVERY_EDGE, t[3])),
    ),
    "graphs": (
        lambda: opposed(N * N, DIM_KEY, 1),
        lambda *t: lambda_apply_by_graph(*t[:3], torch.zeros(N, dtype=torch.int64), 1, EdgePositions(EVERY_EDGE, t[3])),
    ),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", OPPOSED_CALLS)
def test_terms_that_oppose_each_other_are_rounded_once(name, dtype):
    make, op = OPPOSED_CALLS[name]
    query, key = torch.randn(2, HEADS, N, DIM_KEY), torch.randn(2, 1, N, DIM_KEY)
    value = torch.randn(2, 1, N, DIM_VALUE) + 2
    actual, limit = errors(op, [query, key, value, make()], dtype), attention_errors(dtype)
    assert actual[0] < 2 * limit[0]
    assert max(actual[1:]) < 2 * max(limit[1:])


# A long context: a softmax's shares are then below the normal numbers of float16, and sums have 65,536 summands.
LONG = 1 << 16
FEW = 8  # queries, where they need not be as many
EDGES = torch.stack([torch.arange(LONG) % FEW, torch.arange(LONG)])
GRAPHS = torch.arange(LONG) % 2


def long_tensors(queries, k, v, u, *positions):
    query, key = torch.randn(1, HEADS, queries, k) * k**-0.5, torch.randn(1, u, LONG, k)
    value = torch.randn(1, u, LONG, v)
    return [query, key, value, *(torch.randn(*shape) * (u * LONG) ** -0.5 for shape in positions)]


LONG_CALLS = {
    "content": (lambda u: long_tensors(FEW, 16, 16, u), lambda_apply),
    "dense": (
        lambda u: long_tensors(FEW, 8, 8, u, (FEW, LONG, 8, u)),
        lambda q, k, v, e: lambda_apply(q, k, v, DensePositions(e)),
    ),
    "edges": (
        lambda u: long_tensors(FEW, 16, 16, u, (LONG, 16, u)),
        lambda q, k, v, e: lambda_apply(q, k, v, EdgePositions(EDGES, e)),
    ),
    "sequence": (
        lambda u: long_tensors(LONG, 2, 2, u, (u, 2, 2 * LONG - 1)),
        lambda q, k, v, e: lambda_apply(q, k, v, GridPositions(e, (LONG,))),
    ),
    "image": (
        lambda u: long_tensors(LONG, 2, 2, u, (u, 2, 511, 511)),
        lambda q, k, v, e: lambda_apply(q, k, v, GridPositions(e, (256, 256))),
    ),
    "causal content": (lambda u: long_tensors(LONG, 2, 2, u), lambda q, k, v: lambda_apply(q, k, v, causal=True)),
    "causal sequence": (
        lambda u: long_tensors(LONG, 2, 2, u, (u, 2, 2 * LONG - 1)),
        lambda q, k, v, e: lambda_apply(q, k, v, GridPositions(e, (LONG,)), causal=True),
    ),
    "graphs": (
        lambda u: long_tensors(LONG, 4, 4, u),
        lambda q, k, v: lambda_apply_by_graph(q, k, v, GRAPHS, 2),
    ),
}


@functools.cache
def long_attention_errors(dtype):
    """Those of the same number of heads over the same context."""
    shapes = [(1, HEADS, FEW, 16), (1, HEADS, LONG, 16), (1, HEADS, LONG, 16)]
    return errors(F.scaled_dot_product_attention, [torch.randn(*shape) for shape in shapes], dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("name", "u"), [*((name, 1) for name in LONG_CALLS), ("content", 4), ("edges", 4)])
def test_errors_in_a_long_context(name, u, dtype):
    make, op = LONG_CALLS[name]
    limits = long_attention_errors(dtype)  # of the output, and of the gradients of query, key and value
    actual = errors(op, make(u), dtype)
    for error, limit in zip(actual, [*limits, max(limits[1:])], strict=False):
        assert error < 2 * limit


def test_autocast_keeps_the_shares_of_a_long_context():
    query, key, value = long_tensors(FEW, 16, 16, 1)
    exact = lambda_apply(*(t.half().double() for t in (query, key, value)))
    with torch.autocast("cpu", dtype=torch.float16):
        out = lambda_apply(query, key, value)
    assert out.dtype == torch.float16
    assert (out.double() - exact).norm() < 2 * long_attention_errors(torch.float16)[0] * exact.norm()


AUTOCAST_CALLS = [(name, causal, None) for name, causal in ORDERS]
AUTOCAST_CALLS += [("image, local", False, kernel) for kernel in (*PRESENT, "portable", "reference")]


@pytest.mark.parametrize(("name", "causal", "kernel"), AUTOCAST_CALLS)
def test_backward_within_autocast(name, causal, kernel):
    """The derivatives are those of a backward pass outside of it; those of plain operations are rounded by autocast."""
    call = context_call(name, causal, masked=False, u=2)
    leaves = [leaf.float().requires_grad_() for leaf in call.leaves()]
    positions = call.positions
    results = []
    for within in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            if positions is not None:
                field = "table" if isinstance(positions, GridPositions) else "embedding"
                positions = replace(positions, **{field: leaves[3]})
            out = lambda_apply(*leaves[:3], positions, causal=causal, kernel=kernel)
            loss = out.float().square().sum()
            if within:
                results.append(torch.autograd.grad(loss, leaves))
        if not within:
            results.append(torch.autograd.grad(loss, leaves))
    assert all(grad.dtype == torch.float32 for grad in results[1])
    is_plain = kernel in ("portable", "reference") or not isinstance(positions, GridPositions)
    # Sums of up to 720 products (the table's gradient), in float32 and perhaps in another order.
    bound = 0.05 if is_plain else 720 * torch.finfo(torch.float32).eps
    for actual, expected in zip(*results, strict=True):
        assert (actual - expected).norm() <= bound * expected.norm()


def test_autocast_refuses_float64_beside_other_dtypes():
    query, key, value, positions = grid_call((3, 3), (3, 3), dtype=torch.float32).args
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for given in ((query, key, value.double()), (query, key.double(), value), (query.double(), key, value)):
            with pytest.raises(TypeError, match=r"must have one dtype, got .*float64.*autocast, which leaves float64"):
                lambda_apply(*given, positions)
