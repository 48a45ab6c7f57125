"""The oracle itself, against loops that are written number by number."""

import itertools
import math

import pytest
import torch

from helpers import dense_call, edge_call, grid_call, random_call
from lambdanets import DensePositions, EdgePositions, GridPositions, lambda_apply
from lambdanets.kernels.call import Call
from lambdanets.kernels.reference import reference


def entry(positions, n, m):
    """E[n, m] as a (k, u) matrix, from the definition of each kind of positions."""
    if isinstance(positions, DensePositions):
        return positions.embedding[n, m]
    if isinstance(positions, EdgePositions):
        total = torch.zeros(positions.dim_key, positions.intra_depth, dtype=positions.embedding.dtype)
        for edge, (query, context) in enumerate(positions.index.T.tolist()):
            if (query, context) == (n, m):
                total += positions.embedding[edge]
        return total
    coordinates = list(itertools.product(*(range(size) for size in positions.grid)))
    offset = [b - a for a, b in zip(coordinates[n], coordinates[m], strict=True)]
    if any(abs(o) > extent // 2 for o, extent in zip(offset, positions.extents, strict=True)):
        return torch.zeros(positions.dim_key, positions.intra_depth, dtype=positions.table.dtype)
    index = [o + extent // 2 for o, extent in zip(offset, positions.extents, strict=True)]
    return positions.table[(slice(None), slice(None), *index)].T


def naive(call):
    """y_n = Σ_mu (q_n · (K̄_mu + E_nmu)) V_mu, one number after the other."""
    b, h, n_size, k_size = call.query.shape
    _, u_size, m_size, v_size = call.value.shape
    out = torch.zeros(b, h, n_size, v_size, dtype=call.query.dtype)
    for i, n in itertools.product(range(b), range(n_size)):
        visible = [m for m in range(m_size) if (call.mask is None or call.mask[i, m]) and (not call.causal or m <= n)]
        weight = torch.zeros(m_size, k_size, u_size, dtype=call.query.dtype)
        for u, k in itertools.product(range(u_size), range(k_size)):
            total = sum(math.exp(call.key[i, u, m, k]) for m in visible)
            for m in visible:
                weight[m, k, u] = math.exp(call.key[i, u, m, k]) / total
        for m in visible:
            e = weight[m] + (0 if call.positions is None else entry(call.positions, n, m))
            for u in range(u_size):
                out[i, :, n] += (call.query[i, :, n] @ e[:, u])[:, None] * call.value[i, u, m]
    return out


CALLS = {
    "content only": lambda: random_call(5, u=2),
    "cross content": lambda: random_call(3, 5),
    "sequence": lambda: grid_call((5,), (9,)),
    "image, global": lambda: grid_call((3, 2), (5, 3), u=2),
    "image, local": lambda: grid_call((3, 4), (3, 1)),
    "image, table larger than needed": lambda: grid_call((2, 2), (7, 5)),
    "volume": lambda: grid_call((2, 2, 3), (3, 3, 5), u=2),
    "dense": lambda: dense_call(3, 4, u=2),
    "edges": lambda: edge_call(4, 4, 7, u=2),
}


CLOSE = {"atol": 1e-12, "rtol": 1e-12}


@pytest.mark.smoke
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_reference_agrees_with_loops(name, masked, causal):
    call = CALLS[name]()
    n, m = call.query.shape[2], call.key.shape[2]
    if causal and n != m:
        with pytest.raises(ValueError, match="causal=True needs as many queries"):
            lambda_apply(*call.args, causal=True)
        return
    call.causal = causal
    if masked:
        call.mask = torch.rand(call.key.shape[0], m) < 0.6
        call.mask[0] = False  # an example that sees nothing
    expected = naive(call)
    torch.testing.assert_close(lambda_apply(*call.args, **call.kwargs, kernel="reference"), expected, **CLOSE)
    if masked:
        call.key[~call.mask[:, None].expand_as(call.key[..., 0])] = math.nan
        call.value[~call.mask[:, None].expand_as(call.value[..., 0])] = math.nan
    torch.testing.assert_close(reference(Call(*call.args, call.mask, causal)), expected, **CLOSE)


def test_reference_is_differentiable_twice():
    call = grid_call((2, 3), (3, 5), u=2, b=1, h=2, k=2, v=2).requiring_grad()

    def apply(query, key, value, table):
        return lambda_apply(query, key, value, GridPositions(table, (2, 3)), kernel="reference")

    assert torch.autograd.gradcheck(apply, call.leaves())
    assert torch.autograd.gradgradcheck(apply, call.leaves())


def test_parallel_edges_add_up():
    call = edge_call(3, 3, 1)
    twice = EdgePositions(call.positions.index.repeat(1, 2), call.positions.embedding.repeat(2, 1, 1) / 2)
    one = lambda_apply(*call.args, kernel="reference")
    two = lambda_apply(*call.args[:3], twice, kernel="reference")
    torch.testing.assert_close(one, two)


@pytest.mark.parametrize("kernel", ["reference", "portable"])
def test_causal_order_under_another_default_dtype(kernel):
    args = [torch.randn(2, 2, 6, 4), torch.randn(2, 1, 6, 4), torch.randn(2, 1, 6, 3)]
    positions = DensePositions(torch.randn(6, 6, 4, 1))
    expected = lambda_apply(*args, positions, causal=True)
    torch.set_default_dtype(torch.float64)
    try:
        actual = lambda_apply(*args, positions, causal=True, kernel=kernel)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
