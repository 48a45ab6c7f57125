"""How row-spectral cuts a grid into steps of rows."""

import pytest

from helpers import grid_call
from lambdanets.kernels.autograd.memory import Workspace
from lambdanets.kernels.grid import row_spectral, row_spectral_plan
from lambdanets.kernels.grid.contract import GridInputs, GridProblem
from lambdanets.kernels.grid.folding import fold


def problem(grid, scope=None, *, b=1, h=4, k=16, v=16, u=1):
    extents = tuple(2 * size - 1 if scope is None else scope for size in grid)
    return GridProblem(b, h, k, v, u, grid, extents, tuple(extent // 2 for extent in extents))


PROBLEMS = [
    problem((1, 1)),
    problem((28, 28), b=4, v=32),
    problem((56, 56), 7),
    problem((56, 56), 23, b=2),
    problem((1500, 2), 3, v=1),
    problem((4096, 4)),
    problem((128, 128), v=4, u=4),
    problem((1000,), b=2),
    problem((100_000,), v=1),
]


@pytest.mark.parametrize("given", PROBLEMS)
def test_steps_cover_all_rows_and_what_they_see(given):
    image = fold(given)
    steps = row_spectral_plan.row_steps(image)
    rows, back, ahead = image.grid[0], image.origin[0], image.extents[0] - 1 - image.origin[0]
    assert [y for step in steps for y in range(step.rows.start, step.rows.stop)] == list(range(rows))
    for step in steps:
        seen = range(max(0, step.rows.start - back), min(rows, step.rows.stop + ahead))
        assert [rows - 1 - z for z in range(step.seen.start, step.seen.stop)] == list(reversed(seen))
        assert step.num_rows <= steps[0].num_rows


@pytest.mark.parametrize("given", PROBLEMS)
def test_the_operand_of_a_step_is_bounded(given):
    image = fold(given)
    depth = 2 * row_spectral_plan.num_frequencies(image) * image.dim_key * image.intra_depth
    for step in row_spectral_plan.row_steps(image):
        places = step.num_rows * step.num_seen
        assert step.num_rows == 1 or depth * places <= row_spectral_plan.TOEPLITZ_ELEMENTS


def test_rows_of_a_step_are_not_many_more_than_they_see():
    assert row_spectral_plan.row_steps(problem((56, 56), 7))[0].num_rows == 8
    assert row_spectral_plan.row_steps(problem((56, 56), 23))[0].num_rows == 28


def test_large_transforms_are_not_kept():
    row_spectral._transforms.cache_clear()
    for columns in (7, 700):
        call = grid_call((1, columns), (1, 3), k=1, v=1)
        inputs = GridInputs.of(call.query, call.value, call.positions.table, (1, columns), (0, 1))
        row_spectral.forward(inputs, Workspace())
    assert row_spectral._transforms.cache_info().currsize == 1
