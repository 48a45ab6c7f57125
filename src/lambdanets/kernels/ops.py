"""The position term on a grid as one ``torch.library`` op with its fake kernel, autograd and vmap.

One op serves all kernels: which one runs is decided inside, from the sizes at hand, so that ``torch.compile``
and ``torch.export`` neither specialise on them nor break the graph. The forward and the backward pass choose
each for themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lambdanets.kernels.planner import GRID_KERNELS, GridKernel, choose
from lambdanets.kernels.problem import GridProblem, problem_of

__all__ = ["grid_term", "grid_term_backward_op", "grid_term_op"]

_HALF = (torch.float16, torch.bfloat16)


def _pick(kernel: str, problem: GridProblem, backward: bool) -> GridKernel:
    return GRID_KERNELS[kernel] if kernel else choose(problem, backward)


def _accumulating(*tensors: Tensor) -> list[Tensor]:
    """Half precision is computed in float32, so that the sums over the context are."""
    return [t.float() if t.dtype in _HALF else t for t in tensors]


@torch.library.custom_op(
    "lambdanets::grid_term",
    mutates_args=(),
    schema="(Tensor query, Tensor value, Tensor table, SymInt[] grid, SymInt[] origin, str kernel) -> Tensor",
)
def grid_term_op(
    query: Tensor, value: Tensor, table: Tensor, grid: Sequence[int], origin: Sequence[int], kernel: str
) -> Tensor:
    """y[b,h,n] = Σ_mu (q[b,h,n] · E[n,m,u]) V[b,u,m] with E[n,m] = table[m - n + origin], 0 outside.

    Args:
        query: (b, h, n, k).
        value: (b, u, n, v).
        table: (u, k, *extents), cut to the reachable offsets.
        grid: sizes of the grid, n their product.
        origin: index of offset 0 in the table.
        kernel: a name from the planner's table, or "" for its choice.

    Returns:
        (b, h, n, v), contiguous.
    """
    if query.numel() == 0 or value.numel() == 0:
        return query.new_zeros(*query.shape[:3], value.shape[3])
    chosen = _pick(kernel, problem_of(query, value, table, grid, origin), backward=False)
    with torch.autocast(query.device.type, enabled=False):
        out = chosen.forward(*_accumulating(query, value, table), list(grid), list(origin))
    return out.to(query.dtype).contiguous()


@grid_term_op.register_fake
def _grid_term_fake(
    query: Tensor, value: Tensor, table: Tensor, grid: Sequence[int], origin: Sequence[int], kernel: str
) -> Tensor:
    return query.new_empty(query.shape[0], query.shape[1], query.shape[2], value.shape[3])


@torch.library.custom_op(
    "lambdanets::grid_term_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor query, Tensor value, Tensor table, SymInt[] grid, SymInt[] origin, "
    "str kernel) -> (Tensor, Tensor, Tensor)",
)
def grid_term_backward_op(
    grad: Tensor,
    query: Tensor,
    value: Tensor,
    table: Tensor,
    grid: Sequence[int],
    origin: Sequence[int],
    kernel: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`grid_term_op` in query, value and table, from its inputs alone."""
    if grad.numel() == 0 or query.numel() == 0 or value.numel() == 0:
        return (
            query.new_zeros(query.shape),
            value.new_zeros(value.shape),
            table.new_zeros(table.shape),
        )
    chosen = _pick(kernel, problem_of(query, value, table, grid, origin), backward=True)
    with torch.autocast(query.device.type, enabled=False):
        grads = chosen.backward(*_accumulating(grad, query, value, table), list(grid), list(origin))
    query_grad, value_grad, table_grad = grads
    # Contiguous, as the fake kernel promises.
    return (
        query_grad.to(query.dtype).contiguous(),
        value_grad.to(value.dtype).contiguous(),
        table_grad.to(table.dtype).contiguous(),
    )


@grid_term_backward_op.register_fake
def _grid_term_backward_fake(
    grad: Tensor,
    query: Tensor,
    value: Tensor,
    table: Tensor,
    grid: Sequence[int],
    origin: Sequence[int],
    kernel: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), value.new_empty(value.shape), table.new_empty(table.shape)


NO_SECOND_DERIVATIVE = (
    "lambda_apply supports second derivatives with kernel='reference' only; "
    "the fast kernels recompute their backward pass and have no derivative of it"
)


def _refuse(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    raise NotImplementedError(NO_SECOND_DERIVATIVE)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.grid, ctx.origin, ctx.kernel = inputs
    ctx.save_for_backward(*tensors)


def _op_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grads = grid_term_backward_op(grad, *ctx.saved_tensors, ctx.grid, ctx.origin, ctx.kernel)
    return (*grads, None, None, None)


# The same derivative twice, since no single way serves all: torch.compile and torch.export trace the one that is
# registered with the op, torch.func transforms (per-sample gradients) go through the autograd functions only.
grid_term_op.register_autograd(_op_backward, setup_context=_save)
grid_term_backward_op.register_autograd(_refuse, setup_context=lambda ctx, inputs, output: None)


class _GridTerm(torch.autograd.Function):
    """The op for eager mode."""

    @staticmethod
    def forward(
        query: Tensor, value: Tensor, table: Tensor, grid: list[int], origin: list[int], kernel: str
    ) -> Tensor:
        return grid_term_op(query, value, table, grid, origin, kernel)

    setup_context = staticmethod(_save)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        grads = _GridTermBackward.apply(grad, *ctx.saved_tensors, ctx.grid, ctx.origin, ctx.kernel)
        return (*grads, None, None, None)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
        if in_dims[2] is None:  # one table for all: more examples, nothing else
            query, value = _fold_examples(in_dims[:2], args[:2], info.batch_size)
            return _GridTerm.apply(query, value, *args[2:]).unflatten(0, (info.batch_size, -1)), 0
        outs = [_GridTerm.apply(*_unbatch(in_dims, args, i)) for i in range(info.batch_size)]
        return torch.stack(outs), 0


class _GridTermBackward(torch.autograd.Function):
    """The backward op, with an error instead of second derivatives."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
        return grid_term_backward_op(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    backward = staticmethod(_refuse)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        # Each sample has a gradient of the table of its own, which no kernel returns for many at once.
        outs = [_GridTermBackward.apply(*_unbatch(in_dims, args, i)) for i in range(info.batch_size)]
        return tuple(torch.stack(grads) for grads in zip(*outs, strict=True)), (0, 0, 0)


def _unbatch(in_dims: Sequence[Any], args: Sequence[Any], index: int) -> list[Any]:
    return [
        arg.select(dim, index) if isinstance(arg, Tensor) and dim is not None else arg
        for dim, arg in zip(in_dims, args, strict=True)
    ]


def _fold_examples(in_dims: Sequence[int | None], tensors: Sequence[Tensor], size: int) -> list[Tensor]:
    """Put the vmapped dimension in front of the examples: (size · b, ...)."""
    return [
        (t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0)).flatten(0, 1)
        for dim, t in zip(in_dims, tensors, strict=True)
    ]


def grid_term(
    query: Tensor, value: Tensor, table: Tensor, grid: Sequence[int], origin: Sequence[int], kernel: str = ""
) -> Tensor:
    """The op with its derivative; see :func:`grid_term_op`."""
    call = grid_term_op if torch.compiler.is_compiling() else _GridTerm.apply
    return call(query, value, table, list(grid), list(origin), kernel)
