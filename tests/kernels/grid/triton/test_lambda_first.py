"""Lambda first: what it alone does."""

from dataclasses import replace

import pytest
import torch

from helpers import grid_call
from lambdanets.kernels.grid.contract import GridProblem
from lambdanets.kernels.grid.triton import lambda_first
from lambdanets.kernels.grid.triton.launch import example_elements
from lambdanets.kernels.grid.triton.tiling import Config
from triton_calls import assert_exact

PROBLEM = GridProblem(128, 4, 16, 64, 1, (28, 28), (55, 55), (27, 27), torch.bfloat16, "cuda")


@pytest.mark.needs_triton
@pytest.mark.parametrize(
    ("block", "grid", "extents", "sizes"),
    [
        (32, (3, 40), (3, 79), {"h": 2}),
        (64, (3, 40), (3, 79), {"h": 2}),
        (32, (70,), (7,), {"h": 3}),
        (64, (70,), (7,), {"h": 3}),
        (32, (2, 70), (3, 23), {"k": 16, "b": 1}),
        (32, (9, 5), (17, 9), {"b": 3, "h": 2, "v": 40, "u": 2}),
        (64, (9, 5), (17, 9), {"b": 3, "h": 1, "v": 40}),
    ],
)
def test_exact_in_wide_steps(device, monkeypatch, block, grid, extents, sizes):
    """Steps over several rows, wider than a row, a scope and the whole context."""
    monkeypatch.setattr(lambda_first, "candidates", lambda problem, for_gradient=False: (Config(block, 4, 1),))
    assert_exact("lambda_first_triton", grid_call(grid, extents, dtype=torch.float32, **sizes), device)


def test_examples_share_a_tile_as_far_as_their_values_leave_room():
    def examples(**change):
        return lambda_first.tile(replace(PROBLEM, **change), 32).examples

    assert [examples(dim_value=v) for v in (8, 16, 64, 100, 128)] == [16, 8, 2, 1, 1]
    assert examples(dim_value=8, batch=3) == 4


def test_a_product_has_16_columns_at_least():
    for batch, depth in ((1, 4), (2, 1), (1, 16)):
        tiling = lambda_first.tile(replace(PROBLEM, batch=batch, dim_value=depth), 32)
        assert tiling.examples == batch
        assert tiling.examples * tiling.value_depth == 16


@pytest.mark.parametrize("depth", [1, 2, 4, 16])
def test_examples_that_share_a_tile_can_be_counted_in_32_bits(depth):
    size = 2**13
    large = replace(PROBLEM, grid=(size, size), extents=(3, 3), origin=(1, 1), dim_value=depth, heads=1)
    tiling = lambda_first.tile(large, 32)
    assert tiling.examples * example_elements(large) < 2**31
    assert tiling.examples * tiling.value_depth >= 16
    assert lambda_first.tile(replace(large, grid=(64, 64)), 32).examples == 128 // depth
