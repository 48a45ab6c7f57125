"""The Toeplitz operand of a grid's rows: E between all places of two rows, for each offset of the rows.

Behind the first axis E[x, c] = table[c - x]. With the axes of x in reverse order this is a sliding view of the table,
so that an operand in any layout is one copy of that view.

Axes in names: o offsets along the first axis, x and c places of query and context behind it, k query depth,
u intra-depth.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lambdanets.kernels.folding import Folding
from lambdanets.kernels.problem import GridProblem

__all__ = ["MAX_ELEMENTS", "RowLayout", "RowWindow", "Toeplitz", "check_size", "elements"]

# The operand grows with the square of the positions behind the first axis.
MAX_ELEMENTS = 1 << 24


def elements(problem: GridProblem) -> int:
    """Elements of the operand."""
    rest = math.prod(problem.grid[1:])
    return problem.extents[0] * problem.intra_depth * rest * rest * problem.dim_key


def check_size(problem: GridProblem) -> str | None:
    """Why a kernel with this operand cannot run on ``problem``, or None."""
    count = elements(problem)
    if count > MAX_ELEMENTS:
        return f"its Toeplitz operand would have {count:,} elements, more than {MAX_ELEMENTS:,}"
    return None


@dataclass(frozen=True)
class RowWindow:
    """A row of queries, the rows of the context that it sees and their offsets."""

    row: int
    context: slice
    offsets: slice


class Toeplitz:
    """The operand of one problem, and the way back to the table's gradient.

    Args:
        problem: an image's or a volume's.
    """

    def __init__(self, problem: GridProblem):
        self.rows, self.rest = problem.grid[0], problem.grid[1:]
        self.extents, self.origin = problem.extents, problem.origin
        self.row_size = math.prod(self.rest)
        self.axes = list(range(3, 3 + len(self.rest)))
        sides = reversed(list(zip(self.rest, self.extents[1:], self.origin[1:], strict=True)))
        self.pads = [pad for size, extent, o in sides for pad in (size - 1 - o, size + o - extent)]

    def windows(self) -> Iterator[RowWindow]:
        """Each row of queries with what it sees."""
        for row in range(self.rows):
            low = max(0, row - self.origin[0])
            high = min(self.rows, row + self.extents[0] - self.origin[0])
            first = low - row + self.origin[0]
            yield RowWindow(row, slice(low, high), slice(first, first + high - low))

    def expand(self, table: Tensor, order: str) -> Tensor:
        """The operand, contiguous.

        Args:
            table: (u, k, o, *extents).
            order: its five axes in the order wanted: u, k, o, x for the query's place and c for the context's.
        """
        rank = len(self.rest)
        view = F.pad(table, self.pads)
        for axis, size in zip(self.axes, self.rest, strict=True):
            view = view.unfold(axis, size, 1)
        axes = {"u": [0], "k": [1], "o": [2], "x": [*range(3, 3 + rank)], "c": [*range(3 + rank, 3 + 2 * rank)]}
        permutation = [axis for letter in order for axis in axes[letter]]
        view = view.permute(permutation)
        for axis, size in zip(axes["x"], self.rest, strict=True):
            # The first window belongs to the last place.
            view = view.index_select(permutation.index(axis), torch.arange(size - 1, -1, -1, device=table.device))
        return view.reshape([self.row_size if letter in "xc" else table.shape["uko".index(letter)] for letter in order])

    def collect(self, grad: Tensor) -> Tensor:
        """The table's gradient from that of the operand, (x, k, o, u, c): the sum over places with one offset."""
        lead = grad.shape[1:4]
        offsets = [2 * size - 1 for size in self.rest]
        spread = grad.new_zeros(*self.rest, *lead, *offsets)
        rank, strides = len(self.rest), spread.stride()
        # Place x of the query writes its context from offset -x on: in memory, rows that start one earlier each.
        by_place = [strides[i] - strides[rank + 3 + i] for i in range(rank)]
        start = sum((size - 1) * stride for size, stride in zip(self.rest, strides[rank + 3 :], strict=True))
        window = spread.as_strided(
            (*self.rest, *lead, *self.rest), (*by_place, *strides[rank : rank + 3], *strides[rank + 3 :]), start
        )
        window.copy_(grad.reshape(window.shape))
        table = spread.flatten(0, rank - 1).sum(0).permute(2, 0, 1, *range(3, 3 + rank))
        for axis, size, o, extent in zip(self.axes, self.rest, self.origin[1:], self.extents[1:], strict=True):
            table = table.narrow(axis, size - 1 - o, extent)
        return table


class RowLayout:
    """Sizes of one call that goes through row by row.

    Args:
        problem: the call's problem.
        one_row: whether all positions make one row.
    """

    def __init__(self, problem: GridProblem, one_row: bool = False):
        self.batch, self.heads = problem.batch, problem.heads
        self.dim_key, self.dim_value, self.intra_depth = problem.dim_key, problem.dim_value, problem.intra_depth
        self.folding = Folding(problem, one_row)
        self.toeplitz = Toeplitz(self.folding.image)
        self.rows, self.row_size = self.toeplitz.rows, self.toeplitz.row_size
