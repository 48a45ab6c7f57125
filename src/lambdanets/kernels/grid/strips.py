"""Layouts in memory of banded products: tiles of queries, strips of values and bands of the table.

**A worked example**: one image of 3 rows y0, y1, y2 and 4 columns, a table of 3x3 offsets (R = 3, ``above`` = 1) and
tiles of t = 2 queries. There are 2 columns of tiles, and a tile's window is t + 3 - 1 = 4 columns wide: -1..2 for the
left column of tiles, 1..4 for the right one (-1 and 4 are outside of the grid: zeros). Each column of tiles is a strip
of 3 rows plus max(above, R - 1 - above) = 1 of zeros, so ``lines_per_strip`` is 4 and there are 8 lines. The strips
of V stand below each other with ``above`` rows of zeros in front, 8 - 1 + 3 rows in all:

    row of V's strips      0    1    2    3    4    5    6    7    8    9
    columns of the window       -1..2  -1..2  -1..2       1..4  1..4  1..4
    row of the grid        0    y0   y1   y2   0    y0   y1   y2   0    0

    line of the tiles      0    1    2    3    4    5    6    7
    columns of its queries 0..1 0..1 0..1  -   2..3 2..3 2..3  -
    row of its queries     y0   y1   y2    -   y0   y1   y2    -
    rows that it reads     0-2  1-3  2-4  3-5  4-6  5-7  6-8  7-9

Line l reads the rows l, l + 1, l + 2 of the strips, wherever it is. So all windows are one view of the strips,
(8, c, v), whose first stride is one row: :meth:`Strips.windows`. Lines 3 and 7 have no queries; what they yield is
dropped.

For the gradient of V the same relation is read backwards: row r of the strips is read by the lines r - 2, r - 1 and r.
They are neighbours in memory, so with R - 1 = 2 lines of zeros in front (``margin``), all triples of lines are one view
of the tiles, (rows, R h x, depth), whose first stride is one line: :meth:`Tiles.seen_from`. S must have the same form,
(rows, R h x, a): line l wrote the score with its o-th row at [row l + o, slot R - 1 - o], which is the element

    (l + o) · R · line + (R - 1 - o) · line  =  l · R · line + o · (R - 1) · line + (R - 1) · line

for lines of ``line`` = h·t·a elements: strides of R lines for l and of R - 1 lines for o, from an offset of R - 1 lines
(``_BandedScores.make_by_row`` in ``banded.py``).

**A volume** has more axes in front (``leads``): each of their places has tiles and strips of its own, and their offsets
are more places of a row's window. Two images as above, z = 0 and 1, with a table of 3x3x3 offsets have 2 · 2 strips,
for the two columns of tiles of z = 0 and then of z = 1. A row of a window has 3 · 4 places: its 4 columns in the images
z - 1, z and z + 1, of which -1 and 2 are zeros. ``Strips.make`` cuts them out of V, (b, u, z, y, x, v), padded:

    one window an offset of z              (b, u, z, y, x, v, dz)
    one window a tile                      (b, u, z, y, tiles, v, dz, column)
    rows y of the strips (b, z, tiles)     (b, z, tiles, y, dz, u, column, v)

The places of a row are a = (dz, u, column). ``Strips.gradient`` goes back from there: place dz of the strips of z is
added to the image z + dz of the padded volume. A sequence is a grid of one row.

Axes in names: l lines, x place in the tile, a places of one row of a strip's window (with leads and u), c those of all
R rows of a window, b batch, h heads, k query depth, v value depth, u intra-depth.
"""

from __future__ import annotations

import itertools
import math

from torch import Tensor

from lambdanets.kernels.autograd.memory import Workspace
from lambdanets.kernels.grid.contract import GridProblem

__all__ = ["Bands", "Sizes", "Strips", "Tiles", "tile_width"]


def tile_width(width: int, extent: int) -> int:
    """Width t of a tile: wide ones multiply more zeros, narrow ones make small products, even ones waste no queries."""
    wanted = 2 if extent <= 7 else 4 if extent <= 15 else 8
    return math.ceil(width / math.ceil(width / wanted))


