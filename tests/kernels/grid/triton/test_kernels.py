"""The Triton kernels against the reference: outputs and all gradients, every kind of shape and dtype.

Where there is no GPU they run in Triton's interpreter: what they compute is tested, not what a compiler makes of it
(for that see ``test_ahead.py``).
"""

import math
from dataclasses import replace

import pytest
import torch

from helpers import FOR_CUDA, grid_call, outputs_and_gradients
from lambdanets import GridPositions, lambda_apply
from lambdanets.kernels.grid.planner import GRID_KERNELS
from lambdanets.kernels.grid.triton import launch
from lambdanets.kernels.terms.grid import GRID_OP
from triton_calls import apply, assert_exact

pytestmark = pytest.mark.needs_triton


@pytest.fixture(params=FOR_CUDA)
def kernel(request):
    return request.param


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
    ((2, 40), (3, 7), {"b": 1, "h": 6, "u": 2}),
    ((2, 20), (23, 23), {"h": 2, "b": 1}),
    ((9, 9), (7, 7), {"h": 4, "k": 16, "v": 64, "b": 1}),
    ((3, 5), (5, 9), {"h": 6, "v": 128, "b": 1}),
    ((3, 5), (5, 9), {"h": 4, "k": 16, "v": 16, "b": 9}),
    ((3, 7), (3, 13), {"k": 17, "v": 3, "b": 3}),
]


@pytest.mark.parametrize(("grid", "extents", "sizes"), CASES)
def test_exact(kernel, device, grid, extents, sizes):
    assert_exact(kernel, grid_call(grid, extents, dtype=torch.float32, **sizes), device)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("grid", "extents", "sizes"),
    [((5, 9), (9, 17), {"h": 4, "k": 16, "v": 16}), ((2, 40), (3, 7), {"h": 5, "u": 2}), ((63,), (125,), {"v": 64})],
)
def test_half_precision_accumulates_in_float32(kernel, device, grid, extents, sizes, dtype):
    assert_exact(kernel, grid_call(grid, extents, dtype=dtype, b=1, **sizes), device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("grid", "extents"), [((4, 6), (7, 11)), ((5, 5), (3, 3)), ((40,), (79,)), ((40,), (7,))])
def test_causal(kernel, device, grid, extents, dtype):
    call = grid_call(grid, extents, dtype=dtype, b=1, u=2)
    call.causal = True
    assert_exact(kernel, call, device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_exact_masked(kernel, device, dtype):
    call = grid_call((4, 7), (7, 13), dtype=dtype)
    call.mask = torch.rand(2, 28) < 0.6
    call.mask[1] = False
    assert_exact(kernel, call, device)


def test_masked_positions_may_hold_anything(kernel, device):
    call = grid_call((4, 7), (7, 13), dtype=torch.float32)
    call.mask = torch.rand(2, 28) < 0.6
    expected = apply(call, "reference")
    call.value[~call.mask[:, None].expand(2, 1, 28)] = float("nan")
    query, value, table = (t.to(device) for t in (call.query, call.value, call.positions.table))
    out = lambda_apply(query, None, value, GridPositions(table, (4, 7)), mask=call.mask.to(device), kernel=kernel)
    torch.testing.assert_close(out.cpu(), expected, atol=1e-5, rtol=1e-5)


def test_nothing_outside_of_the_inputs_is_read_and_every_output_is_written(kernel, device, monkeypatch):
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
        out = lambda_apply(among_nan(c.query), None, among_nan(c.value), GridPositions(table, (3, 20)), kernel=kernel)
        return out.to(c.query.device)

    for a, e in zip(outputs_and_gradients(through_views, call), expected, strict=True):
        torch.testing.assert_close(a, e, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("programs", [1, 10**6])
def test_the_same_bits_in_every_run(kernel, device, monkeypatch, programs):
    """Examples in one sum, and each in a sum of its own."""
    monkeypatch.setattr(launch, "PROGRAMS", programs)
    call = grid_call((3, 6), (3, 5), dtype=torch.float16, b=3)
    tensors = [t.to(device) for t in (call.query, call.value, call.positions.table)]
    statics = [3, 6], [1, 2], kernel

    def run():
        out = GRID_OP.forward_op(*tensors, *statics)
        return [out, *GRID_OP.backward_op(torch.ones_like(out), *tensors, *statics)]

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))
    assert_exact(kernel, call, device)


def test_half_precision_reaches_the_kernel_as_it_is(kernel, device, monkeypatch):
    seen = []

    def forward(inputs, workspace):
        seen.extend([inputs.query.dtype, inputs.value.dtype, inputs.table.dtype, inputs.problem.dtype])
        return inputs.query.new_zeros(*inputs.query.shape[:3], inputs.problem.dim_value)

    monkeypatch.setitem(GRID_KERNELS, kernel, replace(GRID_KERNELS[kernel], forward=forward))
    call = grid_call((3, 3), (3, 3), dtype=torch.float16)
    apply(call, kernel)
    assert seen == [torch.float16] * 4


def test_opcheck(kernel, device):
    call = grid_call((3, 4), (3, 3), dtype=torch.float32, b=1)
    tensors = [t.to(device) for t in (call.query, call.value, call.positions.table)]
    torch.library.opcheck(GRID_OP.forward_op, (*tensors, [3, 4], [1, 1], kernel))
    grad = torch.randn(1, 3, math.prod((3, 4)), 5, device=device)
    torch.library.opcheck(GRID_OP.backward_op, (grad, *tensors, [3, 4], [1, 1], kernel))
