"""The terms on a grid: y = S·V, the position term, and q·λc, the content term without a causal order.

**The position term** is one library op for all kernels. Which kernel runs is decided inside, from the sizes at hand;
the forward and the backward pass choose each for themselves.

**Both terms at once** in eager mode. A sum of two terms reads and writes the output twice and gradients four times,
which takes as long as the products at small sizes (``scripts/measure_eager_path.py`` measures it). Here a kernel that
can adds q·λc while a part of its output is in the cache; after the others it is added in place. Where calls are traced,
transformed, observed or differentiated twice, the terms are computed apart.

Kept for backward: the inputs, and λc (b·k·v) if both terms are computed at once.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from lambdanets.kernels.autograd.derivatives import gradients_by_autograd
from lambdanets.kernels.autograd.layout import depth_before_positions, resolve_negatives, without_view
from lambdanets.kernels.autograd.library import Op
from lambdanets.kernels.autograd.memory import Workspace
from lambdanets.kernels.autograd.modes import is_eager, is_watched, without_autocast
from lambdanets.kernels.call import Call
from lambdanets.kernels.grid.contract import Gradients, GridInputs, GridKernel
from lambdanets.kernels.grid.planner import GRID_KERNELS, choose_by_sizes
from lambdanets.kernels.grid.spread import differ_in_size
from lambdanets.kernels.names import require
from lambdanets.kernels.precision import HALF
from lambdanets.kernels.terms.content import (
    add_content_term,
    apply_content,
    content_gradients,
    content_lambdas,
    content_term,
    normalise,
)
from lambdanets.kernels.terms.finite import remove_nonfinite, remove_nonfinite_entries
from lambdanets.positions import GridPositions, without_future_offsets

__all__ = ["GRID_OP", "grid_gradients", "grid_terms"]


def grid_terms(call: Call, positions: GridPositions) -> Tensor:
    """Position term of a call on a grid, and its content term where there is a key: (b, h, n, v)."""
    query, key, value = call.query, call.key, call.value
    table, origin = _table(positions, query.dtype, call.causal)
    statics = list(positions.grid), origin, call.kernel or ""
    compute_separately = (
        key is None
        or call.causal  # the content term then has an op of its own
        or query.dtype in HALF  # on GPUs kernels take it as it is, and each term is rounded once
        or query.shape[0] == 0  # which the op answers; kernels get no empty tensors
        or not is_eager((query, key, value, table))
    )
    if compute_separately:
        return add_content_term(call, GRID_OP(query, value, table, *statics))
    tensors = query, normalise(cast("Tensor", key)), value, table
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return _BothTerms.apply(*tensors, *statics)
    return _both_terms(*tensors, *statics)[0]


def grid_gradients(call: Call, grad: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Start the backward pass of both terms without their output, for a caller that did not keep their inputs.

    Args:
        call: with a key and positions on a grid, neither masked nor causal, and not of a plain kernel.
        grad: (b, h, n, v), gradient of the output.

    Returns:
        Query, normalised keys, value and table, from which autograd goes on, and their gradients.
    """
    call, _ = remove_nonfinite(call)
    positions = cast("GridPositions", call.positions)
    table, origin = _table(positions, call.query.dtype, causal=False)
    tensors = call.query, normalise(cast("Tensor", call.key)), call.value, table
    with torch.no_grad():
        content = content_lambdas(tensors[1], call.value)
        return tensors, _both_gradients(grad, *tensors, content, list(positions.grid), origin, call.kernel or "")


