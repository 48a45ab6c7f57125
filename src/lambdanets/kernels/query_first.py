"""Query first ("attention order"): S = q·E, then y = S·V. No softmax stands between, so S is cut into blocks.

For a block of R rows of the grid (rows of its first axis), the products with every offset that the block can
have are one matrix product, P[n, o] = q_n · table[o]. A query's own scores are P read with a shift of one per
step of the query along each axis,

    S[(y, x), (y', x')] = P[(y, x), y' - y, x' - x],

which is a strided view of P: no index, no gathered n x m x k table. The copy of that view into a matrix and one
more product with V finish the block. Backward recomputes S.

Multiply-adds: b·h·n·m·(2^(rank-1)·(1 + R/rows)·k + v) for u = 1; kept for backward: the inputs.

Axes in names: b batch, h heads, n queries of the block, k query depth, v value depth, u intra-depth,
o offsets (flattened with u), c context positions of the block (flattened with u).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lambdanets.kernels.problem import GridProblem, Work, problem_of

__all__ = ["backward", "check", "forward", "work"]

# Elements of P that one block may have: past the second-level cache the shifted copy is bound by memory.
BLOCK_ELEMENTS = 1 << 19


def check(problem: GridProblem) -> str | None:
    """Why this kernel cannot run on ``problem``, or None: it runs on every grid."""
    return None


def _rows_and_examples(problem: GridProblem) -> tuple[int, int]:
    """Rows of the grid and examples in a block, so that its P stays small."""
    rest = problem.grid[1:]
    row_elements = problem.heads * math.prod(rest) * problem.intra_depth
    row_elements *= math.prod(2 * size - 1 for size in rest)
    reach = min(problem.extents[0], problem.grid[0])
    rows = 1
    while rows < problem.grid[0] and problem.batch * row_elements * 2 * rows * (reach + 2 * rows) <= BLOCK_ELEMENTS:
        rows *= 2
    rows = min(rows, problem.grid[0])
    examples = BLOCK_ELEMENTS // max(1, row_elements * rows * (reach + rows))
    return rows, max(1, min(problem.batch, examples))


def work(problem: GridProblem, backward: bool) -> Work:
    """Multiply-adds, elements of P and S, and calls."""
    rows, examples = _rows_and_examples(problem)
    rest = problem.grid[1:]
    queries = problem.batch * problem.heads * problem.num_positions * problem.intra_depth
    reach = min(problem.extents[0], problem.grid[0])
    products = queries * (reach + rows - 1) * math.prod(2 * size - 1 for size in rest)
    scores = queries * reach * math.prod(rest)
    blocks = math.ceil(problem.grid[0] / rows) * math.ceil(problem.batch / examples)
    if backward:
        return Work(
            3 * products * problem.dim_key + 2 * scores * problem.dim_value,
            3 * (products + scores),
            18 * blocks,
        )
    return Work(products * problem.dim_key + scores * problem.dim_value, products + 2 * scores, 8 * blocks)


@dataclass(frozen=True)
class _Block:
    """Queries of the rows [start, stop) and the context rows [low, high) that they see."""

    start: int
    stop: int
    low: int
    high: int

    @property
    def rows(self) -> int:
        return self.stop - self.start

    @property
    def context_rows(self) -> int:
        return self.high - self.low


class _Layout:
    """How P, S and the blocks of one call are laid out."""

    def __init__(self, query: Tensor, value: Tensor, table: Tensor, grid: list[int], origin: list[int]):
        self.batch, self.heads, _, self.dim_key = query.shape
        self.intra_depth, self.dim_value = value.shape[1], value.shape[3]
        self.rows, self.rest = grid[0], tuple(grid[1:])
        self.row_size = math.prod(self.rest)
        self.extent, self.origin = table.shape[2], origin[0]
        # Behind the first axis every offset is needed; a table that lacks some gets zeros there.
        self.pad_rest = [
            pad
            for size, extent, o in reversed(list(zip(self.rest, table.shape[3:], origin[1:], strict=True)))
            for pad in (size - 1 - o, size + o - extent)
        ]
        self.rest_offsets = tuple(2 * size - 1 for size in self.rest)
        self.rows_and_examples = _rows_and_examples(problem_of(query, value, table, grid, origin))

    def pad(self, table: Tensor) -> Tensor:
        return F.pad(table, self.pad_rest) if any(self.pad_rest) else table

    def blocks(self) -> Iterator[tuple[_Block, slice]]:
        """Blocks of query rows and, inside, of examples, so that P stays small."""
        rows, examples = self.rows_and_examples
        for start in range(0, self.rows, rows):
            stop = min(start + rows, self.rows)
            low = max(0, start - self.origin)
            high = min(self.rows, stop + self.extent - 1 - self.origin)
            for first in range(0, self.batch, examples):
                yield _Block(start, stop, low, high), slice(first, first + examples)

    def queries(self, block: _Block) -> slice:
        return slice(block.start * self.row_size, block.stop * self.row_size)

    def context(self, block: _Block) -> slice:
        return slice(block.low * self.row_size, block.high * self.row_size)

    def table_window(self, block: _Block) -> tuple[int, int]:
        """First and last + 1 row of the table that the block needs; either may lie outside it."""
        low = block.low - (block.stop - 1) + self.origin
        return low, low + block.context_rows + block.rows - 1

    def offsets(self, table: Tensor, block: _Block) -> Tensor:
        """The table's rows that the block needs as a matrix (k, u · offsets), zeros where it has none."""
        low, high = self.table_window(block)
        part = table[:, :, max(low, 0) : min(high, self.extent)]
        if low < 0 or high > self.extent:
            part = F.pad(part, [0, 0] * len(self.rest) + [max(0, -low), max(0, high - self.extent)])
        return part.transpose(0, 1).reshape(self.dim_key, -1)

    def products_shape(self, batch: int, block: _Block) -> tuple[int, ...]:
        offset_rows = block.context_rows + block.rows - 1
        head = (batch, self.heads, block.rows, *self.rest)
        return (*head, self.intra_depth, offset_rows, *self.rest_offsets)

    def scores_view(self, products: Tensor, block: _Block) -> Tensor:
        """S as a view of P: (b, h, rows, *rest, u, context rows, *rest), a shift of one for each step."""
        rank = len(self.rest)
        stride = products.stride()
        row, rest, u = stride[2], stride[3 : 3 + rank], stride[3 + rank]
        offset_row, offset_rest = stride[4 + rank], stride[5 + rank :]
        shifted = [a - b for a, b in zip(rest, offset_rest, strict=True)]
        start = (block.rows - 1) * offset_row
        start += sum((size - 1) * s for size, s in zip(self.rest, offset_rest, strict=True))
        return products.as_strided(
            (*products.shape[: 4 + rank], block.context_rows, *self.rest),
            (stride[0], stride[1], row - offset_row, *shifted, u, offset_row, *offset_rest),
            products.storage_offset() + start,
        )

    def scores(self, query_nk: Tensor, offsets_ko: Tensor, batch: int, block: _Block) -> Tensor:
        """S of the block, (b, h·n, c)."""
        products = (query_nk @ offsets_ko).view(self.products_shape(batch, block))
        shape = (batch, self.heads * block.rows * self.row_size, -1)
        return self.scores_view(products, block).reshape(shape)


