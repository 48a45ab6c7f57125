"""The terms on a grid: y = S·V, the position term, and q·λc, the content term without a causal order.

**The position term** is one library op for all kernels. Which kernel runs is decided inside, from the sizes at hand;
the forward and the backward pass choose each for themselves.

**Both terms at once** in eager mode. A sum of two terms reads and writes the output twice and gradients four times,
which takes as long as the products at small sizes (``scripts/measure_eager_path.py`` measures it). Here a kernel that
can adds q·λc while a part of its output is in the cache; after the others it is added in place, in the memory order of
their output. Where calls are traced, transformed, observed or differentiated twice, the terms are computed apart.

Kept for backward: the inputs, and λc (b·k·v) if both terms are computed at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lambdanets.kernels.autograd.library import HALF, Op, resolved, whole, widened
from lambdanets.kernels.autograd.memory import Workspace
from lambdanets.kernels.autograd.modes import is_batched, is_eager, is_observed, is_transformed, without_autocast
from lambdanets.kernels.call import Call
from lambdanets.kernels.grid.contract import GridKernel, GridProblem, problem_of
from lambdanets.kernels.grid.planner import GRID_KERNELS, choose, require
from lambdanets.kernels.grid.spread import differ_in_size
from lambdanets.kernels.terms.causal_content import causal_content_term
from lambdanets.kernels.terms.content import (
    add_content,
    content_gradients,
    content_lambdas,
    content_term,
    normalise,
)
from lambdanets.positions import GridPositions, lexicographic_past

__all__ = ["GRID_OP", "grid_terms"]


def grid_terms(call: Call, positions: GridPositions) -> Tensor:
    """Position term of a call on a grid, and its content term where there is a key: (b, h, n, v)."""
    query, key, value = call.query, call.key, call.value
    table, origin = _table(positions, query.dtype, call.causal)
    statics = list(positions.grid), origin, call.kernel or ""
    if key is None:
        return GRID_OP(query, value, table, *statics)
    if call.causal:
        return causal_content_term(query, key, value) + GRID_OP(query, value, table, *statics)
    keys = normalise(key)
    tensors = query, keys, value, table
    if query.dtype in HALF or not is_eager(tensors) or query.shape[0] == 0:
        return content_term(query, keys, value, GRID_OP(query, value, table, *statics))
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return _BothTerms.apply(*tensors, *statics)
    return _both_terms(*tensors, *statics)[0]


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
            # Filled, as an entry that is not finite stays so in a product with 0.
            table = table.masked_fill(~lexicographic_past(table.shape[2:], centre, table.device), 0.0)
    return table, centre


def _forward(query: Tensor, value: Tensor, table: Tensor, grid: list[int], origin: list[int], kernel: str) -> Tensor:
    table, problem, _ = _cut(query, value, table, grid, origin)
    chosen = _chosen(kernel, problem, query, value)
    if not chosen.half and query.dtype in HALF:
        query, value, table = widened((query, value, table))
        problem = replace(problem, dtype=query.dtype)
    with Workspace.for_thread() as workspace:
        return chosen.forward(query, value, table, problem, workspace)


def _backward(
    grad: Tensor, query: Tensor, value: Tensor, table: Tensor, grid: list[int], origin: list[int], kernel: str
) -> tuple[Tensor, ...]:
    table, problem, pads = _cut(query, value, table, grid, origin)
    chosen = _chosen(kernel, problem, query, value, grad)
    if not chosen.half and query.dtype in HALF:
        grad, query, value, table = widened((grad, query, value, table))
        problem = replace(problem, dtype=query.dtype)
    with Workspace.for_thread() as workspace:
        grad_query, grad_value, grad_table, _ = chosen.backward(grad, query, value, table, problem, workspace)
    return grad_query, grad_value, _padded(grad_table, pads)


def _cut(
    query: Tensor, value: Tensor, table: Tensor, grid: Sequence[int], origin: Sequence[int]
) -> tuple[Tensor, GridProblem, list[int]]:
    """The table without the offsets that no two positions have, the shape of the call, and the pads of its gradient."""
    # Causal order cuts the first axis behind offset 0. A scope of 1 looks the same, and loses nothing by it.
    one_sided = table.shape[2] == origin[0] + 1
    pads: list[int] = []
    starts = []
    for axis, (size, before) in enumerate(zip(grid, origin, strict=True), start=2):
        extent = table.shape[axis]
        start, stop = max(0, before - size + 1), min(extent, before + size)
        if stop - start < extent:
            table = table.narrow(axis, start, stop - start)
        starts.append(start)
        pads = [start, extent - stop, *pads]  # the last axis comes first
    origin = [before - start for before, start in zip(origin, starts, strict=True)]
    return table, problem_of(query, value, table, grid, origin, one_sided), pads


def _padded(grad_table: Tensor, pads: list[int]) -> Tensor:
    """The gradient of a table that was cut, zero where it was."""
    return F.pad(grad_table, pads) if any(pads) else grad_table


def _chosen(kernel: str, problem: GridProblem, query: Tensor, value: Tensor, grad: Tensor | None = None) -> GridKernel:
    """The kernel of the name, or the planner's choice for these tensors; with ``grad`` for the backward pass.

    Raises:
        ValueError: if the named kernel cannot run.
    """
    if kernel:
        require(kernel, problem)
        return GRID_KERNELS[kernel]
    backward = grad is not None
    chosen = choose(problem, backward)
    if chosen.mixes_channels and differ_in_size(problem, query, value, grad, channels=True):
        chosen = choose(problem, backward, may_mix=False)
    if chosen.spreads_errors and not chosen.mixes_channels and differ_in_size(problem, query, value, grad):
        chosen = choose(problem, backward, may_spread=False, may_mix=False)
    return chosen


GRID_OP = Op(
    "grid_term",
    _forward,
    _backward,
    lambda query, value, table: (*query.shape[:3], value.shape[3]),
    tensors=("query", "value", "table"),
    shared=("table",),
    widen=False,
    statics="SymInt[] grid, SymInt[] origin, str kernel",
)


class _BothTerms(torch.autograd.Function):
    """Output from (query, keys, value, table, grid, origin, kernel); keys (b, u, k, m) are normalised."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:  # type: ignore[override]
        out, lambdas = _both_terms(*args)
        ctx.save_for_backward(*args[:4], lambdas)
        ctx.statics = args[4:]
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        query, keys, value, table, lambdas = ctx.saved_tensors
        with without_autocast(grad.device.type):  # it may be enabled where backward() is called
            if torch.is_grad_enabled() or is_transformed() or is_batched(grad) or is_observed((grad,)):
                grads = _gradients_apart(grad, (query, keys, value, table), ctx.needs_input_grad[:4], ctx.statics)
            else:
                grads = _both_gradients(grad, query, keys, value, table, lambdas, *ctx.statics)
        return (*grads, None, None, None)


