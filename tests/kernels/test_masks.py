"""A padding mask in every context: what is masked is as if it were absent, whatever it holds."""

import math
from dataclasses import replace

import pytest
import torch

from helpers import (
    EVERYWHERE,
    ORDERS,
    assert_same,
    context_call,
    dense_call,
    edge_call,
    grid_call,
    outputs_and_gradients,
    random_call,
)
from lambdanets import DensePositions, EdgePositions, lambda_apply
from lambdanets.functional import lambda_apply_by_graph
from lambdanets.kernels.call import Call
from lambdanets.kernels.reference import reference

EVERY = pytest.mark.parametrize(("name", "causal"), ORDERS)
BAD = pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])


def results(call, kernel=None):
    return outputs_and_gradients(lambda c: lambda_apply(*c.args, **c.kwargs, kernel=kernel), call)


def by_the_equations(call):
    """With a mask of their own: a call's is applied before every kernel, "reference" too."""
    return outputs_and_gradients(lambda c: reference(Call(*c.args, c.mask, c.causal)), call)


def spoiled(call, bad):
    """The call with ``bad`` in every key and value that is masked."""
    hidden = ~call.mask[:, None, :, None]
    return replace(call, key=call.key.masked_fill(hidden, bad), value=call.value.masked_fill(hidden, bad))


@BAD
@pytest.mark.parametrize("u", [1, 4])
@EVERY
def test_masked_context_may_hold_anything(name, causal, u, bad):
    call = context_call(name, causal, True, u)
    expected = by_the_equations(call)
    actual = results(spoiled(call, bad))
    assert_same(actual, expected)
    hidden = ~call.mask[:, None, :, None]
    for grad in actual[2:4]:
        assert torch.equal(grad.masked_fill(~hidden, 0.0), torch.zeros_like(grad))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kernel", [*EVERYWHERE, "portable", "reference"])
def test_in_every_kernel(kernel, causal):
    call = grid_call((5, 6), (3, 5), u=2)
    call.causal, call.mask = causal, torch.rand(2, 30) < 0.5
    assert_same(results(spoiled(call, float("nan")), kernel), by_the_equations(call))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@EVERY
def test_in_lower_precision(name, causal, dtype):
    call = context_call(name, causal, True, 2)
    tensors = [tensor.to(dtype) for tensor in call.leaves()]
    positions = None
    if call.positions is not None:
        field = "table" if hasattr(call.positions, "table") else "embedding"
        positions = replace(call.positions, **{field: tensors[3]})
    call = replace(call, query=tensors[0], key=tensors[1], value=tensors[2], positions=positions)
    for a, e in zip(results(spoiled(call, float("nan"))), results(call), strict=True):
        assert torch.equal(a, e)


