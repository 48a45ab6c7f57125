"""Lambda first, the paper's order: λp of one row of the grid, applied to the row's queries and dropped.

All E of a row are a slice of the Toeplitz operand (see ``toeplitz.py``), and λp of the row is one matrix product for
all examples side by side:

    λp_y[(x, k), (b, v)] = Σ_{y', u, x'} T[y' - y][(u, x'), (x, k)] · V[y', u, x'].

It does k·v / (h·(k + v)) times the work of query first, so it pays for many heads or shallow values. A sequence is
folded into an image.

Multiply-adds: u·b·n·m·k·v + b·h·n·k·v; kept for backward: the inputs.

Axes in names: y row and x place of a query, o offsets along the first axis, b batch, h heads, k query depth,
v value depth, u intra-depth.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from lambdanets.kernels.autograd.memory import Workspace
from lambdanets.kernels.grid.contract import SMALL_PRODUCT, Gradients, GridInputs, GridKernel, GridProblem, Work
from lambdanets.kernels.grid.folding import fold
from lambdanets.kernels.grid.toeplitz import RowLayout, check_size, elements

__all__ = ["KERNEL"]


def check(problem: GridProblem) -> str | None:
    """Return the reason why this kernel cannot run on ``problem``, or None."""
    return check_size(fold(problem))


def work(problem: GridProblem, backward: bool) -> Work:
    """Multiply-adds, elements of λp and of the Toeplitz operand, and calls."""
    problem = fold(problem)
    rows, rest = problem.grid[0], problem.num_positions // problem.grid[0]
    reach = min(problem.extents[0], rows)
    lambdas = problem.batch * problem.num_positions * problem.dim_key * problem.dim_value
    products = lambdas * reach * rest * problem.intra_depth
    apply = lambdas * problem.heads
    operand = elements(problem) + SMALL_PRODUCT * problem.num_positions * problem.batch
    if backward:
        calls = 20 + rows * (6 + 4 * problem.batch) + 2 * rest
        return Work(3 * products + 3 * apply, 4 * lambdas + 4 * operand, calls)
    return Work(products + apply, 2 * lambdas + 2 * operand, 12 + rows * (3 + 2 * problem.batch))


class _LambdaFirstLayout(RowLayout):
    """Tensors of one call by row."""

    def __init__(self, problem: GridProblem):
        super().__init__(problem, order="oucx")

    def values(self, value: Tensor) -> Tensor:
        """(b, u, n, v) -> (y, u x, b v)."""
        rows = self.folding.rows(value).flatten(3, -2)  # (b, u, y, x, v)
        return rows.permute(2, 1, 3, 0, 4).flatten(3, 4).flatten(1, 2).contiguous()

    def values_gradient(self, grad: Tensor) -> Tensor:
        """Undo :meth:`values`."""
        rows = grad.view(self.rows, self.intra_depth, self.row_size, self.batch, self.dim_value)
        return self.folding.cut(rows.permute(3, 1, 0, 2, 4).flatten(2, 3))

    def by_row(self, tensor: Tensor) -> Tensor:
        """(b, h, n, depth) -> (y, b, x, h, depth)."""
        return self.folding.rows(tensor).flatten(3, -2).permute(2, 0, 3, 1, 4).contiguous()

    def from_rows(self, tensor: Tensor) -> Tensor:
        """Undo :meth:`by_row`."""
        return self.folding.cut(tensor.permute(1, 3, 0, 2, 4).flatten(2, 3))

    def lambdas(self, operand: Tensor, values: Tensor) -> Tensor:
        """λp of one row, (x, k, b, v), from its slices of T, (o, u, c, x, k), and V, (y, u c, b v)."""
        product = operand.flatten(3).flatten(0, 2).T @ values.flatten(0, 1)
        return product.view(self.row_size, self.dim_key, self.batch, self.dim_value)


# Geometry alone, so calls of one shape share it.
_layout = functools.lru_cache(maxsize=256)(_LambdaFirstLayout)


def forward(inputs: GridInputs, workspace: Workspace) -> Tensor:
    """Forward pass, as in ``contract.py``."""
    layout = _layout(inputs.problem)
    operand = layout.operand(inputs.table, workspace)
    values, queries = layout.values(inputs.value), layout.by_row(inputs.query)
    out = queries.new_empty(*queries.shape[:-1], layout.dim_value)
    for window in layout.toeplitz.windows:
        lambdas = layout.lambdas(operand[window.offsets], values[window.context])
        for example in range(layout.batch):
            torch.bmm(queries[window.row, example], lambdas[:, :, example], out=out[window.row, example])
    return layout.from_rows(out)


def backward(grad: Tensor, inputs: GridInputs, workspace: Workspace) -> Gradients:
    """Backward pass, as in ``contract.py``."""
    layout = _layout(inputs.problem)
    operand, values = layout.operand(inputs.table, workspace), layout.values(inputs.value)
    queries, grads = layout.by_row(inputs.query), layout.by_row(grad)
    grad_queries = torch.empty_like(queries)
    grad_values, grad_operand = torch.zeros_like(values), torch.zeros_like(operand)
    for window in layout.toeplitz.windows:
        operand_part, value_part = operand[window.offsets], values[window.context]
        lambdas = layout.lambdas(operand_part, value_part)
        # Example by example λp gives the gradient of q, then makes place for its own.
        for example in range(layout.batch):
            query_xhk, grad_xhv = queries[window.row, example], grads[window.row, example]
            torch.bmm(grad_xhv, lambdas[:, :, example].transpose(1, 2), out=grad_queries[window.row, example])
            lambdas[:, :, example] = torch.bmm(query_xhk.transpose(1, 2), grad_xhv)
        grad_lambdas = lambdas.view(layout.row_size * layout.dim_key, -1)
        operand_ca = operand_part.flatten(3).flatten(0, 2)
        grad_operand[window.offsets].view(operand_ca.shape).addmm_(value_part.flatten(0, 1), grad_lambdas.T)
        grad_values[window.context].flatten(0, 1).addmm_(operand_ca, grad_lambdas)
    return (
        layout.from_rows(grad_queries),
        layout.values_gradient(grad_values),
        layout.table_gradient(grad_operand),
        None,
    )


KERNEL = GridKernel("lambda_first", forward, backward, check, work)
