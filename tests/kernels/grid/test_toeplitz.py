"""The index of the Toeplitz operand: kept once for all calls that share it."""

import pytest
import torch

from helpers import grid_call
from lambdanets import lambda_apply
from lambdanets.kernels.grid import toeplitz


@pytest.mark.parametrize("kernel", ["query_first", "lambda_first"])
def test_calls_that_differ_elsewhere_share_the_index(kernel):
    toeplitz._entries.cache_clear()
    for b, h, v, dtype in [(1, 2, 3, torch.float32), (2, 2, 3, torch.float32), (2, 3, 5, torch.float64)]:
        call = grid_call((5, 6), (3, 5), b=b, h=h, v=v, dtype=dtype).requiring_grad()
        lambda_apply(*call.args, kernel=kernel).sum().backward()
    assert toeplitz._entries.cache_info().currsize == 1
    toeplitz._entries.cache_clear()
