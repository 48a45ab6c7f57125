"""Causal order in every mode, against the reference; the running softmax at its limits."""

import math

import pytest
import torch
from torch.library import opcheck

from helpers import assert_same, dense_call, edge_call, grid_call, outputs_and_gradients, random_call
from lambdanets import lambda_apply
from lambdanets.kernels import causal
from lambdanets.kernels.causal import CAUSAL_CONTENT_OP
from lambdanets.kernels.planner import GRID_KERNELS

CALLS = {
    "content, one position": lambda: random_call(1, u=2),
    "content, one chunk": lambda: random_call(16, u=2),
    "content, chunks and a rest": lambda: random_call(53, u=2),
    "sequence, global": lambda: grid_call((37,), (73,), u=2),
    "sequence, local": lambda: grid_call((37,), (9,), u=2),
    "image, global": lambda: grid_call((5, 7), (9, 13), u=2),
    "image, local": lambda: grid_call((6, 5), (3, 5), u=2),
    "volume": lambda: grid_call((3, 2, 4), (5, 3, 3), u=2),
    "dense": lambda: dense_call(19, 19, u=2),
    "edges": lambda: edge_call(19, 19, 60, u=2),
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_causal_agrees_with_the_reference(name, masked, monkeypatch):
    monkeypatch.setattr(causal, "CHUNKS_PER_SEGMENT", 2)  # several segments in a short sequence
    call = CALLS[name]()
    call.causal = True
    if masked:
        call.mask = torch.rand(2, call.query.shape[2]) < 0.6
        call.mask[0, :3] = False  # queries that see nothing yet
        call.mask[1] = False
    expected = outputs_and_gradients(lambda c: lambda_apply(*c.args, **c.kwargs, kernel="reference"), call)
    assert_same(outputs_and_gradients(lambda c: lambda_apply(*c.args, **c.kwargs), call), expected)


@pytest.mark.parametrize("kernel", GRID_KERNELS)
@pytest.mark.parametrize(("grid", "extents"), [((40,), (79,)), ((40,), (7,)), ((5, 6), (5, 5)), ((5, 6), (9, 11))])
def test_every_kernel_takes_causal_tables(kernel, grid, extents):
    call = grid_call(grid, extents)
    call.causal = True
    try:
        actual = outputs_and_gradients(lambda c: lambda_apply(*c.args, **c.kwargs, kernel=kernel), call)
    except ValueError as error:
        assert "cannot run here" in str(error)  # noqa: PT017
        return
    expected = outputs_and_gradients(lambda c: lambda_apply(*c.args, **c.kwargs, kernel="reference"), call)
    assert_same(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_keys_of_any_size_neither_overflow_nor_lose_digits(dtype):
    """Keys of ±1e4, the largest last: what was seen before it must keep its own softmax."""
    call = random_call(64, u=2, dtype=dtype)
    call.key = call.key.sign() * 1e4 + torch.randn_like(call.key)
    call.key[:, :, -1] = 2e4
    call.causal = True
    actual = outputs_and_gradients(lambda c: lambda_apply(*c.args, **c.kwargs), call)
    assert all(torch.isfinite(t).all() for t in actual)
    exact = random_call(64, u=2)
    exact.query, exact.key, exact.value = (t.double() for t in call.args[:3])
    exact.causal = True
    expected = outputs_and_gradients(lambda c: lambda_apply(*c.args, **c.kwargs, kernel="reference"), exact)
    # Gradients have another seed of the output gradient in another dtype: only the output is compared.
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(actual[0].double(), expected[0], atol=tolerance, rtol=tolerance)


def test_gradcheck(monkeypatch):
    monkeypatch.setattr(causal, "CHUNK", 3)
    monkeypatch.setattr(causal, "CHUNKS_PER_SEGMENT", 2)
    call = random_call(14, b=1, h=2, k=2, v=2, u=2).requiring_grad()
    assert torch.autograd.gradcheck(CAUSAL_CONTENT_OP.apply, call.leaves())


def test_opcheck():
    call = random_call(20, u=2).requiring_grad()
    opcheck(CAUSAL_CONTENT_OP.forward, call.leaves())


def test_memory_is_linear_in_the_sequence():
    """The largest tensor of a call grows no faster than the sequence."""
    largest = {}
    for n in (2048, 8192):
        call = random_call(n, b=1, h=2, k=4, v=4, dtype=torch.float32)
        sizes = []

        class Watch(torch.utils._python_dispatch.TorchDispatchMode):
            def __torch_dispatch__(self, function, types, args=(), kwargs=None, sizes=sizes):
                out = function(*args, **(kwargs or {}))
                sizes.extend(t.numel() for t in torch.utils._pytree.tree_leaves(out) if torch.is_tensor(t))
                return out

        with Watch():
            causal._forward(*call.args[:3])
        largest[n] = max(sizes)
    assert math.isclose(largest[8192] / largest[2048], 4, rel_tol=0.2) or largest[8192] == largest[2048]