def forward(query: Tensor, value: Tensor, table: Tensor, grid: list[int], origin: list[int]) -> Tensor:
    """Position term, (b, h, n, v).

    Args:
        query: (b, h, n, k).
        value: (b, u, n, v).
        table: (u, k, *extents), the reachable offsets.
        grid: sizes of the grid.
        origin: index of offset 0 in ``table``.
    """
    layout = _Layout(query, value, table, grid, origin)
    table = layout.pad(table)
    out = query.new_empty(*query.shape[:3], layout.dim_value)
    for block, examples in layout.blocks():
        query_b = query[examples, :, layout.queries(block)]
        value_bcv = value[examples, :, layout.context(block)].flatten(1, 2)
        scores = layout.scores(query_b.reshape(-1, layout.dim_key), layout.offsets(table, block), len(query_b), block)
        out[examples, :, layout.queries(block)] = torch.bmm(scores, value_bcv).view(
            len(query_b), layout.heads, -1, layout.dim_value
        )
    return out


def backward(
    grad: Tensor, query: Tensor, value: Tensor, table: Tensor, grid: list[int], origin: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, value and table, S recomputed block by block.

    Args:
        grad: (b, h, n, v), gradient of the output.
        query: as in :func:`forward`, and so are the rest.
        value: ...
        table: ...
        grid: ...
        origin: ...
    """
    layout = _Layout(query, value, table, grid, origin)
    padded = layout.pad(table)
    grad_query, grad_value, grad_table = (
        torch.empty_like(query, memory_format=torch.contiguous_format),
        torch.zeros_like(value, memory_format=torch.contiguous_format),
        torch.zeros_like(padded, memory_format=torch.contiguous_format),
    )
    for block, examples in layout.blocks():
        query_b = query[examples, :, layout.queries(block)]
        query_nk = query_b.reshape(-1, layout.dim_key)
        batch, offsets = len(query_b), layout.offsets(padded, block)
        value_bcv = value[examples, :, layout.context(block)].flatten(1, 2)
        grad_bnv = grad[examples, :, layout.queries(block)].reshape(batch, -1, layout.dim_value)

        scores = layout.scores(query_nk, offsets, batch, block)
        grad_context = torch.bmm(scores.transpose(1, 2), grad_bnv)
        grad_value[examples, :, layout.context(block)] += grad_context.unflatten(1, (layout.intra_depth, -1))

        grad_products = grad.new_zeros(layout.products_shape(batch, block))
        view = layout.scores_view(grad_products, block)
        view.copy_(torch.bmm(grad_bnv, value_bcv.transpose(1, 2)).view(view.shape))
        grad_no = grad_products.view(len(query_nk), -1)
        grad_query[examples, :, layout.queries(block)] = (grad_no @ offsets.T).view(query_b.shape)
        _add_to_table(grad_table, query_nk.T @ grad_no, layout, block)
    return grad_query, grad_value, _crop_rest(grad_table, table, origin, layout)


def _add_to_table(grad_table: Tensor, grad_ko: Tensor, layout: _Layout, block: _Block) -> None:
    """Add a block's gradient, (k, u · offsets), to the rows of the table that it came from."""
    low, high = layout.table_window(block)
    part = grad_ko.view(layout.dim_key, layout.intra_depth, high - low, *layout.rest_offsets).transpose(0, 1)
    start, stop = max(low, 0), min(high, layout.extent)
    grad_table[:, :, start:stop] += part[:, :, start - low : stop - low]


def _crop_rest(grad_table: Tensor, table: Tensor, origin: list[int], layout: _Layout) -> Tensor:
    """Undo the zero padding behind the first axis."""
    for axis, (size, o) in enumerate(zip(layout.rest, origin[1:], strict=True), start=3):
        grad_table = grad_table.narrow(axis, size - 1 - o, table.shape[axis])
    return grad_table.contiguous()
