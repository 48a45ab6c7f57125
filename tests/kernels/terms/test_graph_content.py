"""The content term of many graphs at once, against the reference graph by graph."""

import pytest
import torch
from torch.library import opcheck

from helpers import assert_same, random_call
from lambdanets import lambda_apply
from lambdanets.functional import lambda_apply_by_graph
from lambdanets.kernels.terms import graph_content as segments
from lambdanets.kernels.terms.graph_content import SEGMENTS_OP, segment_softmax

BATCH = torch.tensor([0, 0, 3, 1, 0, 1, 3, 3, 3])  # in no order, and graph 2 has no nodes
GRAPHS = 5


def leaves(u=2, **sizes):
    call = random_call(len(BATCH), u=u, **sizes)
    return [tensor.requires_grad_() for tensor in call.args[:3]]


def one_by_one(query, key, value):
    """The reference for each graph by itself."""
    outs, places = [], []
    for graph in BATCH.unique():
        nodes = (graph == BATCH).nonzero()[:, 0]
        outs.append(lambda_apply(*(t[:, :, nodes] for t in (query, key, value)), kernel="reference"))
        places.append(nodes)
    return torch.cat(outs, dim=2)[:, :, torch.cat(places).argsort()]


def by_graph(query, key, value):
    return lambda_apply_by_graph(query, key, value, BATCH, GRAPHS)


@pytest.mark.parametrize("block", [1, 1 << 18])
@pytest.mark.parametrize("u", [1, 3])
def test_exact(u, block, monkeypatch):
    monkeypatch.setattr(segments, "BLOCK_ELEMENTS", block)
    tensors = leaves(u)
    results = []
    for function in (by_graph, one_by_one):
        out = function(*tensors)
        grad = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
        results.append([out.detach(), *torch.autograd.grad(out, tensors, grad)])
    assert_same(*results)


def test_derivatives_of_every_order():
    tensors = leaves(b=1, h=2, k=2, v=2)
    assert torch.autograd.gradcheck(by_graph, tensors, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(by_graph, tensors)


def test_per_sample_gradients():
    tensors = [t.detach() for t in leaves(b=3)]

    def loss(function):
        return lambda *one: function(*(t[None] for t in one)).square().sum()

    actual = torch.func.vmap(torch.func.grad(loss(by_graph), argnums=(0, 1, 2)))(*tensors)
    for i in range(3):
        expected = torch.func.grad(loss(one_by_one), argnums=(0, 1, 2))(*(t[i] for t in tensors))
        torch.testing.assert_close([a[i] for a in actual], list(expected))


def test_opcheck():
    query, key, value = leaves()
    keys = segment_softmax(key, BATCH, GRAPHS).detach().requires_grad_()
    opcheck(SEGMENTS_OP.forward_op, (query, keys, value, BATCH, GRAPHS))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_keys_of_any_size(dtype):
    query, key, value = (t.detach().to(dtype) for t in leaves())
    key = key.sign() * 1e4 + key
    out = by_graph(query, key, value)
    assert out.dtype == dtype
    tolerance = {torch.float16: 2e-3, torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
    expected = one_by_one(query.double(), key.double(), value.double())
    torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=tolerance)


def test_saved_for_backward_are_inputs_and_normalised_keys():
    query, key, value = leaves(k=8, v=9)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        by_graph(query, key, value)
    assert max(t.numel() for t in kept) <= max(t.numel() for t in (query, key, value))
