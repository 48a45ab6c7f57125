"""Lambda first, the paper's order: λp of one row of the grid, applied to the row's queries and dropped.

Behind the first axis, E is a Toeplitz operand of all its positions; along the first axis a slice of it serves each row:

    λp_y[(x, k), (b, v)] = Σ_{y', u, x'} T[y' - y][(u, x'), (x, k)] · V[y', u, x'].

One matrix product for each row, with all examples side by side. V's and the table's axes behind the first are held in
reverse, so that T is a sliding view of the table. It does h·(k + v) / (k·v) of the work of query first, so it pays for
many heads or shallow values.

Multiply-adds: u·b·n·m·k·v + b·h·n·k·v; kept for backward: the inputs.

Axes in names: y and x place of a query (x behind the first axis, flattened), o offsets along the first axis, b batch,
h heads, k query depth, v value depth, u intra-depth.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lambdanets.kernels.problem import GridProblem, Work, problem_of

__all__ = ["backward", "check", "forward", "work"]

# The Toeplitz operand grows with the square of the positions behind the first axis.
MAX_OPERAND_ELEMENTS = 1 << 24


def check(problem: GridProblem) -> str | None:
    """Why this kernel cannot run on ``problem``, or None."""
    elements = _operand_elements(problem)
    if elements > MAX_OPERAND_ELEMENTS:
        return f"its Toeplitz operand would have {elements:,} elements, more than {MAX_OPERAND_ELEMENTS:,}"
    return None


def _operand_elements(problem: GridProblem) -> int:
    rest = math.prod(problem.grid[1:])
    return problem.extents[0] * problem.intra_depth * rest * rest * problem.dim_key


def work(problem: GridProblem, backward: bool) -> Work:
    """Multiply-adds, elements of λp and of the Toeplitz operand, and calls."""
    rows, rest = problem.grid[0], math.prod(problem.grid[1:])
    reach = min(problem.extents[0], rows)
    lambdas = problem.batch * problem.num_positions * problem.dim_key * problem.dim_value
    products = lambdas * reach * rest * problem.intra_depth
    apply = lambdas * problem.heads
    operand = _operand_elements(problem)
    if backward:
        calls = 20 + rows * (6 + 4 * problem.batch) + 2 * rest
        return Work(3 * products + 3 * apply, 4 * lambdas + 4 * operand, calls)
    return Work(products + apply, 2 * lambdas + 2 * operand, 12 + rows * (3 + 2 * problem.batch))


class _Layout:
    """The Toeplitz operand of one call and the rows that it serves."""

    def __init__(self, query: Tensor, value: Tensor, table: Tensor, grid: list[int], origin: list[int]):
        problem = problem_of(query, value, table, grid, origin)
        self.batch, self.heads, _, self.dim_key = query.shape
        self.intra_depth, self.dim_value = value.shape[1], value.shape[3]
        self.grid, self.rows, self.rest = grid, grid[0], grid[1:]
        self.row_size = math.prod(self.rest)
        self.origin, self.extents = origin, list(problem.extents)
        self.rest_axes = list(range(3, 2 + len(grid)))
        self.pads = [
            pad
            for size, extent, o in reversed(list(zip(self.rest, self.extents[1:], origin[1:], strict=True)))
            for pad in (size - 1 - o, size + o - extent)
        ]

    def windows(self) -> Iterator[tuple[int, slice, slice]]:
        """(row, context rows that it sees, their offsets)."""
        for row in range(self.rows):
            low = max(0, row - self.origin[0])
            high = min(self.rows, row + self.extents[0] - self.origin[0])
            first = low - row + self.origin[0]
            yield row, slice(low, high), slice(first, first + high - low)

    def operand(self, table: Tensor) -> Tensor:
        """T, (o, u x', x k)."""
        view = F.pad(table, self.pads).flip(self.rest_axes)
        for axis, size in zip(self.rest_axes, self.rest, strict=True):
            view = view.unfold(axis, size, 1)  # x in place, x' behind
        rank = len(self.rest)
        order = [2, 0, *range(3 + rank, 3 + 2 * rank), *range(3, 3 + rank), 1]
        view = view.permute(order)
        return view.reshape(self.extents[0], self.intra_depth * self.row_size, -1).contiguous()

    def table_gradient(self, grad_operand: Tensor) -> Tensor:
        """Undo :meth:`operand`."""
        shape = (self.extents[0], self.intra_depth, *self.rest, *self.rest, self.dim_key)
        # (u, k, o, x', x): x' in place, one x after the other shifted to its offsets.
        grad = grad_operand.view(shape).movedim(0, 1).movedim(-1, 1)
        padded = grad.new_zeros(*grad.shape[:3], *(2 * size - 1 for size in self.rest))
        for place in itertools.product(*(range(size) for size in self.rest)):
            window = tuple(slice(x, x + size) for x, size in zip(place, self.rest, strict=True))
            target: Any = (..., *window)
            source: Any = (..., *place)
            padded[target] += grad[source]
        padded = padded.flip(self.rest_axes)
        for axis, size, o in zip(self.rest_axes, self.rest, self.origin[1:], strict=True):
            padded = padded.narrow(axis, size - 1 - o, self.extents[axis - 2])
        return padded

    def values(self, value: Tensor) -> Tensor:
        """(b, u, n, v) -> (y, u x', b v), in reverse behind the first axis."""
        rows = value.unflatten(2, self.grid).permute(2, 1, *range(3, 2 + len(self.grid)), 0, -1)
        rows = rows.flip(list(range(2, 1 + len(self.grid))))
        return rows.reshape(self.rows, self.intra_depth * self.row_size, -1).contiguous()

    def values_gradient(self, grad: Tensor) -> Tensor:
        """Undo :meth:`values`."""
        shape = (self.rows, self.intra_depth, *self.rest, self.batch, self.dim_value)
        rows = grad.view(shape).flip(list(range(2, 1 + len(self.grid))))
        return rows.permute(-2, 1, 0, *range(2, 1 + len(self.grid)), -1).flatten(2, -2)

    def by_row(self, tensor: Tensor) -> Tensor:
        """(b, h, n, depth) -> (y, b, x, h, depth)."""
        return tensor.unflatten(2, (self.rows, self.row_size)).permute(2, 0, 3, 1, 4).contiguous()

    def from_rows(self, tensor: Tensor) -> Tensor:
        """Undo :meth:`by_row`."""
        return tensor.permute(1, 3, 0, 2, 4).flatten(2, 3)

    def lambdas(self, operand: Tensor, values: Tensor) -> Tensor:
        """λp of one row, (x, k, b, v), from its slices of T and V."""
        product = operand.flatten(0, 1).T @ values.flatten(0, 1)
        return product.view(self.row_size, self.dim_key, self.batch, self.dim_value)


def forward(query: Tensor, value: Tensor, table: Tensor, grid: list[int], origin: list[int]) -> Tensor:
    """Position term, (b, h, n, v); arguments as for ``query_first.forward``."""
    layout = _Layout(query, value, table, grid, origin)
    operand, values, queries = layout.operand(table), layout.values(value), layout.by_row(query)
    out = queries.new_empty(*queries.shape[:-1], layout.dim_value)
    for row, context, offsets in layout.windows():
        lambdas = layout.lambdas(operand[offsets], values[context])
        for example in range(layout.batch):
            torch.bmm(queries[row, example], lambdas[:, :, example], out=out[row, example])
    return layout.from_rows(out)


def backward(
    grad: Tensor, query: Tensor, value: Tensor, table: Tensor, grid: list[int], origin: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, value and table; arguments as for ``query_first.backward``."""
    layout = _Layout(query, value, table, grid, origin)
    operand, values = layout.operand(table), layout.values(value)
    queries, grads = layout.by_row(query), layout.by_row(grad)
    grad_queries, grad_values, grad_operand = (
        torch.empty_like(queries),
        torch.zeros_like(values),
        torch.zeros_like(operand),
    )
    for row, context, offsets in layout.windows():
        lambdas = layout.lambdas(operand[offsets], values[context])
        # Example by example λp gives the gradient of q, then makes place for its own.
        for example in range(layout.batch):
            query_xhk, grad_xhv = queries[row, example], grads[row, example]
            torch.bmm(grad_xhv, lambdas[:, :, example].transpose(1, 2), out=grad_queries[row, example])
            lambdas[:, :, example] = torch.bmm(query_xhk.transpose(1, 2), grad_xhv)
        grad_lambdas = lambdas.view(layout.row_size * layout.dim_key, -1)
        grad_operand[offsets].flatten(0, 1).addmm_(values[context].flatten(0, 1), grad_lambdas.T)
        grad_values[context].flatten(0, 1).addmm_(operand[offsets].flatten(0, 1), grad_lambdas)
    return (
        layout.from_rows(grad_queries),
        layout.values_gradient(grad_values),
        layout.table_gradient(grad_operand),
    )
