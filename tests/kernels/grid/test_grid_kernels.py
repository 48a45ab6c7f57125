"""Every kernel for grids against the reference: float64, outputs and gradients, odd and rectangular sizes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import assert_same, grid_call, outputs_and_gradients, small_blocks
from lambdanets import GridPositions, lambda_apply
from lambdanets.kernels.grid.planner import GRID_KERNELS, kernels_for
from lambdanets.kernels.grid.problem import problem_of, reachable_window
from lambdanets.kernels.terms.grid import GRID_OP, grid_term

KERNELS = kernels_for("cpu")

# (grid, extents): one position, odd, even, rectangular, local, global, tables larger than any offset.
SHAPES = [
    ((1,), (1,)),
    ((1,), (5,)),
    ((63,), (125,)),
    ((64,), (9,)),
    ((7,), (3,)),
    ((1, 1), (23, 23)),
    ((7, 7), (13, 13)),
    ((5, 9), (9, 17)),
    ((9, 5), (3, 7)),
    ((1, 13), (3, 25)),
    ((13, 1), (25, 3)),
    ((17, 11), (7, 7)),
    ((6, 10), (23, 5)),
    ((10, 6), (5, 23)),
    ((3, 4, 5), (5, 7, 9)),
    ((4, 5, 6), (3, 3, 3)),
    ((2, 1, 3), (3, 3, 1)),
]


def runs(kernel, call):
    """Whether ``kernel`` can run the call; one that cannot must say why."""
    positions = call.positions
    window = reachable_window(positions.extents, positions.grid, call.causal)
    origin = [extent // 2 - start for extent, (start, _) in zip(positions.extents, window, strict=True)]
    table = positions.table
    for axis, (start, stop) in enumerate(window, start=2):
        table = table.narrow(axis, start, stop - start)
    reason = GRID_KERNELS[kernel].check(problem_of(call.query, call.value, table, positions.grid, origin))
    if reason is None:
        return True
    with pytest.raises(ValueError, match="cannot run here") as error:
        lambda_apply(*call.args, **call.kwargs, kernel=kernel)
    assert reason in str(error.value)
    return False


def assert_exact(kernel, call):
    if runs(kernel, call):
        expected = outputs_and_gradients(lambda c: lambda_apply(*c.args, **c.kwargs, kernel="reference"), call)
        actual = outputs_and_gradients(lambda c: lambda_apply(*c.args, **c.kwargs, kernel=kernel), call)
        assert_same(actual, expected)


@pytest.mark.parametrize("u", [1, 3])
@pytest.mark.parametrize(("grid", "extents"), SHAPES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_exact(kernel, grid, extents, u):
    assert_exact(kernel, grid_call(grid, extents, u=u))


@pytest.mark.parametrize(("grid", "extents"), SHAPES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_exact_masked(kernel, grid, extents):
    call = grid_call(grid, extents, u=2)
    call.mask = torch.rand(2, math.prod(grid)) < 0.6
    call.mask[1] = False
    assert_exact(kernel, call)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("kernel", KERNELS)
def test_exact_on_any_shape(kernel, data):
    rank = data.draw(st.integers(1, 3))
    grid = tuple(data.draw(st.integers(1, (40, 9, 5)[rank - 1])) for _ in range(rank))
    extents = tuple(2 * data.draw(st.integers(0, size + 1)) + 1 for size in grid)
    sizes = {name: data.draw(st.integers(1, 4)) for name in ("b", "h", "k", "v", "u")}
    assert_exact(kernel, grid_call(grid, extents, **sizes))


@pytest.mark.parametrize("elements", [1, 2000, 9000])
@pytest.mark.parametrize("kernel", KERNELS)
def test_blocks_join_without_seams(kernel, elements):
    """Blocks of one row and one example, or of a few with fewer in the last, give what one large block gives."""
    with small_blocks(kernel, BLOCK_ELEMENTS=elements, COLUMNS=10, ONE_ROW_ELEMENTS=0, SCORE_ELEMENTS=elements):
        assert_exact(kernel, grid_call((9, 6), (5, 7), u=2, b=3))
        assert_exact(kernel, grid_call((9, 6), (17, 11), u=2, b=3))
        assert_exact(kernel, grid_call((4, 3, 5), (3, 3, 3), b=3))


@pytest.mark.parametrize("u", [1, 3])
@pytest.mark.parametrize(("grid", "extents"), SHAPES)
@pytest.mark.parametrize("kernel", ["query_first", "row_spectral"])
def test_exact_row_by_row(kernel, grid, extents, u):
    """Grids that would go through as one row, or in one step, go through as large ones do."""
    with small_blocks(kernel, BLOCK_ELEMENTS=1, ONE_ROW_ELEMENTS=0):
        assert_exact(kernel, grid_call(grid, extents, u=u))


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradcheck(kernel):
    call = grid_call((3, 4), (3, 5), u=2, b=2, h=2, k=2, v=3).requiring_grad()

    def apply(query, key, value, table):
        return lambda_apply(query, key, value, GridPositions(table, (3, 4)), kernel=kernel)

    assert torch.autograd.gradcheck(apply, call.leaves())


@pytest.mark.parametrize("kernel", KERNELS)
def test_writes_every_output(kernel, monkeypatch):
    """With uninitialised memory full of NaN, an element that a kernel leaves out would show."""
    real_empty, real_new_empty, real_empty_like = torch.empty, torch.Tensor.new_empty, torch.empty_like

    def poison(tensor):
        return tensor.fill_(float("nan")) if tensor.is_floating_point() or tensor.is_complex() else tensor

    monkeypatch.setattr(torch, "empty", lambda *a, **kw: poison(real_empty(*a, **kw)))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **kw: poison(real_empty_like(*a, **kw)))
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda self, *a, **kw: poison(real_new_empty(self, *a, **kw)))
    assert_exact(kernel, grid_call((5, 7), (3, 5), u=2))
    assert_exact(kernel, grid_call((5, 7), (9, 13)))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("grid", "extents"), [((6, 7), (3, 5)), ((6, 7), (11, 13)), ((40,), (9,))])
def test_strides_do_not_matter(kernel, grid, extents):
    """Inputs as the layers hand them over: views with the depth in front of the positions."""
    call = grid_call(grid, extents, u=2)
    expected = outputs_and_gradients(lambda c: lambda_apply(*c.args, kernel="reference"), call)

    def apply(c):
        query, key, value = (t.transpose(2, 3).contiguous().transpose(2, 3) for t in c.args[:3])
        return lambda_apply(query, key, value, c.positions, kernel=kernel)

    if runs(kernel, call):
        assert_same(outputs_and_gradients(apply, call), expected)


@pytest.mark.parametrize("kernel", KERNELS)
def test_inputs_are_left_as_they_were(kernel):
    call = grid_call((5, 6), (3, 3), u=2)
    query, value, table = call.query, call.value, call.positions.table
    before = [t.clone() for t in (query, value, table)]
    out = grid_term(query, value, table, [5, 6], [1, 1], kernel)
    GRID_OP.backward_op(torch.ones_like(out), query, value, table, [5, 6], [1, 1], kernel)
    assert all(torch.equal(a, b) for a, b in zip(before, (query, value, table), strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kernel", KERNELS)
def test_half_precision_accumulates_in_float32(kernel, dtype):
    """The only errors are those of rounding the inputs and the two terms of the output."""
    call = grid_call((12, 12), (7, 7), k=16, v=16, dtype=dtype)
    exact = grid_call((12, 12), (7, 7), k=16, v=16)
    exact.query, exact.key, exact.value = (t.double() for t in call.args[:3])
    exact.positions = GridPositions(call.positions.table.double(), (12, 12))
    actual = grid_term(
        call.query, call.value, call.positions.table, [12, 12], [3, 3], kernel if runs(kernel, call) else ""
    )
    expected = grid_term(exact.query, exact.value, exact.positions.table, [12, 12], [3, 3], "")
    assert actual.dtype == dtype
    half_ulp = torch.finfo(dtype).eps / 2
    error = (actual.double() - expected).abs()
    assert (error <= half_ulp * expected.abs() * 1.001 + 1e-4).all()
