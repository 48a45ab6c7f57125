"""The Triton kernels against the reference: outputs and all gradients, every kind of shape and dtype.

Where there is no GPU they run in Triton's interpreter: what they compute is tested, not what a compiler makes of it
(for that see ``test_ahead.py``).
"""

import math
from dataclasses import replace

import pytest
import torch

from helpers import grid_call, outputs_and_gradients
from lambdanets import GridPositions, lambda_apply
from lambdanets.kernels.ops import GRID_OP
from lambdanets.kernels.planner import GRID_KERNELS
from lambdanets.kernels.triton import query_first
from lambdanets.kernels.triton.tiling import Config

pytestmark = pytest.mark.needs_triton

KERNEL = "query_first_triton"

# A sum of a few hundred products in float32, in relation to the norm of the whole; 2e-7 is what they come to.
# Half precision: S and the output are rounded once each. The interpreter rounds to bfloat16 by cutting off, so twice.
LIMITS = {torch.float32: 1e-6, torch.float16: 2**-10, torch.bfloat16: 1.5 * 2**-7}


def apply(call, kernel):
    return lambda_apply(call.query, None, call.value, call.positions, **call.kwargs, kernel=kernel)


def assert_exact(call, device, limit=None):
    """Output and gradients against the reference in float64, from the same inputs."""
    limit = limit or LIMITS[call.query.dtype]
    exact = grid_call((1,), (1,))
    exact.query, exact.key, exact.value = (t.double() for t in call.args[:3])
    exact.positions = GridPositions(call.positions.table.double(), call.positions.grid)
    exact.mask, exact.causal = call.mask, call.causal
    grad = torch.randn(*call.query.shape[:3], call.value.shape[3]).to(call.query.dtype)
    positions = GridPositions(call.positions.table.to(device), call.positions.grid)
    moved = replace(call, query=call.query.to(device), value=call.value.to(device), positions=positions)
    moved = moved.requiring_grad()
    tensors = [moved.query, moved.value, moved.positions.table]
    out = apply(moved, KERNEL)
    actual = [out, *torch.autograd.grad(out, tensors, grad.to(device))]
    exact = exact.requiring_grad()
    expected_out = apply(exact, "reference")
    leaves = [exact.query, exact.value, exact.positions.table]
    expected = [expected_out, *torch.autograd.grad(expected_out, leaves, grad.double())]
    for name, a, e in zip(("output", "query", "value", "table"), actual, expected, strict=True):
        error = (a.detach().cpu().double() - e.detach()).norm() / e.detach().norm().clamp_min(1e-30)
        assert error < limit, f"{name}: relative error {error:.1e}"


# (grid, extents, sizes): global and scopes 3, 7, 23; odd, rectangular, one row, one column, sequences; rows of tiles
# that are aligned with the grid and rows that are not; heads in pairs of rows and in pairs of sets; values in parts.
CASES = [
    ((5, 9), (9, 17), {}),
    ((7, 7), (3, 3), {"h": 1, "u": 4, "b": 1}),
    ((1, 13), (1, 25), {"h": 2}),
    ((9, 1), (17, 1), {"h": 4, "b": 1}),
    ((1, 1), (3, 3), {}),
    ((63,), (125,), {"h": 2, "k": 16, "b": 1}),
    ((63,), (7,), {"h": 8, "k": 8, "v": 20, "b": 1}),
    ((63,), (23,), {"h": 1, "u": 2}),
    ((3, 40), (3, 7), {"b": 1}),
    ((3, 40), (3, 7), {"b": 1, "h": 6, "u": 2}),
    ((4, 20), (23, 23), {"h": 2, "b": 1}),
    ((14, 14), (7, 7), {"h": 4, "k": 16, "v": 64, "b": 1}),
    ((3, 5), (5, 9), {"h": 6, "v": 140, "b": 1}),
]


@pytest.mark.parametrize(("grid", "extents", "sizes"), CASES)
def test_exact(device, grid, extents, sizes):
    assert_exact(grid_call(grid, extents, dtype=torch.float32, **sizes), device)


@pytest.mark.parametrize(
    ("grid", "extents", "sizes"), [((3, 40), (3, 79), {"h": 2}), ((70,), (7,), {"h": 3}), ((2, 70), (3, 23), {})]
)
def test_exact_in_wide_tiles(device, monkeypatch, grid, extents, sizes):
    monkeypatch.setattr(query_first, "candidates", lambda problem: (Config(32, 4, 1),))
    assert_exact(grid_call(grid, extents, dtype=torch.float32, b=1, **sizes), device)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("grid", "extents", "sizes"),
    [((5, 9), (9, 17), {"h": 4, "k": 16, "v": 16}), ((2, 40), (3, 7), {"h": 5, "u": 2}), ((63,), (125,), {"v": 64})],
)
def test_half_precision_accumulates_in_float32(device, grid, extents, sizes, dtype):
    assert_exact(grid_call(grid, extents, dtype=dtype, b=1, **sizes), device)


