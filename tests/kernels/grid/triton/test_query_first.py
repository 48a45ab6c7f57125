"""Query first: what it alone does."""

import pytest
import torch

from helpers import grid_call
from lambdanets.kernels.grid.triton import query_first
from lambdanets.kernels.grid.triton.tiling import Config
from triton_calls import assert_exact

pytestmark = pytest.mark.needs_triton

KERNEL = "query_first_triton"


@pytest.mark.parametrize(
    ("grid", "extents", "sizes"), [((3, 40), (3, 79), {"h": 2}), ((70,), (7,), {"h": 3}), ((2, 70), (3, 23), {})]
)
def test_exact_in_wide_tiles(device, monkeypatch, grid, extents, sizes):
    monkeypatch.setattr(query_first, "candidates", lambda problem: (Config(32, 4, 1),))
    assert_exact(KERNEL, grid_call(grid, extents, dtype=torch.float32, b=1, **sizes), device)


@pytest.mark.smoke
def test_deep_values_go_through_in_parts(device):
    assert_exact(KERNEL, grid_call((3, 5), (5, 9), dtype=torch.float32, h=6, v=140, b=1), device)
