"""Query first in a local context: the rows of the grid are cut into tiles, whose scores are banded matrices.

A tile of T neighbouring queries along the last axis sees a window of T + r - 1 context positions on each of the
context rows around it. For the query at place x of its tile the scores with the whole window are one product
with the table, shifted by x and filled up with zeros:

    S[x, (rows, T + r - 1)] = q_x · band_x,     band_x[:, rows, j] = table[:, rows, j - x].

So S is made by T matrix products for all tiles at once and y = S · V by one batched product with the windows of V:
no index, no scatter. Backward recomputes S.

Multiply-adds: b·h·n·c·(k + v) with c = u · rows · (T + r - 1) window positions; kept for backward: the inputs.

Axes in names: b batch, h heads, t tiles (of all examples and rows), x place in the tile, c window positions (with u),
k query depth, v value depth, u intra-depth.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from lambdanets.kernels.problem import GridProblem, Work, problem_of

__all__ = ["backward", "check", "forward", "work"]

# Elements of V's windows and of S that one block of rows may have, so that both stay in the cache.
BLOCK_ELEMENTS = 1 << 20
MAX_TILE = 16


def check(problem: GridProblem) -> str | None:
    """Why this kernel cannot run on ``problem``, or None."""
    if problem.is_global and problem.num_positions > 1:
        return "it is for local contexts, and here every position reaches every other"
    return None


def tile_width(width: int, extent: int) -> int:
    """T: narrow tiles copy more of V, wide ones multiply more zeros; even tiles waste no queries."""
    limit = max(4, min(MAX_TILE, extent + 1))
    tiles = math.ceil(width / limit)
    return math.ceil(width / tiles)


def _rows_and_examples(problem: GridProblem, window_size: int, tile: int) -> tuple[int, int]:
    """Rows (of the first axis) and examples in a block."""
    rows = 1 if len(problem.grid) == 1 else problem.grid[0]
    tiles = math.prod(problem.grid[1:-1]) * math.ceil(problem.grid[-1] / tile)
    step = tiles * window_size * max(problem.dim_value, problem.heads * tile)
    rows = max(1, min(rows, BLOCK_ELEMENTS // max(1, step)))
    return rows, max(1, min(problem.batch, BLOCK_ELEMENTS // max(1, step * rows)))


def _window(problem: GridProblem) -> tuple[int, int]:
    """T and c: the width of a tile and the size of its window, u and all context rows included."""
    tile = tile_width(problem.grid[-1], problem.extents[-1])
    rows = math.prod(problem.extents[:-1])
    return tile, problem.intra_depth * rows * (tile + problem.extents[-1] - 1)


def work(problem: GridProblem, backward: bool) -> Work:
    """Multiply-adds, elements of S and of V's windows, and calls."""
    tile, window_size = _window(problem)
    rows, examples = _rows_and_examples(problem, window_size, tile)
    lines = 1 if len(problem.grid) == 1 else problem.grid[0]
    tiles = problem.batch * math.prod(problem.grid[:-1]) * math.ceil(problem.grid[-1] / tile)
    scores, windows = tiles * problem.heads * tile * window_size, tiles * problem.dim_value * window_size
    blocks = math.ceil(lines / rows) * math.ceil(problem.batch / examples)
    both = problem.dim_key + problem.dim_value
    if backward:
        pieces = math.prod(problem.extents[:-1]) * math.ceil((tile + problem.extents[-1] - 1) / tile)
        calls = blocks * (12 + 3 * tile + 4 * pieces) + 2 * tile
        return Work(scores * (2 * both + problem.dim_key), 2 * scores + 4 * windows, calls)
    return Work(scores * both, scores + 2 * windows, blocks * (8 + tile) + 2 * tile)


