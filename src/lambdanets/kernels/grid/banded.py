"""Query first in a local context: the rows of the grid are cut into tiles, whose scores are banded matrices.

A tile of T neighbouring queries along the last axis sees a window of T + r - 1 context places on each of the context
rows around it. For the query at place x of its tile the scores with the whole window are one product with the table,
shifted by x and filled up with zeros:

    S[x, (rows, T + r - 1)] = q_x · band_x,     band_x[:, rows, j] = table[:, rows, j - x].

So S is made by T matrix products for many tiles at once and y = S · V by one batched product with the windows of V.
V is copied once into strips, T + r - 1 wide, one for each column of tiles, and the strips stand below each other with
as many rows of zeros between them as the table reaches over. Then the windows of all tiles overlap and stand one row
apart in memory: a batched product reads them where they are, for any number of tiles. Nothing is indexed or scattered.
The rows of zeros are tiles too, without queries; their part in the work is small where a scope is. Backward recomputes
S and lays it down as the rows of the strips see it: the tiles that see a row overlap and stand one tile apart in
memory as well, so that the gradient of a row is one product too, over all of them.

Multiply-adds: b·h·n·c·(k + v) with c = u · rows · (T + r - 1) window places, and the same for the rows of zeros; kept
for backward: the inputs.

Axes in names: s strips (of all examples), l lines (rows of all strips, those of zeros too), x place in the tile,
a places of one row of a strip's window (with u), c those of all rows, b batch, h heads, k query depth, v value depth,
u intra-depth.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from lambdanets.kernels.autograd.memory import Workspace, empty_in_order, room
from lambdanets.kernels.grid.contract import GridKernel, GridProblem, Work, in_parts
from lambdanets.kernels.slices import slices

__all__ = ["KERNEL"]

# Elements that the scores of a block may have: a few times that stays in the last cache, and calls are few.
BLOCK_ELEMENTS = 1 << 19
# Elements of V's strips that the examples of one step may have.
STRIP_ELEMENTS = 1 << 20


def tile_width(width: int, extent: int) -> int:
    """T: wide tiles multiply more zeros, narrow ones make small products; even tiles waste no queries."""
    wanted = 2 if extent <= 7 else 4 if extent <= 15 else 8
    return math.ceil(width / math.ceil(width / wanted))


def check(problem: GridProblem) -> str | None:
    """Why this kernel cannot run on ``problem``, or None."""
    if problem.sees_all_before and problem.num_positions > 1:
        return "it is for local contexts, and here every position reaches every other"
    return None


class _Layout:
    """Tiles, strips and lines of one call. A sequence is a grid of one row."""

    def __init__(self, problem: GridProblem):
        self.batch, self.heads, self.intra_depth = problem.batch, problem.heads, problem.intra_depth
        self.dim_key, self.dim_value = problem.dim_key, problem.dim_value
        grid, origin, extents = list(problem.grid), list(problem.origin), list(problem.extents)
        if len(grid) == 1:
            grid, origin, extents = [1, *grid], [0, *origin], [1, *extents]
        *self.leads, self.rows, self.width = grid
        *self.lead_extents, self.row_extent, self.extent = extents
        self.origin = origin
        self.tile = tile_width(self.width, self.extent)
        self.tiles = math.ceil(self.width / self.tile)
        self.window = self.tile + self.extent - 1
        self.row_places = math.prod(self.lead_extents) * self.intra_depth * self.window
        self.strips = self.batch * math.prod(self.leads) * self.tiles
        self.above = origin[-2]
        # From a strip to the next, with the zeros that its last rows and the next one's first rows see.
        self.stride = self.rows + max(self.above, self.row_extent - 1 - self.above)
        self.lines = self.strips * self.stride
        self.pads = [0, 0]
        for axis in reversed(range(len(grid))):
            behind = extents[axis] - 1 - origin[axis]
            last = self.tiles * self.tile - self.width if axis == len(grid) - 1 else 0
            self.pads += [0, 0] if axis == len(grid) - 2 else [origin[axis], behind + last]
        self.places = self.row_extent * self.row_places

    def blocks(self) -> Iterator[slice]:
        """All lines, some at a time."""
        each = self.places * self.heads * self.tile
        # Even ones: the last is as large as the others.
        count = math.ceil(self.lines * each / BLOCK_ELEMENTS)
        return slices(self.lines, math.ceil(self.lines / min(count, self.lines)))

    def bands(self, table: Tensor, workspace: Workspace) -> Tensor:
        """band_x for each place of a tile, (x, k, c)."""
        source = table.view(self.intra_depth, self.dim_key, *self.lead_extents, self.row_extent, self.extent)
        bands = workspace.scratch(table, self.tile, self.dim_key, self.row_extent, self.row_places).zero_()
        self._shifted(bands).copy_(source.permute(1, -2, *range(2, source.ndim - 2), 0, -1))
        return bands.flatten(2)

    def bands_gradient(self, grad: Tensor) -> Tensor:
        """Undo :meth:`bands`: (u, k, *extents)."""
        table = self._shifted(grad.unflatten(2, (self.row_extent, self.row_places))).sum(
            0
        )  # (k, rows, *leads, u, extent)
        last = table.ndim - 1
        return table.permute(last - 1, 0, *range(2, last - 1), 1, last)

    def _shifted(self, bands: Tensor) -> Tensor:
        """The table's places in the bands, (x, k, rows, *leads, u, extent): x further on in band x."""
        view = bands.view(*bands.shape[:3], *self.lead_extents, self.intra_depth, self.window)
        stride = view.stride()
        return view.as_strided((*view.shape[:-1], self.extent), (stride[0] + 1, *stride[1:]))

    def to_tiles(self, tensor: Tensor, workspace: Workspace, margin: int = 0) -> Tensor:
        """(b, h, n, depth) -> (l, h, x, depth), zero in the last tile's rest, between strips and in a margin of l."""
        depth = tensor.shape[-1]
        tensor = tensor.reshape(self.batch, self.heads, -1, self.rows, self.width, depth)
        out = workspace.scratch(tensor, self.lines + 2 * margin, self.heads, self.tile, depth).zero_()
        lines = out.narrow(0, margin, self.lines).unflatten(0, (self.batch, -1, self.tiles, self.stride))
        self._copy_tiles(tensor, lines.permute(0, 4, 1, 3, 2, 5, 6)[:, :, :, : self.rows], to_tiles=True)
        return out

    def _copy_tiles(self, grid: Tensor, tiles: Tensor, to_tiles: bool) -> None:
        """Copy (b, h, leads, y, columns, depth) to (b, h, leads, y, tiles, x, depth), or back without ``to_tiles``."""
        full = self.width // self.tile * self.tile
        pairs = [(grid[..., :full, :].unflatten(4, (-1, self.tile)), tiles[..., : full // self.tile, :, :])]
        if full < self.width:
            pairs.append((grid[..., full:, :], tiles[..., -1, : self.width - full, :]))
        for in_grid, in_tiles in pairs:
            if to_tiles:
                in_tiles.copy_(in_grid)
            else:
                in_grid.copy_(in_tiles)

    def from_tiles(self, tensor: Tensor, out: Tensor) -> None:
        """Undo :meth:`to_tiles`, into (b, h, n, depth)."""
        tensor = tensor.view(self.batch, -1, self.tiles, self.stride, self.heads, self.tile, out.shape[-1])
        grid = out.unflatten(2, (-1, self.rows, self.width))
        self._copy_tiles(grid, tensor.permute(0, 4, 1, 3, 2, 5, 6)[:, :, :, : self.rows], to_tiles=False)

    def to_strips(self, value: Tensor, workspace: Workspace) -> Tensor:
        """(b, u, n, v) -> (rows, a, v): those of :meth:`inside` and the zeros around them."""
        view = value.reshape(*value.shape[:2], *self.leads, self.rows, self.width, self.dim_value)
        view = workspace.padded(view, self.pads)
        for axis, extent in enumerate(self.lead_extents, start=2):
            view = view.unfold(axis, extent, 1)
        rank = len(self.leads)
        view = view.unfold(3 + rank, self.window, self.tile)
        # (b, u, *leads, rows, tiles, v, *lead extents, window) -> (b, *leads, tiles, rows, *lead extents, u, window, v)
        leads, lead_extents = range(2, 2 + rank), range(5 + rank, 5 + 2 * rank)
        view = view.permute(0, *leads, 3 + rank, 2 + rank, *lead_extents, 1, -1, 4 + rank)
        strips = self.empty_strips(value, workspace)
        self.inside(strips).copy_(view)
        below = self.above + self.lines
        strips[: self.above] = 0
        strips[self.above : below].unflatten(0, (self.strips, self.stride))[:, self.rows :] = 0
        strips[below:] = 0
        return strips

    def empty_strips(self, like: Tensor, workspace: Workspace) -> Tensor:
        """(rows, a, v), uninitialised: as many rows as all windows need."""
        return workspace.scratch(like, self.lines - 1 + self.row_extent, self.row_places, self.dim_value)

    def inside(self, strips: Tensor) -> Tensor:
        """The rows of the grid in the strips, (b, *leads, tiles, rows, *lead extents, u, window, v): a view."""
        shape = (self.strips, self.rows, self.row_places, self.dim_value)
        row = self.row_places * self.dim_value
        rows = strips[self.above :].as_strided(shape, (self.stride * row, row, self.dim_value, 1))
        places = rows.unflatten(2, (*self.lead_extents, self.intra_depth, self.window))
        return places.unflatten(0, (self.batch, *self.leads, self.tiles))

    def strips_gradient(self, grad: Tensor, out: Tensor, workspace: Workspace) -> None:
        """Undo :meth:`to_strips`, into (b, u, n, v): tiles overlap, so one tile's width of all windows at a time."""
        rank = len(self.leads)
        # (b, *lead extents, u, *leads, rows, tiles, window, v)
        order = [0, *range(rank + 3, 2 * rank + 3), 2 * rank + 3, *range(1, rank + 1), rank + 2, rank + 1]
        grad = self.inside(grad).permute(*order, -2, -1)
        pieces = math.ceil(self.window / self.tile)
        padded_leads = [size + extent - 1 for size, extent in zip(self.leads, self.lead_extents, strict=True)]
        columns = self.tiles + pieces - 1
        shape = (self.batch, self.intra_depth, *padded_leads, grad.shape[-4], columns, self.tile, self.dim_value)
        total = workspace.scratch(grad, *shape).zero_()
        for offsets in itertools.product(*(range(extent) for extent in self.lead_extents)):
            target, source = total, grad
            for axis, (o, size) in enumerate(zip(offsets, self.leads, strict=True), start=2):
                target, source = target.narrow(axis, o, size), source.select(1, o)
            for piece in range(pieces):
                part = source[..., piece * self.tile : (piece + 1) * self.tile, :]
                target[..., piece : piece + self.tiles, : part.shape[-2], :] += part
        total = total.flatten(-3, -2)
        starts, sizes = [*self.origin[:-2], 0, self.origin[-1]], [*self.leads, self.rows, self.width]
        for axis, (start, size) in enumerate(zip(starts, sizes, strict=True), 2):
            total = total.narrow(axis, start, size)
        out.unflatten(2, sizes).copy_(total)

    def windows(self, strips: Tensor, block: slice) -> Tensor:
        """Windows of V of some lines, (l, c, v), one row apart: a view."""
        shape = (block.stop - block.start, self.places, self.dim_value)
        return strips[block.start :].as_strided(shape, (self.row_places * self.dim_value, self.dim_value, 1))

    def seen_from(self, tiles: Tensor, block: slice) -> Tensor:
        """The lines that see each row of the strips, of those that a block sees: (rows, R h x, depth), a view.

        Args:
            tiles: of :meth:`to_tiles` with a margin of R - 1 lines.
            block: some lines.
        """
        rows, depth = block.stop - block.start + self.row_extent - 1, tiles.shape[-1]
        line = self.heads * self.tile * depth
        return tiles[block.start :].as_strided((rows, self.row_extent * line // depth, depth), (line, depth, 1))


@functools.lru_cache(maxsize=1024)
def _examples(problem: GridProblem) -> int:
    """Number of examples that are computed at a time."""
    layout = _layout(replace(problem, batch=1))
    return max(1, min(problem.batch, STRIP_ELEMENTS // (layout.lines * layout.row_places * layout.dim_value)))


# Geometry alone, so calls of one shape share it.
_layout = functools.lru_cache(maxsize=256)(_Layout)


def work(problem: GridProblem, backward: bool) -> Work:
    """Multiply-adds, elements of S and of V's strips, and calls."""
    layout = _layout(problem)
    scores = layout.lines * layout.heads * layout.tile * layout.places
    strips = layout.lines * layout.row_places * layout.dim_value
    parts = math.ceil(problem.batch / _examples(problem))
    blocks = max(parts, math.ceil(scores / BLOCK_ELEMENTS))
    both = problem.dim_key + problem.dim_value
    if backward:
        calls = 10 + parts * 40 + blocks * 16
        return Work(scores * (2 * both + problem.dim_key), 5 * scores + 5 * strips, calls)
    return Work(scores * both, 2 * scores + 2 * strips, 8 + parts * 16 + blocks * 8)


class _Scores:
    """S of one block after the other, in memory that all of them share."""

    def __init__(self, layout: _Layout, like: Tensor, workspace: Workspace, backward: bool):
        self.layout = layout
        self.lines = max(block.stop - block.start for block in layout.blocks())
        each = layout.heads * layout.tile * layout.places
        scratch = workspace.scratch
        self.by_place, self.by_tile = scratch(like, self.lines * each), scratch(like, self.lines * each)
        # What none of the lines writes, those that see a row and are outside of the block, stays zero.
        self.by_row = scratch(like, (self.lines + layout.row_extent - 1) * each if backward else 0).zero_()

    def make(self, queries: Tensor, bands: Tensor) -> Tensor:
        """(l, h x, c) from queries (l, h, x, k) and bands (x, k, c)."""
        by_tile = self._of_tiles(len(queries))
        by_tile.copy_(self._make(queries, bands).transpose(0, 1))
        return by_tile.view(len(queries), -1, self.layout.places)

    def make_by_row(self, queries: Tensor, bands: Tensor) -> Tensor:
        """S by the rows of the strips, (rows, R h x, a): each row with the R lines that see it, its own the last."""
        lines, layout = len(queries), self.layout
        if lines < self.lines:
            self.by_row.zero_()
        places, extent = layout.row_places, layout.row_extent
        line = layout.heads * layout.tile * places
        # (x, l, h, R, a): each row that a line sees is one further on, and has the line one further ahead among its R.
        shape = (layout.tile, lines, layout.heads, extent, places)
        stride = (places, extent * line, layout.tile * places, (extent - 1) * line, 1)
        target = self.by_row[(extent - 1) * line :].as_strided(shape, stride)
        target.copy_(self._make(queries, bands).view(shape))
        return room(self.by_row, (lines + extent - 1, extent * line // places, places))

    def make_gradient(self, grad_lav: Tensor, windows_lcv: Tensor) -> Tensor:
        """(x, l h, c) from the gradient, (l, h x, v), and windows; S by place is overwritten."""
        by_tile = self._of_tiles(len(windows_lcv))
        torch.bmm(grad_lav, windows_lcv.transpose(1, 2), out=by_tile.view(*grad_lav.shape[:2], -1))
        return self._of_places(len(windows_lcv)).copy_(by_tile.transpose(0, 1))

    def _make(self, queries: Tensor, bands: Tensor) -> Tensor:
        by_place = self._of_places(len(queries))
        return torch.bmm(queries.flatten(0, 1).transpose(0, 1), bands, out=by_place)

    def _of_places(self, lines: int) -> Tensor:
        return room(self.by_place, (self.layout.tile, lines * self.layout.heads, self.layout.places))

    def _of_tiles(self, lines: int) -> Tensor:
        return room(self.by_tile, (lines * self.layout.heads, self.layout.tile, self.layout.places))


def forward(
    query: Tensor,
    value: Tensor,
    table: Tensor,
    problem: GridProblem,
    workspace: Workspace,
    content: Tensor | None = None,
) -> Tensor:
    """Forward pass, as in ``contract.py``."""
    out, bands = empty_in_order(query, problem.dim_value), _layout(problem).bands(table, workspace)
    for part, some in in_parts(problem, _examples(problem)):
        with workspace:
            _forward_into(out[part], query[part], value[part], bands, _layout(some), workspace)
    return out


def _forward_into(
    out: Tensor, query: Tensor, value: Tensor, bands: Tensor, layout: _Layout, workspace: Workspace
) -> None:
    queries, strips = layout.to_tiles(query, workspace), layout.to_strips(value, workspace)
    tiles = workspace.scratch(value, layout.lines, layout.heads * layout.tile, layout.dim_value)
    scores = _Scores(layout, value, workspace, backward=False)
    for block in layout.blocks():
        torch.bmm(scores.make(queries[block], bands), layout.windows(strips, block), out=tiles[block])
    layout.from_tiles(tiles, out)


def backward(
    grad: Tensor,
    query: Tensor,
    value: Tensor,
    table: Tensor,
    problem: GridProblem,
    workspace: Workspace,
    content: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Backward pass, as in ``contract.py``."""
    layout = _layout(problem)
    grad_query, grad_value = empty_in_order(query, layout.dim_key), empty_in_order(value, layout.dim_value)
    bands = layout.bands(table, workspace)
    grad_bands = workspace.scratch(bands, *bands.shape).zero_()
    for part, some in in_parts(problem, _examples(problem)):
        grads = grad_query[part], grad_value[part], grad_bands
        with workspace:
            _gradients_into(grads, grad[part], query[part], value[part], bands, _layout(some), workspace)
    return grad_query, grad_value, layout.bands_gradient(grad_bands).reshape(table.shape), None


def _gradients_into(
    grads: tuple[Tensor, Tensor, Tensor],
    grad: Tensor,
    query: Tensor,
    value: Tensor,
    bands: Tensor,
    layout: _Layout,
    workspace: Workspace,
) -> None:
    """Write the gradients of query and value, and add that of the bands."""
    grad_query, grad_value, grad_bands = grads
    queries, strips = layout.to_tiles(query, workspace), layout.to_strips(value, workspace)
    with_margin = layout.to_tiles(grad, workspace, margin=layout.row_extent - 1)
    grad_tiles = with_margin[layout.row_extent - 1 :].flatten(1, 2)
    grad_queries = workspace.scratch(queries, *queries.shape)
    grad_strips = layout.empty_strips(value, workspace).zero_()
    scores = _Scores(layout, value, workspace, backward=True)
    for block in layout.blocks():
        query_lhxk, grad_lav = queries[block], grad_tiles[block]
        scores_rca = scores.make_by_row(query_lhxk, bands)
        rows = slice(block.start, block.stop + layout.row_extent - 1)
        grad_strips[rows].baddbmm_(scores_rca.transpose(1, 2), layout.seen_from(with_margin, block))
        grad_xac = scores.make_gradient(grad_lav, layout.windows(strips, block))
        by_place = torch.bmm(grad_xac, bands.transpose(1, 2))
        grad_queries[block].flatten(0, 1).copy_(by_place.transpose(0, 1))
        grad_bands.baddbmm_(query_lhxk.flatten(0, 1).permute(1, 2, 0), grad_xac)
    layout.from_tiles(grad_queries, grad_query)
    layout.strips_gradient(grad_strips, grad_value, workspace)


KERNEL = GridKernel("banded", forward, backward, check, work)
