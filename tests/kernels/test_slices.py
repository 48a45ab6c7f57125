"""Ranges cut into slices."""

import pytest

from lambdanets.kernels.slices import slices


@pytest.mark.parametrize(("total", "step"), [(0, 3), (1, 3), (6, 3), (7, 3), (2, 1), (5, 9)])
def test_slices_cover_a_range_in_order(total, step):
    parts = list(slices(total, step))
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(total))
    assert all(part.stop - part.start == step for part in parts[:-1])
    assert all(0 < part.stop - part.start <= step for part in parts)