@pytest.mark.parametrize(("grid", "extents"), [((4, 6), (7, 11)), ((5, 5), (3, 3)), ((40,), (79,)), ((40,), (7,))])
def test_causal(device, grid, extents):
    call = grid_call(grid, extents, dtype=torch.float32, b=1, u=2)
    call.causal = True
    assert_exact(call, device)


def test_masked_positions_may_hold_anything(device):
    call = grid_call((4, 7), (7, 13), dtype=torch.float32)
    call.mask = torch.rand(2, 28) < 0.6
    expected = apply(call, "reference")
    call.value[~call.mask[:, None].expand(2, 1, 28)] = float("nan")
    query, value, table = (t.to(device) for t in (call.query, call.value, call.positions.table))
    out = lambda_apply(query, None, value, GridPositions(table, (4, 7)), mask=call.mask.to(device), kernel=KERNEL)
    torch.testing.assert_close(out.cpu(), expected, atol=1e-5, rtol=1e-5)


def test_nothing_outside_of_the_inputs_is_read_and_every_output_is_written(device, monkeypatch):
    """Inputs lie among NaN, channels in front of the positions; fresh memory holds NaN."""
    call = grid_call((3, 20), (3, 5), dtype=torch.float32, b=1)

    def among_nan(tensor):
        """The same numbers in a strided view of a larger tensor."""
        larger = torch.full([size + 2 for size in tensor.transpose(2, 3).shape], float("nan"), device=device)
        view = larger[tuple(slice(1, -1) for _ in tensor.shape)]
        view.copy_(tensor.transpose(2, 3))
        return view.transpose(2, 3)

    expected = outputs_and_gradients(lambda c: apply(c, "reference"), call)
    real_empty, real_new_empty = torch.empty, torch.Tensor.new_empty
    monkeypatch.setattr(torch, "empty", lambda *a, **kw: real_empty(*a, **kw).fill_(float("nan")))
    monkeypatch.setattr(
        torch.Tensor, "new_empty", lambda self, *a, **kw: real_new_empty(self, *a, **kw).fill_(torch.nan)
    )

    def through_views(c):
        table = c.positions.table.to(device)
        out = lambda_apply(among_nan(c.query), None, among_nan(c.value), GridPositions(table, (3, 20)), kernel=KERNEL)
        return out.to(c.query.device)

    for a, e in zip(outputs_and_gradients(through_views, call), expected, strict=True):
        torch.testing.assert_close(a, e, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("programs", [1, 10**6])
def test_the_same_bits_in_every_run(device, monkeypatch, programs):
    """Examples in one sum, and each in a sum of its own."""
    monkeypatch.setattr(query_first, "PROGRAMS", programs)
    call = grid_call((3, 6), (3, 5), dtype=torch.float16, b=3)
    tensors = [t.to(device) for t in (call.query, call.value, call.positions.table)]
    statics = [3, 6], [1, 2], KERNEL

    def run():
        out = GRID_OP.forward(*tensors, *statics)
        return [out, *GRID_OP.backward(torch.ones_like(out), *tensors, *statics)]

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))
    assert_exact(call, device)


def test_half_precision_reaches_the_kernel_as_it_is(device, monkeypatch):
    seen = []

    def forward(query, value, table, problem):
        seen.extend([query.dtype, value.dtype, table.dtype, problem.dtype])
        return query.new_zeros(*query.shape[:3], value.shape[3])

    kernel = GRID_KERNELS[KERNEL]
    monkeypatch.setitem(GRID_KERNELS, KERNEL, type(kernel)(**{**vars(kernel), "forward": forward}))
    call = grid_call((3, 3), (3, 3), dtype=torch.float16)
    apply(call, KERNEL)
    assert seen == [torch.float16] * 4


def test_opcheck(device):
    call = grid_call((3, 4), (3, 3), dtype=torch.float32, b=1)
    tensors = [t.to(device) for t in (call.query, call.value, call.positions.table)]
    torch.library.opcheck(GRID_OP.forward, (*tensors, [3, 4], [1, 1], KERNEL))
    grad = torch.randn(1, 3, math.prod((3, 4)), 5, device=device)
    torch.library.opcheck(GRID_OP.backward, (grad, *tensors, [3, 4], [1, 1], KERNEL))
