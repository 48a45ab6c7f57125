"""Query first in a local context: the rows of the grid are cut into tiles, whose scores are banded matrices.

A tile of T neighbouring queries along the last axis sees a window of T + r - 1 context places on each of the context
rows around it. For the query at place x of its tile the scores with the whole window are one product with the table,
shifted by x and filled up with zeros:

    S[x, (rows, T + r - 1)] = q_x · band_x,     band_x[:, rows, j] = table[:, rows, j - x].

So S is made by T matrix products for many tiles at once and y = S · V by one batched product with the windows of V.
V is copied once into strips, T + r - 1 wide, one for each column of tiles. Down a strip the windows of the tiles
overlap and stand one row apart in memory: the batched product reads them where they are. Nothing is indexed or
scattered. Backward recomputes S.

Multiply-adds: b·h·n·c·(k + v) with c = u · rows · (T + r - 1) window places; kept for backward: the inputs.

Axes in names: s strips (of all examples), y rows of queries, x place in the tile, a places of one row of a strip's
window (with u), c those of all rows, b batch, h heads, k query depth, v value depth, u intra-depth.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lambdanets.kernels.memory import empty_in_order, room
from lambdanets.kernels.problem import GridProblem, Work

__all__ = ["backward", "check", "forward", "work"]

# Elements that the scores of a block, and in backward the gradients of its windows, may have: they stay in the cache.
BLOCK_ELEMENTS = 1 << 18


def tile_width(width: int, extent: int) -> int:
    """T: wide tiles multiply more zeros, narrow ones make small products; even tiles waste no queries."""
    tiles = math.ceil(width / max(4, min(8, extent // 3)))
    return math.ceil(width / tiles)


def check(problem: GridProblem) -> str | None:
    """Why this kernel cannot run on ``problem``, or None."""
    if problem.is_global and problem.num_positions > 1:
        return "it is for local contexts, and here every position reaches every other"
    return None


@dataclass(frozen=True)
class _Block:
    """Some strips and some of their rows, with the rows of the window that are inside the grid for any of them."""

    strips: slice
    rows: slice
    window: slice

    @property
    def each_strip(self) -> range:
        """The strips one by one."""
        return range(self.strips.start, self.strips.stop)


class _Layout:
    """Tiles, strips and blocks of one call. A sequence is a grid of one row."""

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
        self.pads = [0, 0]
        for axis in reversed(range(len(grid))):
            behind = extents[axis] - 1 - origin[axis]
            self.pads += [origin[axis], behind + (self.tiles * self.tile - self.width if axis == len(grid) - 1 else 0)]

    def blocks(self) -> Iterator[_Block]:
        """All pairs of strips and rows."""
        places = self.row_extent * self.row_places
        each = places * max(self.heads * self.tile, self.dim_value)
        rows = max(1, min(self.rows, BLOCK_ELEMENTS // each))
        strips = max(1, min(self.strips, BLOCK_ELEMENTS // (each * rows)))
        above = self.origin[-2]
        for y, s in itertools.product(range(0, self.rows, rows), range(0, self.strips, strips)):
            last = min(y + rows, self.rows)
            window = slice(max(0, above - last + 1), min(self.row_extent, self.rows + above - y))
            yield _Block(slice(s, min(s + strips, self.strips)), slice(y, last), window)

    def block_places(self, block: _Block) -> int:
        """Context places that all tiles of a block see together."""
        tiles = len(block.each_strip) * (block.rows.stop - block.rows.start)
        return tiles * (block.window.stop - block.window.start) * self.row_places

    def bands(self, table: Tensor) -> Tensor:
        """band_x for each place of a tile, (x, k, rows, a)."""
        source = table.view(self.intra_depth, self.dim_key, *self.lead_extents, self.row_extent, self.extent)
        bands = table.new_zeros(self.tile, self.dim_key, self.row_extent, self.row_places)
        self._shifted(bands).copy_(source.permute(1, -2, *range(2, source.ndim - 2), 0, -1))
        return bands

    def bands_gradient(self, grad: Tensor) -> Tensor:
        """Undo :meth:`bands`: (u, k, *extents)."""
        table = self._shifted(grad).sum(0)  # (k, rows, *leads, u, extent)
        last = table.ndim - 1
        return table.permute(last - 1, 0, *range(2, last - 1), 1, last)

    def _shifted(self, bands: Tensor) -> Tensor:
        """The table's places in the bands, (x, k, rows, *leads, u, extent): x further on in band x."""
        view = bands.view(*bands.shape[:3], *self.lead_extents, self.intra_depth, self.window)
        stride = view.stride()
        return view.as_strided((*view.shape[:-1], self.extent), (stride[0] + 1, *stride[1:]))

    def to_tiles(self, tensor: Tensor) -> Tensor:
        """(b, h, n, depth) -> (s, y, h, x, depth), the last tile filled with zeros."""
        tensor = tensor.reshape(self.batch, self.heads, *self.leads, self.rows, self.width, tensor.shape[-1])
        if pad := self.tiles * self.tile - self.width:
            tensor = F.pad(tensor, [0, 0, 0, pad])
        tensor = tensor.unflatten(-2, (self.tiles, self.tile))  # (b, h, *leads, y, tiles, x, depth)
        leads = range(2, 2 + len(self.leads))
        tensor = tensor.permute(0, *leads, -3, -4, 1, -2, -1)
        return tensor.reshape(self.strips, self.rows, self.heads, self.tile, tensor.shape[-1])

    def from_tiles(self, tensor: Tensor, like: Tensor) -> Tensor:
        """Undo :meth:`to_tiles`, in the memory order of ``like``, (b, h, n, any depth)."""
        depth = tensor.shape[-1]
        tensor = tensor.view(self.batch, -1, self.tiles, self.rows, self.heads, self.tile, depth)
        tensor = tensor.permute(0, 4, 1, 3, 2, 5, 6)  # (b, h, leads, y, tiles, x, depth)
        out = empty_in_order(like, depth)
        target = out.unflatten(2, (-1, self.rows, self.width))
        full = self.width // self.tile * self.tile
        target[..., :full, :].unflatten(4, (-1, self.tile)).copy_(tensor[..., : full // self.tile, :, :])
        if full < self.width:
            target[..., full:, :] = tensor[..., -1, : self.width - full, :]
        return out

    def to_strips(self, value: Tensor) -> Tensor:
        """(b, u, n, v) -> (s, padded rows, a, v)."""
        view = F.pad(value.reshape(*value.shape[:2], *self.leads, self.rows, self.width, self.dim_value), self.pads)
        for axis, extent in enumerate(self.lead_extents, start=2):
            view = view.unfold(axis, extent, 1)
        rank = len(self.leads)
        view = view.unfold(3 + rank, self.window, self.tile)
        # (b, u, *leads, rows, tiles, v, *lead extents, window) -> (b, *leads, tiles, rows, *lead extents, u, window, v)
        leads, lead_extents = range(2, 2 + rank), range(5 + rank, 5 + 2 * rank)
        view = view.permute(0, *leads, 3 + rank, 2 + rank, *lead_extents, 1, -1, 4 + rank)
        return view.reshape(self.strips, -1, self.row_places, self.dim_value).contiguous()

    def strips_gradient(self, grad: Tensor) -> Tensor:
        """Undo :meth:`to_strips`: tiles overlap, so one tile's width of all windows at a time."""
        shape = (self.batch, *self.leads, self.tiles, grad.shape[1], *self.lead_extents, self.intra_depth)
        rank = len(self.leads)
        grad = grad.view(*shape, self.window, self.dim_value)
        # (b, *lead extents, u, *leads, rows, tiles, window, v)
        order = [0, *range(rank + 3, 2 * rank + 3), 2 * rank + 3, *range(1, rank + 1), rank + 2, rank + 1]
        grad = grad.permute(*order, -2, -1)
        pieces = math.ceil(self.window / self.tile)
        padded_leads = [size + extent - 1 for size, extent in zip(self.leads, self.lead_extents, strict=True)]
        columns = self.tiles + pieces - 1
        total = grad.new_zeros(
            self.batch, self.intra_depth, *padded_leads, grad.shape[-4], columns, self.tile, self.dim_value
        )
        for offsets in itertools.product(*(range(extent) for extent in self.lead_extents)):
            target, source = total, grad
            for axis, (o, size) in enumerate(zip(offsets, self.leads, strict=True), start=2):
                target, source = target.narrow(axis, o, size), source.select(1, o)
            for piece in range(pieces):
                part = source[..., piece * self.tile : (piece + 1) * self.tile, :]
                target[..., piece : piece + self.tiles, : part.shape[-2], :] += part
        total = total.flatten(-3, -2)
        for axis, (start, size) in enumerate(zip(self.origin, [*self.leads, self.rows, self.width], strict=True), 2):
            total = total.narrow(axis, start, size)
        return total.reshape(self.batch, self.intra_depth, -1, self.dim_value)

    def windows(self, strips: Tensor, strip: int, block: _Block) -> Tensor:
        """Windows of V down a strip, (y, c, v), one row apart: a view."""
        part = strips[strip, block.rows.start + block.window.start :]
        places = (block.window.stop - block.window.start) * self.row_places
        shape = (block.rows.stop - block.rows.start, places, self.dim_value)
        return part.as_strided(shape, (self.row_places * self.dim_value, self.dim_value, 1))

    def add_to_windows(self, strips: Tensor, strip: int, block: _Block, left_yca: Tensor, right_yav: Tensor) -> None:
        """Add products, (y, c, a) by (y, a, v), to the windows down a strip; they overlap, so row by row of theirs."""
        for i, left in enumerate(left_yca.split(self.row_places, dim=1)):
            first = block.window.start + i
            strips[strip, block.rows.start + first : block.rows.stop + first].baddbmm_(left, right_yav)


# Geometry alone, so calls of one shape share it.
_layout = functools.lru_cache(maxsize=256)(_Layout)


def work(problem: GridProblem, backward: bool) -> Work:
    """Multiply-adds, elements of S and of V's strips, and calls."""
    layout = _layout(problem)
    tiles = layout.strips * layout.rows
    places = layout.row_extent * layout.row_places
    scores = tiles * layout.heads * layout.tile * places
    strips = layout.strips * (layout.rows + layout.row_extent - 1) * layout.row_places * layout.dim_value
    blocks = max(1, scores // BLOCK_ELEMENTS)
    both = problem.dim_key + problem.dim_value
    if backward:
        windows = tiles * places * layout.dim_value
        calls = 30 + blocks * 12 + layout.strips * (2 + layout.row_extent)
        return Work(scores * (2 * both + problem.dim_key), 4 * scores + 2 * windows + 3 * strips, calls)
    return Work(scores * both, 2 * scores + 2 * strips, 16 + blocks * 8 + 2 * layout.strips)


class _Scores:
    """S of one block after the other, in memory that all of them share."""

    def __init__(self, layout: _Layout, like: Tensor):
        self.heads, self.tile = layout.heads, layout.tile
        count = layout.heads * layout.tile * max(map(layout.block_places, layout.blocks()))
        self.by_place, self.by_tile = like.new_empty(count), like.new_empty(count)

    def make(self, queries: Tensor, bands: Tensor) -> Tensor:
        """(s, y, h x, c) from queries (s, y, h, x, k) and bands (x, k, c)."""
        by_place, by_tile = self._views(queries, bands.shape[2])
        torch.bmm(queries.flatten(0, 2).transpose(0, 1), bands, out=by_place)
        by_tile.copy_(by_place.transpose(0, 1))
        return by_tile.view(*queries.shape[:2], -1, bands.shape[2])

    def make_gradient(self, grads: Tensor, windows: Sequence[Tensor]) -> Tensor:
        """(x, s y h, c) from grads (s, y, h x, v) and the windows of each strip, (y, c, v); S is overwritten."""
        places = windows[0].shape[1]
        by_place, by_tile = self._views(grads.unflatten(2, (self.heads, self.tile)), places)
        for target, grad_yxv, window in zip(by_tile.view(*grads.shape[:3], places), grads, windows, strict=True):
            torch.bmm(grad_yxv, window.transpose(1, 2), out=target)
        return by_place.copy_(by_tile.transpose(0, 1))

    def _views(self, queries: Tensor, places: int) -> tuple[Tensor, Tensor]:
        lines = math.prod(queries.shape[:3])
        by_place = room(self.by_place, (self.tile, lines, places))
        return by_place, room(self.by_tile, (lines, self.tile, places))


def forward(query: Tensor, value: Tensor, table: Tensor, problem: GridProblem) -> Tensor:
    """Position term, (b, h, n, v); arguments as for ``query_first.forward``."""
    layout = _layout(problem)
    queries, strips, bands = layout.to_tiles(query), layout.to_strips(value), layout.bands(table)
    out = value.new_empty(*queries.shape[:2], layout.heads * layout.tile, layout.dim_value)
    scores = _Scores(layout, value)
    for block in layout.blocks():
        made = scores.make(queries[block.strips, block.rows], bands[:, :, block.window].flatten(2))
        for strip, scores_yxc in zip(block.each_strip, made, strict=True):
            torch.bmm(scores_yxc, layout.windows(strips, strip, block), out=out[strip, block.rows])
    return layout.from_tiles(out.unflatten(2, (layout.heads, layout.tile)), query)


def backward(
    grad: Tensor, query: Tensor, value: Tensor, table: Tensor, problem: GridProblem
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, value and table; arguments as for ``query_first.backward``."""
    layout = _layout(problem)
    queries, strips, bands = layout.to_tiles(query), layout.to_strips(value), layout.bands(table)
    grads = layout.to_tiles(grad).flatten(2, 3)
    grad_queries, grad_strips, grad_bands = torch.empty_like(queries), torch.zeros_like(strips), torch.zeros_like(bands)
    scores = _Scores(layout, value)
    for block in layout.blocks():
        part, band = queries[block.strips, block.rows], bands[:, :, block.window].flatten(2)
        grad_part = grads[block.strips, block.rows]
        for strip, scores_yxc, grad_yxv in zip(block.each_strip, scores.make(part, band), grad_part, strict=True):
            layout.add_to_windows(grad_strips, strip, block, scores_yxc.transpose(1, 2), grad_yxv)

        windows = [layout.windows(strips, strip, block) for strip in block.each_strip]
        grad_xac = scores.make_gradient(grad_part, windows)
        target = grad_queries[block.strips, block.rows]
        target.copy_(torch.bmm(grad_xac, band.transpose(1, 2)).transpose(0, 1).view(target.shape))
        query_xka = part.flatten(0, 2).permute(1, 2, 0)
        grad_bands[:, :, block.window] += torch.bmm(query_xka, grad_xac).view(*bands.shape[:2], -1, bands.shape[3])
    return (
        layout.from_tiles(grad_queries, query),
        layout.strips_gradient(grad_strips),
        layout.bands_gradient(grad_bands).reshape(table.shape),
    )
