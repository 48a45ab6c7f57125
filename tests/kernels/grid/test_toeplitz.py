"""The index of the Toeplitz operand: kept once for all calls that share it."""

import torch

from helpers import assert_same, grid_call, outputs_and_gradients, small_blocks
from lambdanets import lambda_apply
from lambdanets.kernels.grid import toeplitz


def results(call, kernel):
    return outputs_and_gradients(lambda c: lambda_apply(*c.args, kernel=kernel), call)


def test_calls_that_differ_elsewhere_share_the_index():
    toeplitz._entries.cache_clear()
    for b, h, v, dtype in [(1, 2, 3, torch.float32), (2, 2, 3, torch.float32), (2, 3, 5, torch.float64)]:
        call = grid_call((5, 6), (3, 5), b=b, h=h, v=v, dtype=dtype).requiring_grad()
        lambda_apply(*call.args, kernel="query_first").sum().backward()
    assert toeplitz._entries.cache_info().currsize == 1
    toeplitz._entries.cache_clear()


def test_large_indices_are_not_kept():
    with small_blocks("grid.toeplitz", KEPT_VECTORS=200):
        toeplitz._entries.cache_clear()
        for grid in ((3, 4), (5, 9)):
            call = grid_call(grid, (3, 3))
            assert_same(results(call, "query_first"), results(call, "reference"))
        assert toeplitz._entries.cache_info().currsize == 1