class Sizes:
    """Sizes of one call.

    Attributes:
        leads: sizes of the grid's axes in front of its rows; none for an image.
        rows: rows of the grid.
        width: places of a row.
        lead_extents: extents of the table along ``leads``.
        row_extent: R, rows of the table.
        extent: columns of the table.
        origin: index of offset 0 in the table, along each axis.
        above: rows of the table before its offset 0.
        tile: t, queries of a tile.
        tiles: tiles of a row of the grid: columns of tiles.
        window: columns of the context that a tile sees.
        row_places: a, places of one row of a window.
        places: c, places of all its rows.
        strips: number of strips, of all examples.
        lines_per_strip: lines from a strip to the next, with the zeros that its last rows and the next one's first see.
        lines: of all strips.
    """

    def __init__(self, problem: GridProblem):
        self.batch, self.heads, self.intra_depth = problem.batch, problem.heads, problem.intra_depth
        self.dim_key, self.dim_value = problem.dim_key, problem.dim_value
        grid, origin, extents = list(problem.grid), list(problem.origin), list(problem.extents)
        if len(grid) == 1:
            grid, origin, extents = [1, *grid], [0, *origin], [1, *extents]
        *self.leads, self.rows, self.width = grid
        *self.lead_extents, self.row_extent, self.extent = extents
        self.origin = origin
        self.above = origin[-2]
        self.tile = tile_width(self.width, self.extent)
        self.tiles = math.ceil(self.width / self.tile)
        self.window = self.tile + self.extent - 1
        self.row_places = math.prod(self.lead_extents) * self.intra_depth * self.window
        self.places = self.row_extent * self.row_places
        self.strips = self.batch * math.prod(self.leads) * self.tiles
        self.lines_per_strip = self.rows + max(self.above, self.row_extent - 1 - self.above)
        self.lines = self.strips * self.lines_per_strip


class Bands:
    """The table, shifted for each place of a tile."""

    def __init__(self, sizes: Sizes):
        self.sizes = sizes

    def make(self, table: Tensor, workspace: Workspace) -> Tensor:
        """band_x for each place x of a tile, (x, k, c): the table from column x of the window on, zeros elsewhere."""
        s = self.sizes
        source = table.view(s.intra_depth, s.dim_key, *s.lead_extents, s.row_extent, s.extent)
        bands = workspace.scratch(table, s.tile, s.dim_key, s.row_extent, s.row_places).zero_()
        self._table_places(bands).copy_(source.permute(1, -2, *range(2, source.ndim - 2), 0, -1))
        return bands.flatten(2)

    def gradient(self, grad: Tensor) -> Tensor:
        """Undo :meth:`make`: (u, k, *extents)."""
        by_place = self._table_places(grad.unflatten(2, (self.sizes.row_extent, self.sizes.row_places)))
        table = by_place.sum(0)  # (k, rows, *leads, u, extent)
        last = table.ndim - 1
        return table.permute(last - 1, 0, *range(2, last - 1), 1, last)

    def _table_places(self, bands: Tensor) -> Tensor:
        """View of the table's places in the bands, (x, k, rows, *leads, u, extent): from column x on in band x."""
        view = bands.view(*bands.shape[:3], *self.sizes.lead_extents, self.sizes.intra_depth, self.sizes.window)
        stride = view.stride()
        return view.as_strided((*view.shape[:-1], self.sizes.extent), (stride[0] + 1, *stride[1:]))


