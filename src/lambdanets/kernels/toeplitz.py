"""The Toeplitz operand of a grid's rows: E between all places of two rows, for each offset of the rows.

Behind the first axis E[x, x'] = table[x' - x]. With the axes of x' in reverse order this is a sliding view of the
(reversed) table, so that an operand in any layout is one copy of that view.

Axes in names: o offsets along the first axis, x and x' places of query and context behind it, k query depth,
u intra-depth.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from lambdanets.kernels.problem import GridProblem

__all__ = ["MAX_ELEMENTS", "RowWindow", "Toeplitz", "check_size", "elements"]

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

    def expand(self, table: Tensor) -> Tensor:
        """The operand as a view, (u, k, o, x, x') with x' in reverse; x and x' flattened, which may copy."""
        view = F.pad(table, self.pads).flip(self.axes)
        for axis, size in zip(self.axes, self.rest, strict=True):
            view = view.unfold(axis, size, 1)
        split = 3 + len(self.rest)
        return view.flatten(split).flatten(3, split - 1)

    def collect(self, piece: Callable[[int], Tensor]) -> Tensor:
        """The table's gradient from that of the operand.

        Args:
            piece: gives the operand's gradient at place x, (u, k, o, x') with x' in reverse.
        """
        padded: Tensor | None = None
        for index, place in enumerate(itertools.product(*(range(size) for size in self.rest))):
            part = piece(index)
            part = part.reshape(*part.shape[:3], *self.rest)
            if padded is None:
                padded = part.new_zeros(*part.shape[:3], *(2 * size - 1 for size in self.rest))
            window: Any = (..., *(slice(x, x + size) for x, size in zip(place, self.rest, strict=True)))
            padded[window] += part
        if padded is None:
            raise ValueError("the grid must have at least one position in a row")
        padded = padded.flip(self.axes)
        for axis, size, o, extent in zip(self.axes, self.rest, self.origin[1:], self.extents[1:], strict=True):
            padded = padded.narrow(axis, size - 1 - o, extent)
        return padded

    def reverse(self, rows: Tensor, first: int) -> Tensor:
        """Reverse the axes behind the first of the grid, which is axis ``first - 1``."""
        return rows.flip(list(range(first, first + len(self.rest))))