def _both_terms(
    query: Tensor, keys: Tensor, value: Tensor, table: Tensor, grid: list[int], origin: list[int], kernel: str
) -> tuple[Tensor, Tensor]:
    """The output and λc."""
    query, keys, value, table = resolved((query, keys, value, table))
    table, problem, _ = _cut(query, value, table, grid, origin)
    chosen = _chosen(kernel, problem, query, value)
    lambdas = content_lambdas(keys, value)
    with Workspace.for_thread() as workspace:
        if chosen.adds_content:
            out = chosen.forward(query, value, table, problem, workspace, lambdas)
        else:
            out = add_content(chosen.forward(query, value, table, problem, workspace), query, lambdas)
    return whole(out), lambdas


def _both_gradients(
    grad: Tensor,
    query: Tensor,
    keys: Tensor,
    value: Tensor,
    table: Tensor,
    lambdas: Tensor,
    grid: list[int],
    origin: list[int],
    kernel: str,
) -> tuple[Tensor, ...]:
    """Gradients of query, keys, value and table."""
    grad, query, keys, value, table = resolved((grad, query, keys, value, table))
    table, problem, pads = _cut(query, value, table, grid, origin)
    chosen = _chosen(kernel, problem, query, value, grad)
    content = lambdas if chosen.adds_content else None
    with Workspace.for_thread() as workspace:
        grad_query, grad_value, grad_table, grad_lambdas = chosen.backward(
            grad, query, value, table, problem, workspace, content
        )
    if grad_lambdas is None:
        part, grad_lambdas = content_gradients(grad, query, lambdas)
        grad_query = grad_query.add_(part)
    grad_keys = grad_lambdas[:, None] @ value.transpose(2, 3)
    for u in range(value.shape[1]):
        _add_product(grad_value[:, u], keys[:, u].transpose(1, 2), grad_lambdas)
    return grad_query, grad_keys, grad_value, _padded(grad_table, pads)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total += left @ right``, as the transposed product where ``total`` is transposed in memory."""
    if total.stride(2) > total.stride(1):
        total.transpose(1, 2).baddbmm_(right.transpose(1, 2), left.transpose(1, 2))
    else:
        total.baddbmm_(left, right)


def _gradients_apart(
    grad: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool], statics: tuple[Any, ...]
) -> tuple[Tensor | None, ...]:
    """Gradients that can be differentiated again: those of each term."""
    further = torch.is_grad_enabled()
    with torch.enable_grad():
        tensors = [
            t if t.requires_grad or not need else t.detach().requires_grad_()
            for t, need in zip(inputs, needed, strict=True)
        ]
        query, keys, value, table = tensors
        out = content_term(query, keys, value, GRID_OP(query, value, table, *statics))
        wanted = [t for t, need in zip(tensors, needed, strict=True) if need]
        found = iter(torch.autograd.grad(out, wanted, grad, create_graph=further))
    return tuple(next(found) if need else None for need in needed)
