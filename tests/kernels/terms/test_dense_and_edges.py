"""Positions that are written out and positions on the edges of a graph, against the reference."""

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.library import opcheck

from helpers import assert_same, dense_call, edge_call, outputs_and_gradients
from lambdanets import EdgePositions, lambda_apply
from lambdanets.kernels.terms import dense, edges
from lambdanets.kernels.terms.dense import DENSE_OP
from lambdanets.kernels.terms.edges import EDGES_OP

CALLS = {
    "dense": lambda **sizes: dense_call(7, 7, **sizes),
    "dense, cross": lambda **sizes: dense_call(5, 9, **sizes),
    "dense, one context": lambda **sizes: dense_call(5, 1, **sizes),
    "edges": lambda **sizes: edge_call(7, 7, 20, **sizes),
    "edges, cross": lambda **sizes: edge_call(5, 9, 31, **sizes),
    "edges, few": lambda **sizes: edge_call(9, 5, 1, **sizes),
    "edges, none": lambda **sizes: edge_call(4, 5, 0, **sizes),
}


@pytest.mark.parametrize("small_blocks", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("u", [1, 3])
@pytest.mark.parametrize("name", CALLS)
def test_exact(name, u, masked, small_blocks, monkeypatch):
    if small_blocks:
        monkeypatch.setattr(dense, "BLOCK_ELEMENTS", 1)
        monkeypatch.setattr(edges, "BLOCK_ELEMENTS", 1)
    call = CALLS[name](u=u)
    if masked:
        call.mask = torch.rand(2, call.key.shape[2]) < 0.5
    expected = outputs_and_gradients(lambda c: lambda_apply(*c.args, **c.kwargs, kernel="reference"), call)
    assert_same(outputs_and_gradients(lambda c: lambda_apply(*c.args, **c.kwargs), call), expected)


def test_opcheck():
    call = dense_call(4, 5, u=2).requiring_grad()
    opcheck(DENSE_OP.forward_op, (call.query, call.value, call.positions.embedding))
    call = edge_call(4, 5, 7, u=2).requiring_grad()
    opcheck(EDGES_OP.forward_op, (call.query, call.value, call.positions.index, call.positions.embedding))


@pytest.mark.parametrize("name", ["dense, cross", "edges, cross"])
def test_keeps_nothing_but_its_inputs(name):
    call = CALLS[name](u=2).requiring_grad()
    content = lambda_apply(*call.args[:3])
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        lambda_apply(*call.args)
    small = max(t.numel() for t in (*call.leaves(), content))
    assert all(t.numel() <= small for t in kept)


def test_a_kernel_for_grids_says_so():
    call = edge_call(4, 4, 5)
    with pytest.raises(ValueError, match="kernel='spectral' cannot run here: it is for GridPositions, got Edge"):
        lambda_apply(*call.args, kernel="spectral")


def test_edges_cost_their_number_not_the_square_of_nodes():
    """A hundred thousand nodes: a dense E would take 40 GB for each channel."""
    n, e = 100_000, 200_000
    index = torch.stack([torch.randint(n, (e,)), torch.randint(n, (e,))])
    query, value = torch.randn(1, 1, n, 2), torch.randn(1, 1, n, 2)
    out = lambda_apply(query, torch.zeros(1, 1, n, 2), value, EdgePositions(index, torch.randn(e, 2, 1)))
    assert out.shape == (1, 1, n, 2)


def test_vmap_over_graphs():
    """Samples with edges of their own."""
    call = edge_call(5, 5, 8, u=2, b=3)
    indices = torch.randint(5, (3, 2, 8))

    def apply(index, query, key, value):
        positions = EdgePositions(index, call.positions.embedding)
        return lambda_apply(query[None], key[None], value[None], positions)[0]

    actual = torch.func.vmap(apply)(indices, *call.args[:3])
    for i in range(3):
        torch.testing.assert_close(actual[i], apply(indices[i], *(t[i] for t in call.args[:3])))


def test_fake_tensors_have_shapes():
    with FakeTensorMode():
        call = edge_call(5, 9, 8, u=2)
        assert lambda_apply(*call.args).shape == (2, 3, 5, 5)
