"""Both terms on a grid at once, y = S·V + q·λc, in eager mode.

A sum of two terms reads and writes the output twice and gradients four times, which at small sizes takes as long as the
products. Here a kernel that can adds q·λc while a part of its output is in the cache; behind the others it is added
in place, in the memory order that they left. Where somebody watches the operations (``torch.compile``, transforms,
further derivatives), the terms stay apart: see ``ops.py`` and ``content.py``.

Kept for backward: the inputs, and λc (b·k·v).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lambdanets.kernels.autograd.library import HALF, whole
from lambdanets.kernels.autograd.modes import is_batched, is_observed, is_transformed
from lambdanets.kernels.grid.planner import GRID_KERNELS, GridKernel, choose
from lambdanets.kernels.grid.problem import GridProblem, problem_of
from lambdanets.kernels.terms.content import add_content, content_gradients, content_lambdas, content_term
from lambdanets.kernels.terms.grid import grid_term

__all__ = ["can_join", "joint_term"]


def can_join(query: Tensor, keys: Tensor, value: Tensor, table: Tensor) -> bool:
    """Whether :func:`joint_term` serves these tensors here and now."""
    tensors = (query, keys, value, table)
    return not (
        torch.compiler.is_compiling()
        or is_transformed()
        or is_observed(tensors)
        or query.dtype in HALF
        or torch.is_autocast_enabled(query.device.type)
        or any(tensor.numel() == 0 for tensor in tensors)
    )


def joint_term(
    query: Tensor,
    keys: Tensor,
    value: Tensor,
    table: Tensor,
    grid: Sequence[int],
    origin: Sequence[int],
    kernel: str = "",
) -> Tensor:
    """Position term and content term of a grid.

    Args:
        query: (b, h, n, k).
        keys: (b, u, k, m), behind their softmax over m.
        value: (b, u, n, v).
        table: (u, k, *extents), cut to the reachable offsets.
        grid: sizes of the grid, n = m their product.
        origin: index of offset 0 in the table.
        kernel: a name from the planner's table, or "" (default) for its choice.

    Returns:
        (b, h, n, v), in the memory order of the query.
    """
    call = (tuple(grid), tuple(origin), kernel)
    if torch.is_grad_enabled() and any(t.requires_grad for t in (query, keys, value, table)):
        return _Joint.apply(query, keys, value, table, *call)
    return _forward(query, keys, value, table, *call)[0]


def _prepare(
    query: Tensor, value: Tensor, table: Tensor, call: tuple[Any, ...], backward: bool
) -> tuple[GridKernel, GridProblem]:
    grid, origin, kernel = call
    problem = problem_of(query, value, table, grid, origin)
    return GRID_KERNELS[kernel] if kernel else choose(problem, backward), problem


def _forward(query: Tensor, keys: Tensor, value: Tensor, table: Tensor, *call: Any) -> tuple[Tensor, Tensor]:
    """The output and λc."""
    chosen, problem = _prepare(query, value, table, call, backward=False)
    lambdas = content_lambdas(keys, value)
    if chosen.joint_forward is not None:
        return whole(chosen.joint_forward(query, value, table, problem, lambdas)), lambdas
    return whole(add_content(chosen.forward(query, value, table, problem), query, lambdas)), lambdas


def _backward(
    grad: Tensor, query: Tensor, keys: Tensor, value: Tensor, table: Tensor, lambdas: Tensor, *call: Any
) -> tuple[Tensor, ...]:
    """Gradients of query, keys, value and table."""
    chosen, problem = _prepare(query, value, table, call, backward=True)
    if chosen.joint_backward is not None:
        grad_query, grad_value, grad_table, grad_lambdas = chosen.joint_backward(
            grad, query, value, table, problem, lambdas
        )
    else:
        grad_query, grad_value, grad_table = chosen.backward(grad, query, value, table, problem)
        part, grad_lambdas = content_gradients(grad, query, lambdas)
        grad_query = grad_query.add_(part)
    grad_keys = grad_lambdas[:, None] @ value.transpose(2, 3)
    # For each u: V's gradient in the memory order that the kernel left.
    for u in range(value.shape[1]):
        _add_product(grad_value[:, u], keys[:, u].transpose(1, 2), grad_lambdas)
    return grad_query, grad_keys, grad_value, grad_table


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total += left @ right``, where a transposed product is in ``total``'s order transposed as well."""
    if total.stride(2) > total.stride(1):
        total.transpose(1, 2).baddbmm_(right.transpose(1, 2), left.transpose(1, 2))
    else:
        total.baddbmm_(left, right)


class _Joint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, keys: Tensor, value: Tensor, table: Tensor, *call: Any) -> Tensor:  # type: ignore[override]
        out, lambdas = _forward(query, keys, value, table, *call)
        ctx.save_for_backward(query, keys, value, table, lambdas)
        ctx.call = call
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        *inputs, lambdas = ctx.saved_tensors
        if torch.is_grad_enabled() or is_transformed() or is_batched(grad):
            grads = _composed_gradients(grad, inputs, ctx.needs_input_grad[:4], ctx.call)
        else:
            grads = _backward(grad, *inputs, lambdas, *ctx.call)
        return (*grads, *[None] * len(ctx.call))


def _composed_gradients(
    grad: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool], call: tuple[Any, ...]
) -> tuple[Tensor | None, ...]:
    """Gradients that can be differentiated again: those of the terms apart."""
    further = torch.is_grad_enabled()
    with torch.enable_grad():
        tensors = [
            t if t.requires_grad or not need else t.detach().requires_grad_()
            for t, need in zip(inputs, needed, strict=True)
        ]
        query, keys, value, table = tensors
        out = content_term(query, keys, value, grid_term(query, value, table, *call))
        wanted = [t for t, need in zip(tensors, needed, strict=True) if need]
        found = iter(torch.autograd.grad(out, wanted, grad, create_graph=further))
    return tuple(next(found) if need else None for need in needed)
