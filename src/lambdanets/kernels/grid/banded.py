"""Query first in a local context: the rows of the grid are cut into tiles, whose scores are banded matrices.

A tile of t neighbouring queries along the last axis sees a window of t + r - 1 context places on each of the context
rows around it. For the query at place x of its tile the scores with the whole window are one product with the table,
shifted by x and filled up with zeros:

    S[x, (rows, t + r - 1)] = q_x · band_x,     band_x[:, rows, j] = table[:, rows, j - x].

So S is made by t matrix products for many tiles at once and y = S · V by one batched product with the windows of V.
V is copied once into strips, t + r - 1 wide, one for each column of tiles, and the strips stand below each other with
as many rows of zeros between them as the table reaches over. Then the windows of all tiles overlap and stand one row
apart in memory: a batched product reads them where they are, for any number of tiles, without an index. The rows of
zeros are lines without queries; their part in the work is small where a scope is. Backward makes S again and writes it
in the order of the rows of the strips: the tiles that see a row overlap and stand one tile apart in memory as well, so
that the gradient of a row is one product too, over all of them. ``strips.py`` has the layouts in memory, with a worked
example.

Multiply-adds: b·h·n·c·(k + v) with c = u · rows · (t + r - 1) window places, and the same for the rows of zeros; kept
for backward: the inputs.

Axes in names: s strips (of all examples), l lines (rows of all strips, those of zeros too), x place in the tile,
r rows of the strips that a block of lines reads, a places of one row of a strip's window (with u), c those of all rows,
b batch, h heads, k query depth, v value depth, u intra-depth.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from lambdanets.kernels.autograd.layout import empty_in_order
from lambdanets.kernels.autograd.memory import Workspace, front_of
from lambdanets.kernels.grid.contract import Gradients, GridInputs, GridKernel, GridProblem, Work
from lambdanets.kernels.grid.strips import Bands, Sizes, Strips, Tiles
from lambdanets.kernels.slices import slices

__all__ = ["KERNEL"]

# Elements that the scores of a block may have: a few times that stays in the last cache, and calls are few.
BLOCK_ELEMENTS = 1 << 19
# Elements of V's strips that the examples of one step may have.
STRIP_ELEMENTS = 1 << 20


def check(problem: GridProblem) -> str | None:
    """Return the reason why this kernel cannot run on ``problem``, or None."""
    if problem.sees_all_before and problem.num_positions > 1:
        return "it is for local contexts, and here the table has all offsets"
    return None


class _BandedLayout:
    """Sizes of one call, and the forms of its tensors."""

    def __init__(self, problem: GridProblem):
        self.sizes = Sizes(problem)
        self.bands, self.tiles, self.strips = Bands(self.sizes), Tiles(self.sizes), Strips(self.sizes)

    def blocks(self) -> Iterator[slice]:
        """All lines, some at a time."""
        lines = self.sizes.lines
        each = self.sizes.places * self.sizes.heads * self.sizes.tile
        # Even ones: the last is as large as the others.
        count = math.ceil(lines * each / BLOCK_ELEMENTS)
        return slices(lines, math.ceil(lines / min(count, lines)))


# Geometry alone, so calls of one shape share it.
_layout = functools.lru_cache(maxsize=256)(_BandedLayout)


@functools.lru_cache(maxsize=1024)
def _examples(problem: GridProblem) -> int:
    """Number of examples that are computed at a time."""
    sizes = _layout(replace(problem, batch=1)).sizes
    return max(1, min(problem.batch, STRIP_ELEMENTS // (sizes.lines * sizes.row_places * sizes.dim_value)))


def work(problem: GridProblem, backward: bool) -> Work:
    """Multiply-adds, elements of S and of V's strips, and calls."""
    sizes = _layout(problem).sizes
    scores = sizes.lines * sizes.heads * sizes.tile * sizes.places
    strips = sizes.lines * sizes.row_places * sizes.dim_value
    parts = math.ceil(problem.batch / _examples(problem))
    blocks = max(parts, math.ceil(scores / BLOCK_ELEMENTS))
    both = problem.dim_key + problem.dim_value
    if backward:
        calls = 10 + parts * 40 + blocks * 16
        return Work(scores * (2 * both + problem.dim_key), 5 * scores + 5 * strips, calls)
    return Work(scores * both, 2 * scores + 2 * strips, 8 + parts * 16 + blocks * 8)