def _table(positions: GridPositions, dtype: torch.dtype, causal: bool) -> tuple[Tensor, list[int]]:
    """The table, in causal order the offsets to the past alone, and the index of offset 0 in it.

    The grid has no part in it, so that one graph of ``torch.compile`` or ``torch.export`` serves every grid: offsets
    that a grid does not have are cut off inside the op.
    """
    centre = [extent // 2 for extent in positions.extents]
    table = positions.table.to(dtype)
    if causal:
        table = table.narrow(2, 0, centre[0] + 1)
        if len(centre) > 1:
            table = without_future_offsets(table, centre)
    return table, centre


def _run_forward(
    query: Tensor,
    value: Tensor,
    table: Tensor,
    grid: list[int],
    origin: list[int],
    kernel: str,
    content: Tensor | None = None,
) -> Tensor:
    """The position term, plus q·λc where λc is given."""
    chosen, inputs, sees_bad = _chosen(kernel, GridInputs.of(query, value, table, grid, origin, content))
    with Workspace.for_thread() as workspace:
        out = chosen.forward(inputs, workspace)
    if content is not None and not chosen.adds_content:
        out = apply_content(query, content, out)
    return out if sees_bad is None else out.masked_fill_(sees_bad[:, None], float("nan"))


def _run_backward(
    grad: Tensor,
    query: Tensor,
    value: Tensor,
    table: Tensor,
    grid: list[int],
    origin: list[int],
    kernel: str,
    content: Tensor | None = None,
) -> Gradients:
    """Gradients of query, value and table, and of λc where it is given."""
    chosen, inputs, _ = _chosen(kernel, GridInputs.of(query, value, table, grid, origin, content), grad)
    with Workspace.for_thread() as workspace:
        grad_query, grad_value, grad_table, grad_content = chosen.backward(
            grad.to(inputs.query.dtype), inputs, workspace
        )
    if content is not None and grad_content is None:
        part, grad_content = content_gradients(grad, query, content)
        grad_query = grad_query.add_(part)
    return grad_query, grad_value, inputs.whole_table(grad_table, table, origin), grad_content


def _chosen(
    kernel: str, inputs: GridInputs, grad: Tensor | None = None
) -> tuple[GridKernel, GridInputs, Tensor | None]:
    """The kernel of the name, or the planner's choice for these tensors, and the inputs as it takes them.

    Args:
        kernel: the name, or "".
        inputs: of the call.
        grad: gradient of the output, for the backward pass; None for the forward pass.

    Returns:
        The kernel; the inputs in a precision that it takes, for one that mixes offsets without entries of the table
        that are not finite; and the queries that see one of those, (n,), or None.

    Raises:
        ValueError: if the named kernel cannot run.
    """
    problem = inputs.problem
    if kernel:
        require(kernel, problem)
        chosen = GRID_KERNELS[kernel]
    else:
        tensors = inputs.query, inputs.value, inputs.table, grad
        chosen = choose_by_sizes(
            problem, grad is not None, lambda channels: differ_in_size(problem, *tensors, channels=channels)
        )
    sees_bad = None
    if chosen.spreads_nonfinite_entries:
        table, sees_bad = remove_nonfinite_entries(inputs.table, problem.grid, problem.origin)
        inputs = replace(inputs, table=table)
    return chosen, inputs.widened() if problem.dtype in HALF and not chosen.half else inputs, sees_bad


def _position_gradients(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, value and table in the position term alone."""
    return _run_backward(*args)[:3]


GRID_OP = Op(
    "grid_term",
    _run_forward,
    _position_gradients,
    tensors=("query", "value", "table"),
    shared=("table",),
    widen=False,
    statics="SymInt[] grid, SymInt[] origin, str kernel",
)


class _BothTerms(torch.autograd.Function):
    """Output from (query, keys, value, table, grid, origin, kernel); keys (b, u, k, m) are normalised."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:  # type: ignore[override]
        out, content = _both_terms(*args)
        ctx.save_for_backward(*args[:4], content)
        ctx.statics = args[4:]
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        query, keys, value, table, content = ctx.saved_tensors
        with without_autocast(grad.device.type):  # it may be enabled where backward() is called
            if is_watched(grad, differentiable=torch.is_grad_enabled()):
                terms = partial(_terms_apart, grad, ctx.statics)
                grads = gradients_by_autograd(terms, (query, keys, value, table), ctx.needs_input_grad[:4])
            else:
                grads = _both_gradients(grad, query, keys, value, table, content, *ctx.statics)
        return (*grads, None, None, None)


def _both_terms(
    query: Tensor, keys: Tensor, value: Tensor, table: Tensor, grid: list[int], origin: list[int], kernel: str
) -> tuple[Tensor, Tensor]:
    """The output and λc."""
    query, keys, value, table = resolve_negatives((query, keys, value, table))
    content = content_lambdas(keys, value)
    return without_view(_run_forward(query, value, table, grid, origin, kernel, content)), content


def _both_gradients(
    grad: Tensor,
    query: Tensor,
    keys: Tensor,
    value: Tensor,
    table: Tensor,
    content: Tensor,
    grid: list[int],
    origin: list[int],
    kernel: str,
) -> tuple[Tensor, ...]:
    """Gradients of query, keys, value and table."""
    grad, query, keys, value, table = resolve_negatives((grad, query, keys, value, table))
    grad_query, grad_value, grad_table, grad_content = _run_backward(
        grad, query, value, table, grid, origin, kernel, content
    )
    grad_content = cast("Tensor", grad_content)
    grad_keys = grad_content[:, None] @ value.transpose(2, 3)
    for u in range(value.shape[1]):
        _add_product(grad_value[:, u], keys[:, u].transpose(1, 2), grad_content)
    return grad_query, grad_keys, grad_value, grad_table


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total += left @ right``, as the transposed product where ``total`` is transposed in memory."""
    if depth_before_positions(total):
        total.transpose(1, 2).baddbmm_(right.transpose(1, 2), left.transpose(1, 2))
    else:
        total.baddbmm_(left, right)


def _terms_apart(
    grad: Tensor, statics: tuple[Any, ...], query: Tensor, keys: Tensor, value: Tensor, table: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """The sum of the terms, each in operations that can be differentiated again, and its gradient."""
    return [content_term(query, keys, value, GRID_OP(query, value, table, *statics))], [grad]
