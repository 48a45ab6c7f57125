"""Every kernel for grids against the reference: float64, outputs and gradients, odd and rectangular sizes."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from helpers import (
    EVERYWHERE,
    PRESENT,
    assert_same,
    grid_call,
    kernel_cases,
    modules_of,
    outputs_and_gradients,
    refuses,
    small_blocks,
)
from lambdanets import GridPositions, lambda_apply
from lambdanets.kernels.grid.contract import GridInputs
from lambdanets.kernels.grid.planner import GRID_KERNELS
from lambdanets.kernels.terms.grid import GRID_OP

KERNELS = EVERYWHERE

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


CASES = pytest.mark.parametrize(("kernel", "grid", "extents"), kernel_cases(KERNELS, SHAPES))


def assert_exact(kernel, call):
    expected = outputs_and_gradients(lambda c: lambda_apply(*c.args, **c.kwargs, kernel="reference"), call)
    actual = outputs_and_gradients(lambda c: lambda_apply(*c.args, **c.kwargs, kernel=kernel), call)
    assert_same(actual, expected)


@pytest.mark.smoke
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("grid", "extents"), SHAPES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_only_what_is_expected_is_refused(kernel, grid, extents, causal):
    call = grid_call(grid, extents)
    origin = [extent // 2 for extent in extents]
    table = call.positions.table[:, :, : origin[0] + 1] if causal else call.positions.table
    reason = GRID_KERNELS[kernel].check(GridInputs.of(call.query, call.value, table, grid, origin).problem)
    assert (reason is not None) == refuses(kernel, grid, extents)
    if reason is not None:
        with pytest.raises(ValueError, match="cannot run here") as error:
            lambda_apply(*call.args, causal=causal, kernel=kernel)
        assert reason in str(error.value)


@pytest.mark.parametrize(("u", "masked"), [(1, False), (3, True)])
@CASES
def test_exact(kernel, grid, extents, u, masked):
    call = grid_call(grid, extents, u=u)
    if masked:
        call.mask = torch.rand(2, math.prod(grid)) < 0.6
        call.mask[1] = False
    assert_exact(kernel, call)


@settings(max_examples=20, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("kernel", KERNELS)
def test_exact_on_any_shape(kernel, data):
    rank = data.draw(st.integers(1, 3))
    grid = tuple(data.draw(st.integers(1, (40, 9, 5)[rank - 1])) for _ in range(rank))
    extents = tuple(2 * data.draw(st.integers(0, size + 1)) + 1 for size in grid)
    sizes = {name: data.draw(st.integers(1, 4)) for name in ("b", "h", "k", "v", "u")}
    assume(not refuses(kernel, grid, extents))
    assert_exact(kernel, grid_call(grid, extents, **sizes))


# Every size of a block in every kernel, small: blocks of one row and one example, lengths of one number.
SMALLEST = {
    "query_first": {"ONE_ROW_ELEMENTS": 0, "SCORE_ELEMENTS": 1},
    "banded": {"BLOCK_ELEMENTS": 1, "STRIP_ELEMENTS": 1},
    "row_spectral": {
        "BLOCK_ELEMENTS": 1,
        "COLUMNS": 1,
        "TOEPLITZ_ELEMENTS": 1,
        "LEAST_ROWS": 1,
        "KEPT_ELEMENTS": 0,
    },
    "spectral": {"BLOCK_ELEMENTS": 1, "LINE_POINTS": 1},
}
# Each alone; all together; and sizes with which the last block is smaller than the others.
SMALL_BLOCKS = [
    (kernel, sizes)
    for kernel, smallest in SMALLEST.items()
    for sizes in (
        *({name: size} for name, size in smallest.items()),
        *([smallest] if len(smallest) > 1 else []),
        *(
            {name: size if "ELEMENTS" in name and size else max(size, 10) * (size > 0) for name in smallest}
            for size in (2000, 9000)
        ),
    )
]
# Constants that are no sizes of blocks.
LIMITS = {"MAX_ELEMENTS", "LEAST_DEPTH", "SMALL_PRODUCT"}


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_size_of_a_block_is_made_small(kernel):
    constants = {
        name
        for module in modules_of(f"grid.{kernel}")
        for name, value in vars(module).items()
        if name.isupper() and isinstance(value, int)
    }
    assert constants - LIMITS == set(SMALLEST.get(kernel, {}))


def test_an_unknown_size_is_an_error():
    with pytest.raises(AttributeError, match="NO_ELEMENTS"), small_blocks("grid.spectral", NO_ELEMENTS=1):
        pass


@pytest.mark.parametrize(("kernel", "sizes"), SMALL_BLOCKS)
def test_blocks_join_without_seams(kernel, sizes):
    with small_blocks(f"grid.{kernel}", **sizes):
        for grid, extents, u in (((9, 6), (5, 7), 2), ((9, 6), (17, 11), 2), ((4, 3, 5), (3, 3, 3), 1)):
            if not refuses(kernel, grid, extents):
                assert_exact(kernel, grid_call(grid, extents, u=u, b=3))


@pytest.mark.parametrize(
    ("kernel", "grid", "extents"), [case for case in kernel_cases(KERNELS, SHAPES) if case[0] in SMALLEST]
)
def test_exact_in_the_smallest_blocks(kernel, grid, extents):
    """Grids that would go through in one step go through as large ones do."""
    with small_blocks(f"grid.{kernel}", **SMALLEST[kernel]):
        assert_exact(kernel, grid_call(grid, extents, u=2))


@pytest.mark.smoke
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
    if not refuses(kernel, (5, 7), (9, 13)):
        assert_exact(kernel, grid_call((5, 7), (9, 13)))


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("kernel", "grid", "extents"), kernel_cases(KERNELS, [((6, 7), (3, 5)), ((6, 7), (11, 13)), ((40,), (9,))])
)
def test_strides_do_not_matter(kernel, grid, extents):
    """Inputs as the layers hand them over: views with the depth in front of the positions."""
    call = grid_call(grid, extents, u=2)
    expected = outputs_and_gradients(lambda c: lambda_apply(*c.args, kernel="reference"), call)

    def apply(c):
        query, key, value = (t.transpose(2, 3).contiguous().transpose(2, 3) for t in c.args[:3])
        return lambda_apply(query, key, value, c.positions, kernel=kernel)

    assert_same(outputs_and_gradients(apply, call), expected)


@pytest.mark.parametrize("kernel", KERNELS)
def test_inputs_are_left_as_they_were(kernel):
    call = grid_call((5, 6), (3, 3), u=2)
    query, value, table = call.query, call.value, call.positions.table
    before = [t.clone() for t in (query, value, table)]
    out = GRID_OP(query, value, table, [5, 6], [1, 1], kernel)
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
    actual = GRID_OP(call.query, call.value, call.positions.table, [12, 12], [3, 3], kernel)
    expected = GRID_OP(exact.query, exact.value, exact.positions.table, [12, 12], [3, 3], "")
    assert actual.dtype == dtype
    half_ulp = torch.finfo(dtype).eps / 2
    error = (actual.double() - expected).abs()
    assert (error <= half_ulp * expected.abs() * 1.001 + 1e-4).all()


LARGE = [((28, 28), (55, 55)), ((700,), (1399,)), ((6, 5, 7), (11, 9, 13))]


@pytest.mark.parametrize(("kernel", "grid", "extents"), kernel_cases(PRESENT, LARGE))
def test_large_numbers_do_not_overflow_on_the_way(kernel, grid, extents):
    """A value a hundredth of the largest number of float32, with sums and gradients that are below it."""
    call = grid_call(grid, extents, h=2, v=3, dtype=torch.float32)
    call.positions.table.div_(28)
    call.value[0, 0, math.prod(grid) // 2, 1] = 3e36
    call = call.requiring_grad()
    out = lambda_apply(*call.args, kernel=kernel)
    for result in (out, *torch.autograd.grad(out, call.leaves(), 0.1 * torch.randn_like(out))):
        assert result.isfinite().all()
