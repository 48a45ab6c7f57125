"""Causal order in every mode, against the reference; the running softmax at its limits."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from helpers import (
    EVERYWHERE,
    assert_same,
    dense_call,
    edge_call,
    grid_call,
    kernel_cases,
    outputs_and_gradients,
    random_call,
)
from lambdanets import LambdaLayer, lambda_apply
from lambdanets.kernels.terms import causal_content as causal
from lambdanets.kernels.terms.causal_content import CAUSAL_CONTENT_OP

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


@pytest.mark.smoke
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


@pytest.mark.parametrize(
    ("kernel", "grid", "extents"),
    kernel_cases(EVERYWHERE, [((40,), (79,)), ((40,), (7,)), ((5, 6), (5, 5)), ((5, 6), (9, 11))]),
)
def test_every_kernel_takes_causal_tables(kernel, grid, extents):
    call = grid_call(grid, extents)
    call.causal = True
    actual = outputs_and_gradients(lambda c: lambda_apply(*c.args, **c.kwargs, kernel=kernel), call)
    expected = outputs_and_gradients(lambda c: lambda_apply(*c.args, **c.kwargs, kernel="reference"), call)
    assert_same(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_keys_of_any_size_neither_overflow_nor_lose_digits(dtype):
    """Keys of ±1e4, the largest last: what was seen before it must keep its own softmax. Gradients too."""
    call = random_call(64, u=2, dtype=dtype)
    call.key = call.key.sign() * 1e4 + torch.randn_like(call.key)
    call.key[:, :, -1] = 2e4
    call.causal = True
    exact = replace(call, query=call.query.double(), key=call.key.double(), value=call.value.double())
    grad = torch.randn(2, 3, 64, 5).to(dtype)
    actual = results(call, grad)
    expected = results(exact, grad.double(), kernel="reference")
    tolerance = {torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.float32: 2e-5, torch.float64: 1e-10}[dtype]
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.double(), e, atol=tolerance * e.abs().max().item(), rtol=tolerance)


@pytest.mark.parametrize("size", [1e6, 1e12, 1e16, 1e300])
def test_tied_large_keys_keep_their_digits(size):
    """Shares of ties are counts: 1/1, 1/2, 1/3, ... whatever the keys are."""
    n = 3 * causal.CHUNK + 5
    query, value = torch.ones(1, 1, n, 1, dtype=torch.float64), torch.randn(1, 1, n, 2, dtype=torch.float64)
    key = torch.full((1, 1, n, 1), size, dtype=torch.float64)
    out = lambda_apply(query, key, value, causal=True)
    expected = value[0, 0].cumsum(0) / torch.arange(1, n + 1, dtype=torch.float64)[:, None]
    torch.testing.assert_close(out[0, 0], expected, atol=1e-14, rtol=1e-14)


def results(call, grad, kernel=None):
    """Output and gradients under a given gradient of the output."""
    call = call.requiring_grad()
    out = lambda_apply(*call.args, **call.kwargs, kernel=kernel)
    return [out.detach(), *torch.autograd.grad(out, call.leaves(), grad)]


@pytest.mark.parametrize("name", CALLS)
def test_gradients_reach_the_past_only(name, monkeypatch):
    """What a query does not see has gradients of exactly zero from it; each kernel that makes something up shows."""
    monkeypatch.setattr(causal, "CHUNKS_PER_SEGMENT", 2)
    call = CALLS[name]()
    call.causal = True
    call = call.requiring_grad()
    n = call.query.shape[2]
    place = n // 2
    out = lambda_apply(*call.args, **call.kwargs)
    query, key, value = torch.autograd.grad(out[:, :, place].sum(), call.leaves()[:3])
    assert query[:, :, place].abs().min() > 0
    assert torch.equal(query[:, :, :place], torch.zeros_like(query[:, :, :place]))
    assert key[:, :, : place + 1].abs().max() > 0 or n == 1  # one key has a softmax of 1
    for grad in (query, key, value):
        after = grad[:, :, place + 1 :]
        # A Fourier transform rounds zeros; no other kernel does.
        torch.testing.assert_close(after, torch.zeros_like(after), atol=1e-13, rtol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("tensor", ["key", "value"])
@pytest.mark.parametrize("name", [name for name in CALLS if name != "content, one position"])
def test_what_is_not_finite_reaches_no_earlier_query(name, tensor, bad, monkeypatch):
    monkeypatch.setattr(causal, "CHUNKS_PER_SEGMENT", 2)
    call = CALLS[name]()
    call.causal = True
    place = call.query.shape[2] // 2
    expected = lambda_apply(*call.args, **call.kwargs)
    getattr(call, tensor)[1, 0, place, 2] = bad
    call = call.requiring_grad()
    out = lambda_apply(*call.args, **call.kwargs)
    torch.testing.assert_close(out[:, :, :place], expected[:, :, :place], atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(out[0], expected[0], atol=1e-12, rtol=1e-12)
    channel = 2 if tensor == "value" else slice(None)
    if (tensor, bad) == ("key", float("-inf")):
        assert out.isfinite().all()  # a weight of 0
    else:
        assert out[1, :, place:, channel].isnan().all()
    # And so are the gradients of what comes before it.
    grads = torch.autograd.grad(out[:, :, :place].square().sum(), call.leaves())
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("kernel", EVERYWHERE)
def test_what_is_not_finite_reaches_no_earlier_query_in_any_kernel(kernel):
    call = grid_call((40,), (9,), u=2)
    expected = lambda_apply(*call.args, causal=True, kernel=kernel)
    call.value[:, :, 25] = float("nan")
    out = lambda_apply(*call.args, causal=True, kernel=kernel)
    torch.testing.assert_close(out[:, :, :25], expected[:, :, :25], atol=1e-12, rtol=1e-12)
    assert out[:, :, 25:].isnan().all()


def test_a_gradient_that_is_not_a_number_stays_one():
    """Scalers of half precision look for it to leave a step out."""
    call = random_call(20)
    call.value[:, :, 10] = float("nan")
    call = call.requiring_grad()
    grads = torch.autograd.grad(lambda_apply(*call.args, causal=True).square().sum(), call.leaves())
    assert all(grad.isnan().any() for grad in grads)


def test_keys_without_weight():
    """Keys of -inf, the first ones too, count for nothing, as in the reference."""
    call = random_call(53, u=2)
    call.key[:, :, :20] = float("-inf")
    call.key[:, :, 30, 0] = float("-inf")
    call.causal = True
    expected = outputs_and_gradients(lambda c: lambda_apply(*c.args, **c.kwargs, kernel="reference"), call)
    assert_same(outputs_and_gradients(lambda c: lambda_apply(*c.args, **c.kwargs), call), expected)


def test_gradcheck(monkeypatch):
    monkeypatch.setattr(causal, "CHUNK", 3)
    monkeypatch.setattr(causal, "CHUNKS_PER_SEGMENT", 2)
    call = random_call(14, b=1, h=2, k=2, v=2, u=2).requiring_grad()
    assert torch.autograd.gradcheck(CAUSAL_CONTENT_OP, call.leaves())


def test_opcheck():
    call = random_call(20, u=2).requiring_grad()
    opcheck(CAUSAL_CONTENT_OP.forward_op, call.leaves())


@pytest.mark.parametrize("backward", [False, True])
def test_memory_is_linear_in_the_sequence(backward):
    """The largest tensor of a call grows no faster than the sequence."""
    largest = {}
    for n in (2048, 8192):
        call = random_call(n, b=1, h=2, k=4, v=4, dtype=torch.float32)
        sizes = []

        class Watch(TorchDispatchMode):
            def __torch_dispatch__(self, function, types, args=(), kwargs=None, sizes=sizes):
                out = function(*args, **(kwargs or {}))
                sizes.extend(t.numel() for t in tree_leaves(out) if torch.is_tensor(t))
                return out

        with Watch():
            if backward:
                causal._backward(torch.ones_like(call.query), *call.args[:3])
            else:
                causal._forward(*call.args[:3])
        largest[n] = max(sizes)
    assert largest[8192] <= 4.8 * largest[2048]


def test_exports_for_any_length():
    layer = LambdaLayer(8, ndim=1, size=40, dim_key=4, causal=True, norm_layer=nn.Identity).eval()
    shapes = {"x": {0: torch.export.Dim("batch", max=64), 2: torch.export.Dim("length", min=2, max=40)}}
    exported = torch.export.export(layer, (torch.randn(2, 8, 9),), dynamic_shapes=shapes).module()
    for size in ((2, 8, 9), (3, 8, 33)):
        x = torch.randn(size)
        torch.testing.assert_close(exported(x), layer(x))