class Tiles:
    """Tensors of the queries' positions, line by line."""

    def __init__(self, sizes: Sizes):
        self.sizes = sizes

    def make(self, tensor: Tensor, workspace: Workspace, margin: int = 0) -> Tensor:
        """(b, h, n, depth) -> (l, h, x, depth), zero in the last tile's rest and in lines without queries.

        Args:
            tensor: queries or the output's gradient.
            workspace: for the result.
            margin: lines of zeros before the others, and after them.
        """
        s, depth = self.sizes, tensor.shape[-1]
        tensor = tensor.reshape(s.batch, s.heads, -1, s.rows, s.width, depth)
        out = workspace.scratch(tensor, s.lines + 2 * margin, s.heads, s.tile, depth).zero_()
        lines = out.narrow(0, margin, s.lines)
        for in_grid, in_tiles in self._pairs(tensor, self._by_row(lines)):
            in_tiles.copy_(in_grid)
        return out

    def undo(self, tiles: Tensor, out: Tensor) -> None:
        """Undo :meth:`make` without a margin, into (b, h, n, depth)."""
        s, depth = self.sizes, out.shape[-1]
        grid = out.unflatten(2, (math.prod(s.leads), s.rows, s.width))
        for in_grid, in_tiles in self._pairs(grid, self._by_row(tiles.view(s.lines, s.heads, s.tile, depth))):
            in_grid.copy_(in_tiles)

    def seen_from(self, tiles: Tensor, block: slice) -> Tensor:
        """The R lines that read each row of the strips, of those that a block reads: (rows, R h x, depth), a view.

        Args:
            tiles: of :meth:`make` with a margin of R - 1 lines.
            block: some lines.
        """
        s, depth = self.sizes, tiles.shape[-1]
        rows = block.stop - block.start + s.row_extent - 1
        line = s.heads * s.tile * depth
        return tiles[block.start :].as_strided((rows, s.row_extent * line // depth, depth), (line, depth, 1))

    def _by_row(self, lines: Tensor) -> Tensor:
        """(l, h, x, depth) -> (b, h, leads, y, tiles, x, depth), a view without the lines of zeros."""
        s = self.sizes
        by_strip = lines.unflatten(0, (s.batch, -1, s.tiles, s.lines_per_strip))
        return by_strip.permute(0, 4, 1, 3, 2, 5, 6)[:, :, :, : s.rows]

    def _pairs(self, grid: Tensor, tiles: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Views of the same elements in both forms: of the full tiles, and of the rest of a row.

        Args:
            grid: (b, h, leads, y, columns, depth).
            tiles: (b, h, leads, y, tiles, x, depth).
        """
        s = self.sizes
        full = s.width // s.tile * s.tile
        pairs = [(grid[..., :full, :].unflatten(4, (-1, s.tile)), tiles[..., : full // s.tile, :, :])]
        if full < s.width:
            pairs.append((grid[..., full:, :], tiles[..., -1, : s.width - full, :]))
        return pairs


class Strips:
    """Values, a strip of windows below the other, and the way back for their gradient."""

    def __init__(self, sizes: Sizes):
        self.sizes = s = sizes
        # For workspace.padded: zeros around V, the last axis first. Between rows they are in the strips.
        ahead = [extent - 1 - o for extent, o in zip((*s.lead_extents, s.row_extent, s.extent), s.origin, strict=True)]
        self.pads = [0, 0, s.origin[-1], ahead[-1] + s.tiles * s.tile - s.width, 0, 0]
        for before, after in reversed(list(zip(s.origin[:-2], ahead[:-2], strict=True))):
            self.pads += [before, after]

    def make(self, value: Tensor, workspace: Workspace) -> Tensor:
        """(b, u, n, v) -> (rows, a, v): those of :meth:`grid_rows` and the zeros around them."""
        s = self.sizes
        view = value.reshape(*value.shape[:2], *s.leads, s.rows, s.width, s.dim_value)
        view = workspace.padded(view, self.pads)
        for axis, extent in enumerate(s.lead_extents, start=2):
            view = view.unfold(axis, extent, 1)
        rank = len(s.leads)
        view = view.unfold(3 + rank, s.window, s.tile)
        # (b, u, *leads, rows, tiles, v, *lead extents, window) -> (b, *leads, tiles, rows, *lead extents, u, window, v)
        leads, lead_extents = range(2, 2 + rank), range(5 + rank, 5 + 2 * rank)
        view = view.permute(0, *leads, 3 + rank, 2 + rank, *lead_extents, 1, -1, 4 + rank)
        strips = self.empty(value, workspace)
        self.grid_rows(strips).copy_(view)
        below = s.above + s.lines
        strips[: s.above] = 0
        strips[s.above : below].unflatten(0, (s.strips, s.lines_per_strip))[:, s.rows :] = 0
        strips[below:] = 0
        return strips

    def empty(self, like: Tensor, workspace: Workspace) -> Tensor:
        """(rows, a, v), uninitialised: as many rows as all windows read."""
        s = self.sizes
        return workspace.scratch(like, s.lines - 1 + s.row_extent, s.row_places, s.dim_value)

    def grid_rows(self, strips: Tensor) -> Tensor:
        """The rows that are no zeros, (b, *leads, tiles, rows, *lead extents, u, window, v): a view.

        In the example of the module: rows 1 to 3 and 5 to 7.
        """
        s = self.sizes
        shape = (s.strips, s.rows, s.row_places, s.dim_value)
        row = s.row_places * s.dim_value
        rows = strips[s.above :].as_strided(shape, (s.lines_per_strip * row, row, s.dim_value, 1))
        places = rows.unflatten(2, (*s.lead_extents, s.intra_depth, s.window))
        return places.unflatten(0, (s.batch, *s.leads, s.tiles))

    def windows(self, strips: Tensor, block: slice) -> Tensor:
        """The windows that some lines read, (l, c, v), each one row after the one before: a view."""
        s = self.sizes
        shape = (block.stop - block.start, s.places, s.dim_value)
        return strips[block.start :].as_strided(shape, (s.row_places * s.dim_value, s.dim_value, 1))

    def gradient(self, grad: Tensor, out: Tensor, workspace: Workspace) -> None:
        """Undo :meth:`make`, into (b, u, n, v): each position sums the places that it has in several windows.

        Windows overlap, so they are cut into pieces of a tile's width: the piece p of all windows lies p tiles to the
        right of its tile, one beside the other without overlap, and is added at once. In the example a window of 4
        columns has 2 pieces: those of the left strip are added to the columns (-1, 0) and (1, 2), those of the right
        strip to (1, 2) and (3, 4). Offsets along the leads are added one after the other in the same way.
        """
        s = self.sizes
        rank = len(s.leads)
        # (b, *lead extents, u, *leads, rows, tiles, window, v)
        order = [0, *range(rank + 3, 2 * rank + 3), 2 * rank + 3, *range(1, rank + 1), rank + 2, rank + 1]
        grad = self.grid_rows(grad).permute(*order, -2, -1)
        pieces = math.ceil(s.window / s.tile)
        padded_leads = [size + extent - 1 for size, extent in zip(s.leads, s.lead_extents, strict=True)]
        tiles = s.tiles + pieces - 1
        shape = (s.batch, s.intra_depth, *padded_leads, s.rows, tiles, s.tile, s.dim_value)
        total = workspace.scratch(grad, *shape).zero_()
        for offsets in itertools.product(*(range(extent) for extent in s.lead_extents)):
            target, source = total, grad
            for axis, (o, size) in enumerate(zip(offsets, s.leads, strict=True), start=2):
                target, source = target.narrow(axis, o, size), source.select(1, o)
            for piece in range(pieces):
                part = source[..., piece * s.tile : (piece + 1) * s.tile, :]
                target[..., piece : piece + s.tiles, : part.shape[-2], :] += part
        total = total.flatten(-3, -2)  # (b, u, *padded leads, rows, columns from the first window's first on, v)
        starts, lengths = [*s.origin[:-2], 0, s.origin[-1]], [*s.leads, s.rows, s.width]
        for axis, (start, length) in enumerate(zip(starts, lengths, strict=True), 2):
            total = total.narrow(axis, start, length)
        out.unflatten(2, lengths).copy_(total)
