"""Both terms at once against the terms apart, in every memory order and for every derivative."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lambdanets import GridPositions, lambda_apply
from lambdanets.kernels.grid.contract import GridInputs
from lambdanets.kernels.grid.planner import GRID_KERNELS
from lambdanets.kernels.terms import grid as terms
from lambdanets.kernels.terms.content import content_term, normalise
from lambdanets.kernels.terms.grid import GRID_OP, _BothTerms
from lambdanets.kernels.terms.grid import _both_terms as both_terms

ORDERS = ["heads", "places", "depth"]
CASES = {
    "global": ((3, 4), (5, 7), (2, 3), 1),
    "global, two values a place": ((3, 4), (5, 7), (2, 3), 2),
    "local": ((9, 8), (3, 5), (1, 2), 1),
    "local, two values a place": ((9, 8), (3, 5), (1, 2), 2),
    "sequence": ((11,), (21,), (10,), 1),
    "volume": ((2, 3, 3), (3, 5, 5), (1, 2, 2), 1),
    "causal table": ((3, 4), (3, 7), (2, 3), 1),
}


def in_order(order, b, c, n, depth):
    """Random (b, c, n, depth), its axes in another order in memory."""
    if order == "depth":
        return torch.randn(b, c, depth, n, dtype=torch.float64).transpose(2, 3)
    if order == "places":
        return torch.randn(b, n, c, depth, dtype=torch.float64).transpose(1, 2)
    return torch.randn(b, c, n, depth, dtype=torch.float64)


def arguments(case, order="depth"):
    grid, extents, origin, u = CASES[case]
    n = torch.Size(grid).numel()
    query, value = in_order(order, 2, 3, n, 4), in_order(order, 2, u, n, 5)
    keys = normalise(in_order(order, 2, u, n, 4)).detach()
    table = torch.randn(u, 4, *extents, dtype=torch.float64)
    return [t.requires_grad_() for t in (query, keys, value, table)], (grid, origin)


def at_once(*inputs_and_grid):
    """Both terms at once, from (query, keys, value, table, grid, origin) and a kernel or none."""
    *inputs, grid, origin, kernel = (*inputs_and_grid, "")[:7]
    return _BothTerms.apply(*inputs, list(grid), list(origin), kernel)


def apart(query, keys, value, table, grid, origin):
    return content_term(query, keys, value) + GRID_OP(query, value, table, list(grid), list(origin), "query_first")


def kernels(case):
    """Those that can run on it."""
    (query, _, value, table), (grid, origin) = arguments(case)
    problem = GridInputs.of(query, value, table, grid, origin).problem
    return [name for name, kernel in GRID_KERNELS.items() if kernel.check(problem) is None]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("case", "kernel"), [(case, kernel) for case in CASES for kernel in ["", *kernels(case)]])
def test_outputs_and_gradients_are_those_of_the_terms_apart(case, kernel, order):
    inputs, (grid, origin) = arguments(case, order)
    out, expected = at_once(*inputs, grid, origin, kernel), apart(*inputs, grid, origin)
    torch.testing.assert_close(out, expected, atol=1e-10, rtol=1e-10)
    grad = torch.randn_like(out)
    grads = torch.autograd.grad(out, inputs, grad)
    torch.testing.assert_close(grads, torch.autograd.grad(expected, inputs, grad), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("case", ["global", "local, two values a place"])
def test_gradients_of_gradients(case):
    inputs, (grid, origin) = arguments(case)
    torch.autograd.gradgradcheck(lambda *args: at_once(*args, grid, origin), inputs, fast_mode=True)


@pytest.mark.parametrize("create_graph", [False, True])
def test_one_tensor_in_two_places_has_the_sum_of_both_gradients(create_graph):
    query = torch.randn(2, 1, 6, 3, dtype=torch.float64, requires_grad=True)
    key, table = torch.randn(2, 1, 6, 3, dtype=torch.float64), torch.randn(1, 3, 11, dtype=torch.float64)
    out = lambda_apply(query, key, query, GridPositions(table, (6,)))
    (found,) = torch.autograd.grad(out.sum(), query, create_graph=create_graph)
    expected = lambda_apply(query, key, query, GridPositions(table, (6,)), kernel="reference")
    torch.testing.assert_close(found, *torch.autograd.grad(expected.sum(), query))


def test_a_dispatch_mode_sees_the_operations_of_the_gradients():
    inputs, (grid, origin) = arguments("global")
    out = at_once(*inputs, grid, origin)
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert any("grid_term_backward" in str(operation) for operation in counter.get_flop_counts()["Global"])


def test_entries_of_the_future_do_not_show_though_they_are_not_finite():
    query, value = torch.randn(1, 2, 6, 3), torch.randn(1, 1, 6, 4)
    table = torch.randn(1, 3, 11)
    expected = lambda_apply(query, None, value, GridPositions(table, (6,)), causal=True)
    table[..., 6:] = math.nan
    table[..., 7] = math.inf
    for kernel in (None, "reference", "portable"):
        out = lambda_apply(query, None, value, GridPositions(table, (6,)), causal=True, kernel=kernel)
        torch.testing.assert_close(out, expected)
    images, wide = GridPositions(torch.randn(1, 3, 3, 3), (2, 3)), torch.randn(1, 3, 3, 3)
    wide[..., 1, :2], wide[..., 0, :] = images.table[..., 1, :2], images.table[..., 0, :]
    wide[..., 1, 2], wide[..., 2, :] = math.inf, math.nan
    expected = lambda_apply(query, None, value, images, causal=True)
    for kernel in (None, "reference", "portable"):
        out = lambda_apply(query, None, value, GridPositions(wide, (2, 3)), causal=True, kernel=kernel)
        torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("frozen", range(4))
def test_a_frozen_input_has_no_gradient(frozen):
    inputs, (grid, origin) = arguments("global")
    inputs[frozen].requires_grad_(False)
    others = [t for t in inputs if t.requires_grad]
    for create_graph in (False, True):
        found = torch.autograd.grad(at_once(*inputs, grid, origin).sum(), others, create_graph=create_graph)
        expected = torch.autograd.grad(apart(*inputs, grid, origin).sum(), others)
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)


def test_several_gradients_at_once():
    inputs, (grid, origin) = arguments("global")
    out = at_once(*inputs, grid, origin)
    many = torch.randn(3, *out.shape, dtype=torch.float64)
    together = torch.autograd.grad(out, inputs, many, retain_graph=True, is_grads_batched=True)
    for i in range(3):
        alone = torch.autograd.grad(out, inputs, many[i], retain_graph=True)
        torch.testing.assert_close([grad[i] for grad in together], list(alone), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("order", ORDERS)
def test_the_output_lies_in_memory_as_the_query_does(order):
    inputs, (grid, origin) = arguments("global", order)
    out = at_once(*inputs, grid, origin, "query_first")
    assert out.stride() == in_order(order, *out.shape).stride()


def test_an_output_may_be_written_into():
    inputs, (grid, origin) = arguments("global")
    out = at_once(*inputs, grid, origin)
    expected = torch.autograd.grad((out * 2).sum(), inputs, retain_graph=True)
    out.mul_(2)
    torch.testing.assert_close(torch.autograd.grad(out.sum(), inputs), expected)


def test_lambda_apply_joins_in_eager_mode_only(monkeypatch):
    called = []
    monkeypatch.setattr(terms, "_both_terms", lambda *args: called.append(1) or both_terms(*args))
    q, k, v = torch.randn(2, 2, 6, 4), torch.randn(2, 1, 6, 4), torch.randn(2, 1, 6, 5)
    positions = GridPositions(torch.randn(1, 4, 3, 5), (2, 3))
    expected = lambda_apply(q, k, v, positions)
    assert len(called) == 1
    torch.testing.assert_close(lambda_apply(q, k, v, positions, kernel="reference"), expected)
    torch.testing.assert_close(torch.vmap(lambda q: lambda_apply(q, k, v, positions))(q[None])[0], expected)
    lambda_apply(q, k, v, positions, causal=True)
    lambda_apply(q, None, v, positions)
    assert len(called) == 1
    # In half precision as well, which comes here as float32.
    lambda_apply(q.bfloat16(), k.bfloat16(), v.bfloat16(), positions)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lambda_apply(q, k, v, positions)
    assert len(called) == 3
