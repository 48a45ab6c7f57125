"""Grids brought into the form that a kernel works on.

**A sequence as an image**: position i stands in row i // W and column i % W, so that kernels for images serve it.
The offset of two positions is then Δy·W + Δx, so the image's table is t[Δy·W + Δx]: each of its rows is a window of
the sequence's table, W further on than the row before. Positions that fill up the last row have zero queries and
values. Images and volumes pass as they are.

**A small grid as one row**: a grid (1, ...) whose only row has all positions, so that one step does them all.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor

from lambdanets.kernels.grid.contract import GridProblem

__all__ = ["Folding", "fold", "in_one_row"]


def in_one_row(problem: GridProblem) -> GridProblem:
    """The same problem on a grid whose first axis has one position."""
    return replace(problem, grid=(1, *problem.grid), extents=(1, *problem.extents), origin=(0, *problem.origin))


def fold(problem: GridProblem) -> GridProblem:
    """The problem of the image that a sequence is folded into; another problem is returned as it is."""
    if len(problem.grid) > 1:
        return problem
    (n,), (extent,), (origin,) = problem.grid, problem.extents, problem.origin
    columns = max(1, math.isqrt(n))
    rows = math.ceil(n / columns)
    before = min(math.ceil(origin / columns), rows - 1)
    after = min(math.ceil((extent - 1 - origin) / columns), rows - 1)
    return replace(
        problem,
        grid=(rows, columns),
        extents=(before + 1 + after, 2 * columns - 1),
        origin=(before, columns - 1),
    )


class Folding:
    """Bring the tensors of one call to the folded grid and back.

    Args:
        problem: the call's problem.
        one_row: put all positions into one row instead.
    """

    def __init__(self, problem: GridProblem, one_row: bool = False):
        self.image = in_one_row(problem) if one_row else fold(problem)
        self.num_positions = problem.num_positions
        self.one_row = one_row
        self.is_sequence = len(problem.grid) == 1 and not one_row
        if self.is_sequence:
            (extent,), (origin,) = problem.extents, problem.origin
            (before, reach), columns = self.image.origin, self.image.grid[1]
            after = self.image.extents[0] - 1 - before
            # Zeros before and after the sequence's table; negative: it is cut.
            self.pads = (before * columns + reach - origin, after * columns + reach - (extent - 1 - origin))

    def padded(self, tensor: Tensor) -> Tensor:
        """(b, c, n, depth) -> (b, c, all positions, depth)."""
        pad = self.image.num_positions - self.num_positions
        return F.pad(tensor, [0, 0, 0, pad]) if pad else tensor

    def rows(self, tensor: Tensor) -> Tensor:
        """(b, c, n, depth) -> (b, c, *grid, depth)."""
        return self.padded(tensor).unflatten(2, self.image.grid)

    def cut(self, tensor: Tensor) -> Tensor:
        """(b, c, all positions, depth) -> (b, c, n, depth)."""
        return tensor[:, :, : self.num_positions]

    def table(self, table: Tensor) -> Tensor:
        """The image's table, (u, k, *extents)."""
        if self.one_row:
            return table.unsqueeze(2)
        if not self.is_sequence:
            return table
        return F.pad(table, self.pads).unfold(2, self.image.extents[1], self.image.grid[1])

    def table_gradient(self, grad: Tensor) -> Tensor:
        """Undo :meth:`table`: add up what came from the same offset."""
        if self.one_row:
            return grad.squeeze(2)
        if not self.is_sequence:
            return grad
        # Each row covers 2W - 1 offsets and starts W after the one before: two layers of pieces without overlap.
        rows, width = grad.shape[2], self.image.grid[1]
        line = grad.new_zeros(*grad.shape[:2], (rows + 1) * width)
        line[..., : rows * width] += grad[..., :width].flatten(2)
        line[..., width:].unflatten(2, (rows, width))[..., : width - 1] += grad[..., width:]
        return F.pad(line[..., :-1], [-pad for pad in self.pads])