@pytest.mark.parametrize("u", [1, 4])
@pytest.mark.parametrize("name", ["content", "dense", "edges"])
def test_masked_context_is_as_if_absent(name, u):
    """Against the same call without it: another context, so positions on a grid have no such call."""
    n, m = 5, 9
    calls = {"content": random_call, "dense": dense_call, "edges": lambda n, m, **s: edge_call(n, m, 31, **s)}
    call = calls[name](n, m, b=1, u=u)
    call.mask = torch.tensor([[True, False, True, True, False, False, True, True, False]])
    places = call.mask[0].nonzero()[:, 0]
    positions = call.positions
    if name == "dense":
        positions = DensePositions(positions.embedding[:, places])
    elif name == "edges":
        kept = call.mask[0][positions.index[1]]
        new_place = call.mask[0].cumsum(0) - 1
        index = torch.stack([positions.index[0][kept], new_place[positions.index[1][kept]]])
        positions = EdgePositions(index, positions.embedding[kept])
    absent = lambda_apply(call.query, call.key[:, :, places], call.value[:, :, places], positions)
    call = spoiled(call, float("nan"))
    torch.testing.assert_close(lambda_apply(*call.args, **call.kwargs), absent, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@EVERY
def test_an_example_without_context_gives_zeros(name, causal, dtype):
    """And finite gradients, zero for all that is not seen; the other example is none the worse for it."""
    call = context_call(name, causal, False, 2)
    if dtype != torch.float64:
        call = replace(call, query=call.query.to(dtype), key=call.key.to(dtype), value=call.value.to(dtype))
    call.mask = torch.ones(call.value.shape[0], call.value.shape[2], dtype=torch.bool)
    expected = lambda_apply(*call.args, **call.kwargs)
    call.mask[0] = False
    call = spoiled(call, float("nan"))
    out, *grads = results(call)
    assert torch.equal(out[0], torch.zeros_like(out[0]))
    torch.testing.assert_close(out[1], expected[1])
    assert all(grad.isfinite().all() for grad in grads)
    assert all(torch.equal(grad[0], torch.zeros_like(grad[0])) for grad in grads[:3])


@BAD
def test_in_a_compiled_call(bad):
    call = context_call("image, local", False, True, 2)
    compiled = torch.compile(lambda_apply, fullgraph=True, backend="aot_eager")
    actual = outputs_and_gradients(lambda c: compiled(*c.args, **c.kwargs), spoiled(call, bad))
    assert_same(actual, results(call, "reference"))


NO_SHARE = [(name, causal, None) for name, causal in ORDERS]
NO_SHARE += [("image, local", causal, kernel) for kernel in (*EVERYWHERE, "portable") for causal in (False, True)]


@pytest.mark.parametrize("u", [1, 2])
@pytest.mark.parametrize(("name", "causal", "kernel"), NO_SHARE)
def test_keys_of_minus_infinity_have_no_share(name, causal, kernel, u):
    """A channel whose keys are so in all positions adds nothing."""
    call = context_call(name, causal, False, u)
    call.key[0, :, :, 1] = -math.inf
    call.key[1, 0, 3] = -math.inf
    expected = results(call, "reference")
    assert all(t.isfinite().all() for t in expected)
    assert_same(results(call, kernel), expected)


@pytest.mark.parametrize("transform", [lambda op: op, lambda op: torch.compile(op, backend="eager", fullgraph=True)])
@pytest.mark.parametrize("causal", [False, True])
def test_a_masked_key_is_no_share_beside_the_smallest(causal, transform):
    """A mask that wrote the smallest number would give it a share."""
    least, value = torch.finfo(torch.float32).min, torch.ones(1, 1, 2, 1)
    mask = torch.tensor([[False, True]])

    def op(key):
        return lambda_apply(value, key, value, mask=mask, causal=causal)

    assert transform(op)(torch.full((1, 1, 2, 1), least)).flatten().tolist() == [float(not causal), 1.0]


@pytest.mark.parametrize("name", ["content", "image, local"])
def test_nor_where_values_cannot_be_read(name):
    call = context_call(name, False, False, 2)
    call.key[0, :, :, 1] = -math.inf
    query, key, value, positions = call.args
    expected = lambda_apply(*call.args, kernel="reference")

    def op(key):
        return lambda_apply(query, key, value, positions)

    torch.testing.assert_close(torch.func.vmap(op)(key[None])[0], expected)
    torch.testing.assert_close(torch.compile(op, backend="eager", fullgraph=True)(key), expected)
    grad = torch.func.grad(lambda key: op(key).square().sum())(key)
    assert grad.isfinite().all()
    key[1, 0, 2, 0] = math.nan  # which is no share of zero
    assert op(key)[1].isnan().all()


def test_nor_in_a_graph():
    query, key, value = (t.requires_grad_() for t in random_call(4).args[:3])
    batch = torch.tensor([0, 1, 1, 2])
    with torch.no_grad():
        key[:, :, 1:3, 1] = -math.inf
        key[0, :, 3] = -math.inf
    out = lambda_apply_by_graph(query, key, value, batch, 4)
    expected = torch.cat(
        [
            lambda_apply(*(t[:, :, i] for t in (query, key, value)), kernel="reference")
            for i in (slice(0, 1), slice(1, 3), slice(3, 4))
        ],
        2,
    )
    torch.testing.assert_close(out, expected)
    grads = [torch.autograd.grad(y.square().sum(), [query, key, value]) for y in (out, expected)]
    torch.testing.assert_close(*grads)
