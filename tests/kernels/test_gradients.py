"""Gradients in every context, as eager mode, torch.compile and torch.func have them, against the reference."""

from dataclasses import replace

import pytest
import torch

from helpers import (
    ORDERS,
    assert_same,
    context_call,
    outputs_and_gradients,
)
from lambdanets import GridPositions, lambda_apply
from lambdanets.kernels.terms import causal_content as causal_content

EVERY = pytest.mark.parametrize(("name", "causal"), ORDERS)
MASKED = pytest.mark.parametrize("masked", [False, True])
DEPTH = pytest.mark.parametrize("u", [1, 4])


@pytest.fixture(autouse=True)
def _short_chunks(monkeypatch):
    """Several chunks and segments of the causal scan, in sequences as short as these."""
    monkeypatch.setattr(causal_content, "CHUNK", 3)
    monkeypatch.setattr(causal_content, "CHUNKS_PER_SEGMENT", 2)


def function_of_tensors(call, kernel=None, key=True):
    """The call as a function of its floating-point tensors alone, and these."""
    name = "table" if isinstance(call.positions, GridPositions) else "embedding"

    def apply(query, key_, value, *numbers, mask=call.mask):
        positions = replace(call.positions, **{name: numbers[0]}) if numbers else None
        return lambda_apply(
            query, key_ if key else None, value, positions, mask=mask, causal=call.causal, kernel=kernel
        )

    return apply, call.leaves()


@DEPTH
@MASKED
@EVERY
def test_eager(name, causal, masked, u):
    call = context_call(name, causal, masked, u)
    expected = outputs_and_gradients(lambda c: lambda_apply(*c.args, **c.kwargs, kernel="reference"), call)
    assert_same(outputs_and_gradients(lambda c: lambda_apply(*c.args, **c.kwargs), call), expected)


@DEPTH
@MASKED
@EVERY
def test_of_each_sample(name, causal, masked, u):
    """vmap of grad: the examples, with their masks, are the samples; positions are shared."""
    call = context_call(name, causal, masked, u)
    per_sample = []
    for kernel in (None, "reference"):
        apply, (query, key, value, *numbers) = function_of_tensors(call, kernel)

        def loss(query, key, value, mask, *numbers, apply=apply):
            mask = None if mask is None else mask[None]
            return apply(query[None], key[None], value[None], *numbers, mask=mask).square().sum()

        places = tuple(i for i in range(4 + len(numbers)) if i != 3)
        samples = (0, 0, 0, 0 if masked else None, *[None] * len(numbers))
        gradients = torch.func.vmap(torch.func.grad(loss, argnums=places), in_dims=samples)
        per_sample.append(gradients(query, key, value, call.mask, *numbers))
    assert_same(*per_sample)


@DEPTH
@MASKED
@EVERY
def test_tangents(name, causal, masked, u):
    call = context_call(name, causal, masked, u)
    apply, tensors = function_of_tensors(call)
    tangents = tuple(torch.randn_like(tensor) for tensor in tensors)
    if causal:
        with pytest.raises(NotImplementedError, match="causal order has first derivatives in reverse mode only"):
            torch.func.jvp(apply, tensors, tangents)
    if causal and call.positions is None:
        return
    (apply, _), (expected, _) = (function_of_tensors(call, kernel, key=not causal) for kernel in (None, "reference"))
    assert_same(torch.func.jvp(apply, tensors, tangents), torch.func.jvp(expected, tensors, tangents))


@pytest.mark.parametrize(
    ("name", "causal", "masked", "u"),
    [
        ("content, cross", False, True, 1),
        ("sequence, global", True, True, 4),
        ("image, local", False, True, 4),
        ("volume, global", False, False, 1),
        ("dense", True, False, 4),
        ("edges, cross", False, True, 4),
    ],
)
def test_compiled(name, causal, masked, u):
    call = context_call(name, causal, masked, u)
    apply, _ = function_of_tensors(call)
    compiled = torch.compile(apply, fullgraph=True, backend="aot_eager")
    expected = outputs_and_gradients(lambda c: lambda_apply(*c.args, **c.kwargs, kernel="reference"), call)
    assert_same(outputs_and_gradients(lambda c: compiled(*c.leaves()), call), expected)