class _Layout:
    """Tiles, windows and blocks of one call. A sequence is a grid of one row."""

    def __init__(self, query: Tensor, value: Tensor, table: Tensor, grid: list[int], origin: list[int]):
        problem = problem_of(query, value, table, grid, origin)
        self.batch, self.heads, _, self.dim_key = query.shape
        self.intra_depth, self.dim_value = value.shape[1], value.shape[3]
        self.tile, self.window_size = _window(problem)
        self.rows_and_examples = _rows_and_examples(problem, self.window_size, self.tile)
        extents = list(table.shape[2:])
        if len(grid) == 1:
            grid, origin, extents = [1, *grid], [0, *origin], [1, *extents]
        self.grid, self.origin, self.extents = grid, origin, extents
        self.width, self.extent = grid[-1], extents[-1]
        self.tiles = math.ceil(self.width / self.tile)
        self.window = self.tile + self.extent - 1

    def blocks(self) -> Iterator[tuple[slice, int, int]]:
        """(examples, first row, last row + 1), rows counted along the first axis."""
        rows, examples = self.rows_and_examples
        for first in range(0, self.batch, examples):
            for start in range(0, self.grid[0], rows):
                yield slice(first, first + examples), start, min(start + rows, self.grid[0])

    def bands(self, table: Tensor) -> list[Tensor]:
        """band_x for each place x of a tile, (k, c)."""
        shape = (self.dim_key, self.intra_depth, *self.extents[:-1], self.window)
        source = table.view(self.intra_depth, self.dim_key, *self.extents).transpose(0, 1)
        bands = []
        for x in range(self.tile):
            band = table.new_zeros(shape)
            band[..., x : x + self.extent] = source
            bands.append(band.view(self.dim_key, -1))
        return bands

    def to_tiles(self, rows: Tensor) -> Tensor:
        """(b, h, n, depth) -> (b, *grid[:-1], tiles, h, T, depth), the last tile filled with zeros."""
        tensor = rows.reshape(self.batch, self.heads, *self.grid, rows.shape[-1])
        pad = self.tiles * self.tile - self.width
        if pad:
            tensor = F.pad(tensor, [0, 0, 0, pad])
        tensor = tensor.unflatten(-2, (self.tiles, self.tile))
        return tensor.movedim(1, -3).contiguous()

    def from_tiles(self, tensor: Tensor) -> Tensor:
        """Undo :meth:`to_tiles`."""
        rows = tensor.movedim(-3, 1).flatten(-3, -2).narrow(-2, 0, self.width)
        return rows.reshape(self.batch, self.heads, -1, tensor.shape[-1])

    def pad_value(self, value: Tensor) -> Tensor:
        """V on its grid with zeros around it: (b, u, *padded grid, v)."""
        pads = [0, 0]
        for axis in reversed(range(len(self.grid))):
            behind = self.extents[axis] - 1 - self.origin[axis]
            if axis == len(self.grid) - 1:
                behind += self.tiles * self.tile - self.width
            pads += [self.origin[axis], behind]
        return F.pad(value.reshape(self.batch, self.intra_depth, *self.grid, self.dim_value), pads)

    def windows(self, padded: Tensor, examples: slice, start: int, stop: int) -> Tensor:
        """Windows of V for the tiles of a block, (t, c, v)."""
        view = padded[examples, :, start : stop + self.extents[0] - 1]
        rank = len(self.grid)
        for axis, extent in enumerate(self.extents[:-1], start=2):
            view = view.unfold(axis, extent, 1)
        view = view.unfold(rank + 1, self.window, self.tile)
        # (b, u, *rows, tiles, v, *row extents, window) -> (b, *rows, tiles, u, *row extents, window, v)
        order = [0, *range(2, rank + 2), 1, *range(rank + 3, 2 * rank + 3), rank + 2]
        return view.permute(order).reshape(-1, self.window_size, self.dim_value)

    def add_windows(self, padded: Tensor, windows: Tensor, examples: slice, start: int, stop: int) -> None:
        """Add the windows' gradients where :meth:`windows` read them; tiles overlap, so piece by piece."""
        target = padded[examples]
        shape = (len(target), stop - start, *self.grid[1:-1], self.tiles, self.intra_depth)
        windows = windows.view(*shape, *self.extents[:-1], self.window, self.dim_value)
        rank = len(self.grid)
        windows = windows.movedim(rank + 1, 1)  # (b, u, *rows, tiles, *row extents, window, v)
        leads = [stop - start, *self.grid[1:-1]]
        for offsets in itertools.product(*(range(extent) for extent in self.extents[:-1])):
            piece = windows[(slice(None),) * (rank + 2) + offsets]  # (b, u, *rows, tiles, window, v)
            rows = [slice(o, o + lead) for o, lead in zip(offsets, leads, strict=True)]
            rows[0] = slice(start + offsets[0], stop + offsets[0])
            index = (slice(None), slice(None), *rows)
            place = target[index]  # (b, u, *rows, padded width, v)
            for left in range(0, self.window, self.tile):
                part = piece[..., left : left + self.tile, :]
                width = part.shape[-2]
                strip = place.narrow(-2, left, (self.tiles - 1) * self.tile + width)
                strip.unfold(-2, width, self.tile).transpose(-1, -2).add_(part)

    def crop_value(self, padded: Tensor) -> Tensor:
        """Undo :meth:`pad_value`."""
        for axis, (o, size) in enumerate(zip(self.origin, self.grid, strict=True), start=2):
            padded = padded.narrow(axis, o, size)
        return padded.reshape(self.batch, self.intra_depth, -1, self.dim_value)


