"""Geometry of the positions."""

import itertools

import numpy as np
import pytest
import torch

from lambdanets import DensePositions, EdgePositions, GridPositions
from lambdanets.positions import lexicographic_past

pytestmark = pytest.mark.smoke


def test_global_and_local_are_one_table():
    """A global table with zeros outside a scope is the local table of that scope."""
    local = torch.randn(2, 3, 3, 5)
    wide = torch.zeros(2, 3, 7, 9)
    wide[:, :, 2:5, 2:7] = local
    assert torch.equal(GridPositions(local, (4, 5)).dense(), GridPositions(wide, (4, 5)).dense())


def test_offsets_are_from_query_to_context():
    table = torch.arange(9.0).reshape(1, 1, 9)
    dense = GridPositions(table, (5,)).dense()[:, :, 0, 0]
    assert dense[0].tolist() == [4, 5, 6, 7, 8]
    assert dense[4].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("grid", [(7,), (3, 4), (2, 3, 4)])
def test_past_offsets_are_the_causal_triangle(grid):
    extents = [2 * size - 1 for size in grid]
    past = lexicographic_past(extents, [size - 1 for size in grid])
    for (n, a), (m, b) in itertools.product(enumerate(itertools.product(*(range(size) for size in grid))), repeat=2):
        index = tuple(y - x + size - 1 for x, y, size in zip(a, b, grid, strict=True))
        assert bool(past[index]) == (m <= n)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: GridPositions(torch.ones(1, 2, 4), (3,)), ValueError, "odd extents.*got \\(4,\\)"),
        (
            lambda: GridPositions(torch.ones(1, 2), (3,)),
            ValueError,
            "1, 2 or 3 extents, got shape \\(1, 2\\)",
        ),
        (lambda: GridPositions(torch.ones(1, 2, 3), (3, 3)), ValueError, "must be 1 non-neg.*got 2: \\(3, 3\\)"),
        (lambda: GridPositions(torch.ones(1, 2, 3, 5), (3,)), ValueError, "must be 2 non-neg.*got 1: \\(3,\\)"),
        (lambda: GridPositions(torch.ones(1, 2, 3, 5), (2.5, 3)), TypeError, "2 non-negative ints.*got \\(2.5, 3\\)"),
        (lambda: GridPositions(torch.ones(1, 2, 3, 5), (True, 3)), TypeError, "got \\(True, 3\\); a size is a whole"),
        (lambda: GridPositions(torch.ones(1, 2, 3, 5), ("3", 3)), TypeError, "got \\('3', 3\\)"),
        (lambda: GridPositions(torch.ones(1, 2, 3, 5), (3, None)), TypeError, "got \\(3, None\\)"),
        (lambda: GridPositions(torch.ones(1, 2, 3, 5), (-1, 3)), ValueError, "got \\(-1, 3\\); pass the shape of"),
        (lambda: GridPositions(torch.ones(1, 2, 3), 3), TypeError, "must be a tuple of 1 non-negative ints.*got 3"),
        (lambda: GridPositions(torch.ones(1, 2, 3), None), TypeError, "must be a tuple of .*got None"),
        (lambda: GridPositions(torch.ones(1, 2, 3).int(), (3,)), TypeError, "floating-point.*torch.int32"),
        (lambda: DensePositions(torch.ones(2, 3, 4)), ValueError, "\\(n, m, k, u\\).*got \\(2, 3, 4\\)"),
        (lambda: EdgePositions([[0], [1]], torch.ones(1, 1, 1)), TypeError, "index must be a torch.Tensor.*got list"),
        (lambda: DensePositions([1.0]), TypeError, "must be a torch.Tensor, got list"),
        (
            lambda: EdgePositions(torch.ones(2, 3), torch.ones(3, 1, 1)),
            TypeError,
            "int64 tensor of shape \\(2, e\\), got torch.float32; use .long\\(\\)",
        ),
        (
            lambda: EdgePositions(torch.ones(3, 2).long(), torch.ones(2, 1, 1)),
            ValueError,
            "rows \\(query, context\\), got \\(3, 2\\)",
        ),
        (
            lambda: EdgePositions(torch.ones(2, 3).long(), torch.ones(4, 1, 1)),
            ValueError,
            "e = 3 edges.*got \\(4, 1, 1\\)",
        ),
    ],
)
def test_bad_positions_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("grid", [(3, 4), [3, 4], torch.Size([3, 4]), np.array([3, 4]), torch.tensor([3, 4])])
def test_a_grid_in_any_form_becomes_ints(grid):
    sizes = GridPositions(torch.ones(1, 2, 3, 5), grid).grid
    assert sizes == (3, 4)
    assert all(type(size) is int for size in sizes)


def test_edges_may_be_known_to_be_in_range():
    """Then nobody reads the index: on the meta device there is nothing to read."""
    with torch.device("meta"):
        positions = EdgePositions(torch.zeros(2, 3).long(), torch.ones(3, 2, 1), in_range=True)
    assert positions.in_range
    assert not EdgePositions(torch.zeros(2, 3).long(), torch.ones(3, 2, 1)).in_range