class _BandedScores:
    """S of one block after the other, in scratch buffers that all of them share."""

    def __init__(self, layout: _BandedLayout, like: Tensor, workspace: Workspace, backward: bool):
        self.sizes = sizes = layout.sizes
        self.lines = max(block.stop - block.start for block in layout.blocks())
        each = sizes.heads * sizes.tile * sizes.places
        scratch = workspace.scratch
        self.by_place, self.by_tile = scratch(like, self.lines * each), scratch(like, self.lines * each)
        # Zeros for the slots that no line of the block writes: lines outside of it that read one of its rows.
        self.by_row = scratch(like, (self.lines + sizes.row_extent - 1) * each if backward else 0).zero_()

    def make(self, queries: Tensor, bands: Tensor) -> Tensor:
        """(l, h x, c) from queries (l, h, x, k) and bands (x, k, c)."""
        by_tile = self._of_tiles(len(queries))
        by_tile.copy_(self._make(queries, bands).transpose(0, 1))
        return by_tile.view(len(queries), -1, self.sizes.places)

    def make_by_row(self, queries: Tensor, bands: Tensor) -> Tensor:
        """S by the rows of the strips, (rows, R h x, a): each row with the R lines that read it in their order.

        Line l reads its o-th row at row l + o, where it has the slot R - 1 - o (see the example in ``strips.py``).
        """
        lines, sizes = len(queries), self.sizes
        if lines < self.lines:
            self.by_row.zero_()
        places, extent = sizes.row_places, sizes.row_extent
        line = sizes.heads * sizes.tile * places
        shape = (sizes.tile, lines, sizes.heads, extent, places)  # (x, l, h, o, a)
        stride = (places, extent * line, sizes.tile * places, (extent - 1) * line, 1)
        target = self.by_row[(extent - 1) * line :].as_strided(shape, stride)
        target.copy_(self._make(queries, bands).view(shape))
        return front_of(self.by_row, (lines + extent - 1, extent * line // places, places))

    def make_gradient(self, grad_lav: Tensor, windows_lcv: Tensor) -> Tensor:
        """(x, l h, c) from the gradient, (l, h x, v), and windows; S by place is overwritten."""
        by_tile = self._of_tiles(len(windows_lcv))
        torch.bmm(grad_lav, windows_lcv.transpose(1, 2), out=by_tile.view(*grad_lav.shape[:2], -1))
        return self._of_places(len(windows_lcv)).copy_(by_tile.transpose(0, 1))

    def _make(self, queries: Tensor, bands: Tensor) -> Tensor:
        by_place = self._of_places(len(queries))
        return torch.bmm(queries.flatten(0, 1).transpose(0, 1), bands, out=by_place)

    def _of_places(self, lines: int) -> Tensor:
        return front_of(self.by_place, (self.sizes.tile, lines * self.sizes.heads, self.sizes.places))

    def _of_tiles(self, lines: int) -> Tensor:
        return front_of(self.by_tile, (lines * self.sizes.heads, self.sizes.tile, self.sizes.places))


def forward(inputs: GridInputs, workspace: Workspace) -> Tensor:
    """Forward pass, as in ``contract.py``."""
    problem = inputs.problem
    out, bands = empty_in_order(inputs.query, problem.dim_value), _layout(problem).bands.make(inputs.table, workspace)
    for part, some in inputs.parts(_examples(problem)):
        with workspace:
            _forward_into(out[part], some, bands, workspace)
    return out


def _forward_into(out: Tensor, inputs: GridInputs, bands: Tensor, workspace: Workspace) -> None:
    layout = _layout(inputs.problem)
    sizes = layout.sizes
    queries, strips = layout.tiles.make(inputs.query, workspace), layout.strips.make(inputs.value, workspace)
    out_lav = workspace.scratch(inputs.value, sizes.lines, sizes.heads * sizes.tile, sizes.dim_value)
    scores = _BandedScores(layout, inputs.value, workspace, backward=False)
    for block in layout.blocks():
        torch.bmm(scores.make(queries[block], bands), layout.strips.windows(strips, block), out=out_lav[block])
    layout.tiles.undo(out_lav, out)


def backward(grad: Tensor, inputs: GridInputs, workspace: Workspace) -> Gradients:
    """Backward pass, as in ``contract.py``."""
    problem, query, value = inputs.problem, inputs.query, inputs.value
    layout = _layout(problem)
    grad_query, grad_value = empty_in_order(query, problem.dim_key), empty_in_order(value, problem.dim_value)
    bands = layout.bands.make(inputs.table, workspace)
    grad_bands = workspace.scratch(bands, *bands.shape).zero_()
    for part, some in inputs.parts(_examples(problem)):
        grads = grad_query[part], grad_value[part], grad_bands
        with workspace:
            _gradients_into(grads, grad[part], some, bands, workspace)
    return grad_query, grad_value, layout.bands.gradient(grad_bands).reshape(inputs.table.shape), None


def _gradients_into(
    grads: tuple[Tensor, Tensor, Tensor], grad: Tensor, inputs: GridInputs, bands: Tensor, workspace: Workspace
) -> None:
    """Write the gradients of query and value, and add that of the bands."""
    grad_query, grad_value, grad_bands = grads
    layout, value = _layout(inputs.problem), inputs.value
    margin = layout.sizes.row_extent - 1
    queries, strips = layout.tiles.make(inputs.query, workspace), layout.strips.make(value, workspace)
    with_margin = layout.tiles.make(grad, workspace, margin=margin)
    grad_tiles = with_margin[margin:].flatten(1, 2)
    grad_queries = workspace.scratch(queries, *queries.shape)
    grad_strips = layout.strips.empty(value, workspace).zero_()
    scores = _BandedScores(layout, value, workspace, backward=True)
    for block in layout.blocks():
        query_lhxk, grad_lav = queries[block], grad_tiles[block]
        scores_rca = scores.make_by_row(query_lhxk, bands)
        rows = slice(block.start, block.stop + margin)
        grad_strips[rows].baddbmm_(scores_rca.transpose(1, 2), layout.tiles.seen_from(with_margin, block))
        grad_xac = scores.make_gradient(grad_lav, layout.strips.windows(strips, block))
        by_place = torch.bmm(grad_xac, bands.transpose(1, 2))
        grad_queries[block].flatten(0, 1).copy_(by_place.transpose(0, 1))
        grad_bands.baddbmm_(query_lhxk.flatten(0, 1).permute(1, 2, 0), grad_xac)
    layout.tiles.undo(grad_queries, grad_query)
    layout.strips.gradient(grad_strips, grad_value, workspace)


KERNEL = GridKernel("banded", forward, backward, check, work, spreads_nonfinite_entries=True)