def _scores(query_txk: Tensor, bands: list[Tensor], window_size: int) -> Tensor:
    """S of a block: (rows, T, c) for queries (rows, T, k), rows being tiles and heads."""
    scores = query_txk.new_empty(*query_txk.shape[:2], window_size)
    for x, band in enumerate(bands):
        torch.mm(query_txk[:, x], band, out=scores[:, x])
    return scores


def forward(query: Tensor, value: Tensor, table: Tensor, grid: list[int], origin: list[int]) -> Tensor:
    """Position term, (b, h, n, v); arguments as for ``query_first.forward``."""
    layout = _Layout(query, value, table, grid, origin)
    queries, padded, bands = layout.to_tiles(query), layout.pad_value(value), layout.bands(table)
    out = queries.new_empty(*queries.shape[:-1], layout.dim_value)
    for examples, start, stop in layout.blocks():
        part = queries[examples, start:stop]
        scores = _scores(part.reshape(-1, layout.tile, layout.dim_key), bands, layout.window_size)
        windows = layout.windows(padded, examples, start, stop)
        result = torch.bmm(scores.view(len(windows), -1, layout.window_size), windows)
        out[examples, start:stop] = result.view(*part.shape[:-1], layout.dim_value)
    return layout.from_tiles(out)


def backward(
    grad: Tensor, query: Tensor, value: Tensor, table: Tensor, grid: list[int], origin: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, value and table; arguments as for ``query_first.backward``."""
    layout = _Layout(query, value, table, grid, origin)
    queries, grads = layout.to_tiles(query), layout.to_tiles(grad)
    padded, bands = layout.pad_value(value), layout.bands(table)
    grad_queries, grad_padded = torch.empty_like(queries), torch.zeros_like(padded)
    grad_bands = [torch.zeros_like(band) for band in bands]
    for examples, start, stop in layout.blocks():
        part = queries[examples, start:stop].reshape(-1, layout.tile, layout.dim_key)
        windows = layout.windows(padded, examples, start, stop)
        grad_part = grads[examples, start:stop].reshape(len(windows), -1, layout.dim_value)

        scores = _scores(part, bands, layout.window_size).view(len(windows), -1, layout.window_size)
        layout.add_windows(grad_padded, torch.bmm(scores.transpose(1, 2), grad_part), examples, start, stop)

        grad_scores = torch.bmm(grad_part, windows.transpose(1, 2)).view(len(part), layout.tile, -1)
        grad_query = torch.empty_like(part)
        for x, band in enumerate(bands):
            torch.mm(grad_scores[:, x], band.T, out=grad_query[:, x])
            grad_bands[x].addmm_(part[:, x].T, grad_scores[:, x])
        target = grad_queries[examples, start:stop]
        target.copy_(grad_query.view(target.shape))
    return (
        layout.from_tiles(grad_queries),
        layout.crop_value(grad_padded),
        _table_gradient(grad_bands, layout).reshape(table.shape),
    )


def _table_gradient(grad_bands: list[Tensor], layout: _Layout) -> Tensor:
    """Sum the places of a tile, each shifted back."""
    shape = (layout.dim_key, layout.intra_depth, *layout.extents[:-1], layout.window)
    parts = [band.view(shape).narrow(-1, x, layout.extent) for x, band in enumerate(grad_bands)]
    return torch.stack(parts).sum(0).transpose(0, 1)
