"""The Toeplitz operand of query first: E between all places of two rows of a grid, for each offset of the rows.

Along the axes after the first E[x, c] = table[c - x]. The operand is the table's entries, vectors of depth k, picked by
an index that depends on the shape alone; the table's gradient adds up what was picked from the same entry.

Axes in names: u intra-depth, o offsets along the first axis, x and c places of query and context along the others,
k query depth.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lambdanets.kernels.autograd.memory import Workspace
from lambdanets.kernels.grid.contract import GridProblem

__all__ = ["Toeplitz", "elements"]

# Vectors of an operand up to which its index is kept: 8 MiB for the index and its inverse.
KEPT_VECTORS = 1 << 20


def elements(problem: GridProblem) -> int:
    """Elements of the operand."""
    rest = math.prod(problem.grid[1:])
    return problem.extents[0] * problem.intra_depth * rest * rest * problem.dim_key


@dataclass(frozen=True)
class _Entries:
    """Index of the operand's vectors in the table, and the places in the operand of each entry of the table.

    Args:
        index: of the entry, one for each vector of the operand.
        places: vectors of the operand, those of one entry together.
        starts: where the places of each entry start.
    """

    index: Tensor
    places: Tensor
    starts: Tensor


class Toeplitz:
    """The operand of one problem, and the way back to the table's gradient.

    Args:
        problem: an image's or a volume's.
    """

    def __init__(self, problem: GridProblem):
        self.rest = problem.grid[1:]
        self.extents, self.origin = problem.extents, problem.origin
        row_size = math.prod(self.rest)
        self.shape = (row_size, self.extents[0], problem.intra_depth, row_size)
        # The table's shape when it is padded to all offsets that two places of the grid can have.
        self.table_shape = (problem.intra_depth, self.extents[0], *(2 * size - 1 for size in self.rest))
        sides = reversed(list(zip(self.rest, self.extents[1:], self.origin[1:], strict=True)))
        self.pads = [pad for size, extent, o in sides for pad in (size - 1 - o, size + o - extent)]

    def expand(self, table: Tensor, workspace: Workspace) -> Tensor:
        """The operand of a table (u, k, o, *extents) in scratch memory, (x, o, u, c, k)."""
        entries = table.movedim(1, -1)
        if any(self.pads):
            entries = F.pad(entries, [0, 0, *self.pads])
        k = table.shape[1]
        entries = entries.reshape(-1, k).contiguous()  # vectors side by side are picked ten times faster
        out, index = workspace.scratch(table, *self.shape, k), self._entries(table.device).index
        torch.index_select(entries, 0, index, out=out.view(-1, k))
        return out

    def collect(self, grad: Tensor) -> Tensor:
        """The table's gradient, (u, k, o, *extents), from that of the operand."""
        entries = self._entries(grad.device)
        # A sum for each entry over the vectors picked from it, in a fixed order.
        sums = F.embedding_bag(entries.places, grad.reshape(-1, grad.shape[-1]), entries.starts, mode="sum")
        table = sums.view(*self.table_shape, -1)
        for axis, (size, o, extent) in enumerate(zip(self.rest, self.origin[1:], self.extents[1:], strict=True), 2):
            table = table.narrow(axis, size - 1 - o, extent)
        return table.movedim(-1, 1)

    def _entries(self, device: torch.device) -> _Entries:
        # On a GPU what is kept would belong to one stream, or to the graph that is being captured.
        is_kept = device.type == "cpu" and math.prod(self.shape) <= KEPT_VECTORS
        make = _entries if is_kept else _entries.__wrapped__  # the function without its cache
        return make(self.table_shape[0], self.extents[0], self.rest, device)


# Of what the index depends on alone: calls of all batch sizes, widths and dtypes share it.
@functools.lru_cache(maxsize=16)
@torch.inference_mode(mode=False)
def _entries(intra_depth: int, extent: int, rest: tuple[int, ...], device: torch.device) -> _Entries:
    """The index of an operand, made on its device without waiting for it.

    Args:
        intra_depth: u.
        extent: offsets along the first axis.
        rest: sizes of the other axes of the grid.
        device: of the operand.
    """
    by_row = torch.arange(intra_depth * extent, device=device).view(intra_depth, extent, 1, 1)
    by_place = torch.zeros(1, 1, dtype=torch.int64, device=device)
    places = torch.unravel_index(torch.arange(math.prod(rest), device=device), rest)
    for place, size in zip(places, rest, strict=True):
        by_place = by_place * (2 * size - 1) + (place - place[:, None] + size - 1)
    each = math.prod(2 * size - 1 for size in rest)
    index = (by_row * each + by_place).permute(2, 1, 0, 3).flatten()
    ordered, order_of = index.sort(stable=True)
    starts = torch.searchsorted(ordered, torch.arange(intra_depth * extent * each, device=device))
    return _Entries(index.int(), order_of.int(), starts.int())
