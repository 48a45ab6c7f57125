"""Ranges cut into slices, and rows summed by an index."""

import pytest
import torch

from lambdanets.kernels.slices import slices, summed_at


@pytest.mark.parametrize(("total", "step"), [(0, 3), (1, 3), (6, 3), (7, 3), (2, 1), (5, 9)])
def test_slices_cover_a_range_in_order(total, step):
    parts = list(slices(total, step))
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(total))
    assert all(part.stop - part.start == step for part in parts[:-1])
    assert all(0 < part.stop - part.start <= step for part in parts)


def test_rows_are_summed_by_their_index_also_of_no_samples():
    rows, index = torch.randn(2, 5, 3), torch.tensor([3, 0, 3, 1, 3])
    expected = torch.stack([rows[:, index == i].sum(1) for i in range(4)], dim=1)
    torch.testing.assert_close(summed_at(rows, index, 4), expected)
    for samples in (2, 0):
        indices = index.expand(samples, 5)
        actual = torch.func.vmap(lambda index: summed_at(rows, index, 4))(indices)
        torch.testing.assert_close(actual, expected.expand(samples, 2, 4, 3))
