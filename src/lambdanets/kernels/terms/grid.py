"""The position term on a grid as one op for all kernels.

Which kernel runs is decided inside, from the sizes at hand; the forward and the backward pass choose each for
themselves.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from lambdanets.kernels.autograd.library import HALF, define_op, widened
from lambdanets.kernels.grid.planner import GRID_KERNELS, GridKernel, choose
from lambdanets.kernels.grid.problem import GridProblem, problem_of

__all__ = ["GRID_OP", "grid_term"]


def _forward(query: Tensor, value: Tensor, table: Tensor, grid: list[int], origin: list[int], kernel: str) -> Tensor:
    table, origin, _ = _cut(table, grid, origin)
    chosen, tensors, problem = _prepared((query, value, table), grid, origin, kernel, backward=False)
    return chosen.forward(*tensors, problem)


def _backward(
    grad: Tensor, query: Tensor, value: Tensor, table: Tensor, grid: list[int], origin: list[int], kernel: str
) -> tuple[Tensor, ...]:
    table, origin, pads = _cut(table, grid, origin)
    chosen, tensors, problem = _prepared((query, value, table), grid, origin, kernel, backward=True)
    (grad,) = (grad,) if chosen.half else widened((grad,))
    *grads, grad_table = chosen.backward(grad, *tensors, problem)
    return (*grads, F.pad(grad_table, pads) if any(pads) else grad_table)


def _cut(table: Tensor, grid: Sequence[int], origin: Sequence[int]) -> tuple[Tensor, list[int], list[int]]:
    """The table without the offsets that no two positions have, its origin, and what pads it to its old extents.

    Exported programs pass the whole table, so that its extents do not depend on the grid.
    """
    pads: list[int] = []
    starts = []
    for axis, (size, before) in enumerate(zip(grid, origin, strict=True), start=2):
        extent = table.shape[axis]
        start, stop = max(0, before - size + 1), min(extent, before + size)
        if stop - start < extent:
            table = table.narrow(axis, start, stop - start)
        starts.append(start)
        pads = [start, extent - stop, *pads]  # the last axis comes first
    return table, [before - start for before, start in zip(origin, starts, strict=True)], pads


def _prepared(
    tensors: tuple[Tensor, ...], grid: list[int], origin: list[int], kernel: str, backward: bool
) -> tuple[GridKernel, tuple[Tensor, ...], GridProblem]:
    """The kernel, its inputs in the precision that it takes, and the problem that they are."""
    query, value, table = tensors
    problem = problem_of(query, value, table, grid, origin)
    chosen = GRID_KERNELS[kernel] if kernel else choose(problem, backward)
    if chosen.half or query.dtype not in HALF:
        return chosen, tensors, problem
    query, value, table = widened(tensors)
    return chosen, (query, value, table), problem_of(query, value, table, grid, origin)


GRID_OP = define_op(
    "grid_term",
    _forward,
    _backward,
    lambda query, value, table: (*query.shape[:3], value.shape[3]),
    tensors=("query", "value", "table"),
    shared=("table",),
    widen=False,
    statics="SymInt[] grid, SymInt[] origin, str kernel",
)


def grid_term(
    query: Tensor, value: Tensor, table: Tensor, grid: Sequence[int], origin: Sequence[int], kernel: str = ""
) -> Tensor:
    """y[b,h,n] = Σ_mu (q[b,h,n] · E[n,m,u]) V[b,u,m] with E[n,m] = table[m - n + origin], 0 outside.

    Args:
        query: (b, h, n, k).
        value: (b, u, n, v).
        table: (u, k, *extents); offsets that no two positions have are left out inside.
        grid: sizes of the grid, n their product.
        origin: index of offset 0 in the table.
        kernel: a name from the planner's table, or "" (default) for its choice.

    Returns:
        (b, h, n, v).
    """
    return GRID_OP.apply(query, value, table, list(grid), list(origin), kernel)
