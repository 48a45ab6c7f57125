"""Query first ("attention order"): S = q·E, then y = S·V. No softmax stands between, so S is cut into rows.

For one row of the grid, the scores of all its queries with all that the row sees are one batched product with a slice
of the Toeplitz operand (see ``toeplitz.py``), a batch for each place x of the row:

    S_y[x, (b, h), (y', u, x')] = q[x, (b, h)] · T[x][:, (y' - y, u, x')].

One copy puts the examples in front, and one more batched product with V finishes the row: y = S·V. Backward makes S
again. A sequence is folded into an image.

Multiply-adds: b·h·n·m·u·(k + v); kept for backward: the inputs.

Axes in names: y row and x place of a query, b batch, h heads, c context places of a row (rows, u, places),
k query depth, v value depth, u intra-depth.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lambdanets.kernels.folding import Folding, fold
from lambdanets.kernels.problem import GridProblem, Work, problem_of
from lambdanets.kernels.toeplitz import RowWindow, Toeplitz, check_size, elements

__all__ = ["backward", "check", "forward", "work"]


def check(problem: GridProblem) -> str | None:
    """Why this kernel cannot run on ``problem``, or None."""
    return check_size(fold(problem))


def work(problem: GridProblem, backward: bool) -> Work:
    """Multiply-adds, elements of S and of the Toeplitz operand, and calls."""
    problem = fold(problem)
    rows = problem.grid[0]
    context = min(problem.extents[0], rows) * problem.num_positions // rows * problem.intra_depth
    scores = problem.batch * problem.heads * problem.num_positions * context
    operand = elements(problem)
    both = problem.dim_key + problem.dim_value
    if backward:
        calls = 20 + rows * 14 + 2 * problem.num_positions // rows
        return Work(scores * (2 * both + problem.dim_key), 4 * scores + 4 * operand, calls)
    return Work(scores * both, 2 * scores + operand, 14 + rows * 6)


class _Layout:
    """Tensors of one call by row."""

    def __init__(self, query: Tensor, value: Tensor, table: Tensor, grid: list[int], origin: list[int]):
        self.batch, self.heads, _, self.dim_key = query.shape
        self.intra_depth, self.dim_value = value.shape[1], value.shape[3]
        self.folding = Folding(problem_of(query, value, table, grid, origin))
        self.toeplitz = Toeplitz(self.folding.image)
        self.row_size = self.toeplitz.row_size

    def operand(self, table: Tensor) -> Tensor:
        """T, (x, k, o, u x')."""
        view = self.toeplitz.expand(self.folding.table(table)).permute(3, 1, 2, 0, 4)
        return view.flatten(3).contiguous()

    def table_gradient(self, grad: Tensor) -> Tensor:
        """Undo :meth:`operand`."""
        grad = grad.unflatten(3, (self.intra_depth, -1))  # (x, k, o, u, x')
        return self.folding.table_gradient(self.toeplitz.collect(lambda x: grad[x].permute(2, 0, 1, 3)))

    def by_row(self, tensor: Tensor) -> Tensor:
        """(b, h, n, depth) -> (y, x, b h, depth)."""
        rows = self.folding.rows(tensor).flatten(3, -2)  # (b, h, y, x, depth)
        return rows.permute(2, 3, 0, 1, 4).flatten(2, 3).contiguous()

    def from_rows(self, tensor: Tensor) -> Tensor:
        """Undo :meth:`by_row`."""
        rows = tensor.unflatten(2, (self.batch, self.heads)).permute(2, 3, 0, 1, 4)
        return self.folding.cut(rows.flatten(2, 3))

    def values(self, value: Tensor) -> Tensor:
        """(b, u, n, v) -> (b, y, u x', v), in reverse behind the first axis."""
        rows = self.toeplitz.reverse(self.folding.rows(value), 3).flatten(3, -2)
        return rows.transpose(1, 2).flatten(2, 3).contiguous()

    def values_gradient(self, grad: Tensor) -> Tensor:
        """Undo :meth:`values`."""
        rows = grad.unflatten(2, (self.intra_depth, *self.toeplitz.rest)).transpose(1, 2)
        return self.folding.cut(self.toeplitz.reverse(rows, 3).flatten(2, -2))

    def examples_first(self, scores: Tensor) -> Tensor:
        """(x, b h, c) -> (b, x h, c)."""
        return scores.unflatten(1, (self.batch, self.heads)).transpose(0, 1).flatten(1, 2)

    def places_first(self, scores: Tensor) -> Tensor:
        """Undo :meth:`examples_first`; also for a row's queries or outputs."""
        return scores.unflatten(1, (self.row_size, self.heads)).transpose(0, 1).flatten(1, 2)


def _slices(operand: Tensor, values: Tensor, window: RowWindow) -> tuple[Tensor, Tensor]:
    """T (x, k, c) and V (b, c, v) of a row."""
    return operand[:, :, window.offsets].flatten(2), values[:, window.context].flatten(1, 2)


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
    operand, values, queries = layout.operand(table), layout.values(value), layout.by_row(query)
    out = queries.new_empty(*queries.shape[:-1], layout.dim_value)
    for window in layout.toeplitz.windows():
        operand_xkc, value_bcv = _slices(operand, values, window)
        scores = layout.examples_first(torch.bmm(queries[window.row], operand_xkc))
        out[window.row] = layout.places_first(torch.bmm(scores, value_bcv))
    return layout.from_rows(out)


def backward(
    grad: Tensor, query: Tensor, value: Tensor, table: Tensor, grid: list[int], origin: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, value and table, S made again row by row.

    Args:
        grad: (b, h, n, v), gradient of the output.
        query: as in :func:`forward`, and so are the rest.
        value: ...
        table: ...
        grid: ...
        origin: ...
    """
    layout = _Layout(query, value, table, grid, origin)
    operand, values = layout.operand(table), layout.values(value)
    queries, grads = layout.by_row(query), layout.by_row(grad)
    grad_queries = torch.empty_like(queries)
    grad_values, grad_operand = torch.zeros_like(values), torch.zeros_like(operand)
    for window in layout.toeplitz.windows():
        query_xak, (operand_xkc, value_bcv) = queries[window.row], _slices(operand, values, window)
        grad_bnv = layout.examples_first(grads[window.row])
        scores = layout.examples_first(torch.bmm(query_xak, operand_xkc))
        grad_values[:, window.context].flatten(1, 2).baddbmm_(scores.transpose(1, 2), grad_bnv)
        grad_scores = layout.places_first(torch.bmm(grad_bnv, value_bcv.transpose(1, 2)))
        torch.bmm(grad_scores, operand_xkc.transpose(1, 2), out=grad_queries[window.row])
        grad_operand[:, :, window.offsets].flatten(2).baddbmm_(query_xak.transpose(1, 2), grad_scores)
    return (
        layout.from_rows(grad_queries),
        layout.values_gradient(grad_values),
        layout.table_gradient(grad_operand),
    )
