"""Query first ("attention order"): S = q·E, then y = S·V. No softmax stands between, so S is cut into rows.

For one row of the grid, the scores of all its queries with all that the row sees are one batched product with a slice
of the Toeplitz operand (see ``toeplitz.py``), a batch for each place x of the row:

    S_y[x, (b, h), (y', u, x')] = q[x, (b, h)] · T[x][:, (y' - y, u, x')].

One copy puts the examples in front, and one more batched product with V finishes the row: y = S·V. Backward makes S
again. A sequence is folded into an image; a small grid of any rank goes through as one row.

Multiply-adds: b·h·n·m·u·(k + v); kept for backward: the inputs.

Axes in names: y row and x place of a query, b batch, h heads, c context places of a row (rows, u, places),
k query depth, v value depth, u intra-depth.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from lambdanets.kernels.folding import fold, in_one_row
from lambdanets.kernels.problem import GridProblem, Work
from lambdanets.kernels.toeplitz import RowLayout, RowWindow, check_size, elements

__all__ = ["backward", "check", "forward", "work"]


# Elements of the operand up to which a grid goes through as one row.
ONE_ROW_ELEMENTS = 1 << 16


def _fits_one_row(problem: GridProblem) -> bool:
    return elements(in_one_row(problem)) <= ONE_ROW_ELEMENTS


def _arrange(problem: GridProblem) -> GridProblem:
    return in_one_row(problem) if _fits_one_row(problem) else fold(problem)


def check(problem: GridProblem) -> str | None:
    """Why this kernel cannot run on ``problem``, or None."""
    return check_size(_arrange(problem))


def work(problem: GridProblem, backward: bool) -> Work:
    """Multiply-adds, elements of S and of the Toeplitz operand, and calls."""
    problem = _arrange(problem)
    rows = problem.grid[0]
    context = min(problem.extents[0], rows) * problem.num_positions // rows * problem.intra_depth
    scores = problem.batch * problem.heads * problem.num_positions * context
    operand = elements(problem)
    both = problem.dim_key + problem.dim_value
    if backward:
        calls = 20 + rows * 14 + 2 * problem.num_positions // rows
        return Work(scores * (2 * both + problem.dim_key), 4 * scores + 4 * operand, calls)
    return Work(scores * both, 2 * scores + operand, 14 + rows * 6)


class _Layout(RowLayout):
    """Tensors of one call by row."""

    def __init__(self, problem: GridProblem):
        super().__init__(problem, one_row=_fits_one_row(problem))

    def operand(self, table: Tensor) -> Tensor:
        """T, (x, k, o, u c)."""
        return self.toeplitz.expand(self.folding.table(table), "xkouc").flatten(3)

    def table_gradient(self, grad: Tensor) -> Tensor:
        """Undo :meth:`operand`."""
        return self.folding.table_gradient(self.toeplitz.collect(grad.unflatten(3, (self.intra_depth, -1))))

    def queries(self, query: Tensor) -> Tensor:
        """(b, h, n, k) -> (y, x, b h, k)."""
        rows = self.folding.rows(query).flatten(3, -2)  # (b, h, y, x, k)
        return rows.permute(2, 3, 0, 1, 4).flatten(2, 3).contiguous()

    def queries_gradient(self, grad: Tensor) -> Tensor:
        """Undo :meth:`queries`."""
        rows = grad.unflatten(2, (self.batch, self.heads)).permute(2, 3, 0, 1, 4)
        return self.folding.cut(rows.flatten(2, 3))

    def values(self, value: Tensor) -> Tensor:
        """(b, u, n, v) -> (b, y, u x, v)."""
        rows = self.folding.rows(value).flatten(3, -2)
        return rows.transpose(1, 2).flatten(2, 3).contiguous()

    def values_gradient(self, grad: Tensor) -> Tensor:
        """Undo :meth:`values`."""
        rows = grad.unflatten(2, (self.intra_depth, self.row_size)).transpose(1, 2)
        return self.folding.cut(rows.flatten(2, 3))

    def outputs(self, tensor: Tensor) -> Tensor:
        """(b, h, n, v) -> (b, y, x h, v)."""
        rows = self.folding.rows(tensor).flatten(3, -2)  # (b, h, y, x, v)
        return rows.permute(0, 2, 3, 1, 4).flatten(2, 3).contiguous()

    def from_outputs(self, tensor: Tensor) -> Tensor:
        """Undo :meth:`outputs`."""
        rows = tensor.unflatten(2, (self.row_size, self.heads)).flatten(1, 2)
        return self.folding.cut(rows.transpose(1, 2))

    def examples_first(self, scores: Tensor) -> Tensor:
        """(x, b h, c) -> (b, x h, c)."""
        return scores.unflatten(1, (self.batch, self.heads)).transpose(0, 1).flatten(1, 2)

    def places_first(self, scores: Tensor) -> Tensor:
        """Undo :meth:`examples_first`."""
        return scores.unflatten(1, (self.row_size, self.heads)).transpose(0, 1).flatten(1, 2)


# Geometry alone, so calls of one shape share it.
_layout = functools.lru_cache(maxsize=256)(_Layout)


def _slices(operand: Tensor, values: Tensor, window: RowWindow) -> tuple[Tensor, Tensor]:
    """T (x, k, c) and V (b, c, v) of a row."""
    return operand[:, :, window.offsets].flatten(2), values[:, window.context].flatten(1, 2)


def forward(query: Tensor, value: Tensor, table: Tensor, problem: GridProblem) -> Tensor:
    """Position term, (b, h, n, v).

    Args:
        query: (b, h, n, k).
        value: (b, u, n, v).
        table: (u, k, *extents), the reachable offsets.
        problem: the shape of the call.
    """
    layout = _layout(problem)
    operand, values, queries = layout.operand(table), layout.values(value), layout.queries(query)
    out = value.new_empty(layout.batch, layout.rows, layout.row_size * layout.heads, layout.dim_value)
    for window in layout.toeplitz.windows():
        operand_xkc, value_bcv = _slices(operand, values, window)
        scores = layout.examples_first(torch.bmm(queries[window.row], operand_xkc))
        torch.bmm(scores, value_bcv, out=out[:, window.row])
    return layout.from_outputs(out)


def backward(
    grad: Tensor, query: Tensor, value: Tensor, table: Tensor, problem: GridProblem
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, value and table, S made again row by row.

    Args:
        grad: (b, h, n, v), gradient of the output.
        query: as in :func:`forward`, and so are the rest.
        value: ...
        table: ...
        problem: ...
    """
    layout = _layout(problem)
    operand, values = layout.operand(table), layout.values(value)
    queries, grads = layout.queries(query), layout.outputs(grad)
    grad_queries = torch.empty_like(queries)
    grad_values, grad_operand = torch.zeros_like(values), torch.zeros_like(operand)
    for window in layout.toeplitz.windows():
        query_xak, (operand_xkc, value_bcv) = queries[window.row], _slices(operand, values, window)
        grad_bnv = grads[:, window.row]
        scores = layout.examples_first(torch.bmm(query_xak, operand_xkc))
        grad_values[:, window.context].flatten(1, 2).baddbmm_(scores.transpose(1, 2), grad_bnv)
        grad_scores = layout.places_first(torch.bmm(grad_bnv, value_bcv.transpose(1, 2)))
        torch.bmm(grad_scores, operand_xkc.transpose(1, 2), out=grad_queries[window.row])
        grad_operand[:, :, window.offsets].flatten(2).baddbmm_(query_xak.transpose(1, 2), grad_scores)
    return (
        layout.queries_gradient(grad_queries),
        layout.values_gradient(grad_values),
        layout.table_gradient(grad_operand),
    )
