"""Rules for the derivatives of an op: the two autograd functions that all ops share.

A position term is linear in each of its tensors, and so are its gradients. Every further derivative is then a sum of
the same two functions with one tensor replaced: gradients of gradients, tangents, Hessians.

Three sets of rules have the same formulas, since each serves programs that the others cannot:

===================================  ===========================================  =====================================
program                              rule                                         why none of the others
===================================  ===========================================  =====================================
eager, without gradients             none: ``Op.compute``
eager, with gradients                ``Forward`` and ``Backward``, here           registered rules are reached through
                                                                                  the dispatcher, which takes as long
                                                                                  as a small kernel
                                                                                  (results/eager_path.csv)
eager, both terms on a grid          ``_BothTerms`` in ``terms/grid.py``: first   two functions read and write the
                                     derivatives only                             output twice (the same file)
gradients of gradients, with         ``Forward`` and ``Backward``;                ``_BothTerms`` has no derivatives of
``create_graph=True``                ``_BothTerms`` calls them                    its backward pass
``torch.func``: vmap, grad, jvp,     ``Forward`` and ``Backward``                 registered rules have neither vmap
jacobians; forward-mode duals                                                     nor jvp
``torch.compile``, ``torch.export``  registered in ``library.py``                 autograd functions are traced into:
                                                                                  the kernel for the sizes at hand
                                                                                  would be fixed in the graph
many gradients at once               ``Forward``, then the library op of the      kernels work on one gradient; the
(``is_grads_batched=True``)          gradients, which the dispatcher calls for    dispatcher takes the batch apart
                                     each of them
tensor subclasses, dispatch modes    ``Forward``, then the library ops            a subclass or mode sees what passes
                                                                                  the dispatcher only
===================================  ===========================================  =====================================

``Op.__call__`` chooses among the rules of one op, ``grid_terms`` between one op and both terms.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lambdanets.kernels.autograd.modes import is_batched, is_observed, is_transformed

if TYPE_CHECKING:
    from lambdanets.kernels.autograd.library import Op

__all__ = ["Forward", "gradients_by_autograd", "second_gradients"]


class Forward(torch.autograd.Function):
    """The output of an op, from (op, *tensors, *statics)."""

    @staticmethod
    def forward(op: Op, *args: Any) -> Tensor:
        """Compute without derivatives."""
        return op.forward_op(*args) if _needs_library_op(args) else op.compute(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Save the tensors and the other arguments."""
        _save(ctx, inputs, inputs[0].count)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Gradients of the arguments."""
        op, args = ctx.op, (*ctx.saved_tensors, *ctx.statics)
        if grad is None:
            return (None,) * (1 + len(args))
        if torch.is_grad_enabled() or is_transformed():
            grads = Backward.apply(op, grad, *args)
        elif _needs_library_op((grad, *args)):
            grads = op.backward_op(grad, *args)
        else:
            grads = op.compute_gradients(grad, *args)
        return (None, *op.at_arguments(grads, len(ctx.statics)))

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:  # type: ignore[override]
        """Tangent from the tangents of the arguments."""
        op, given = ctx.op, ctx.saved_tensors
        _require_linear(op)
        total = None
        for i in op.active:
            tangent = tangents[1 + i]
            if tangent is not None:
                total = _sum(total, Forward.apply(op, *given[:i], tangent, *given[i + 1 :], *ctx.statics))
        return torch.zeros_like(Forward.apply(op, *given, *ctx.statics)) if total is None else total

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], op: Op, *args: Any) -> tuple[Tensor, int]:
        """All samples, along a first axis."""
        dims = in_dims[1:]
        if all(dim is None for dim, name in zip(dims, op.tensors, strict=False) if name in op.shared):
            batched = [i for i, name in enumerate(op.tensors) if name not in op.shared]
            folded = list(args)
            for i in batched:  # the samples are more examples
                folded[i] = _fold(args[i], dims[i], info.batch_size)
            out = Forward.apply(op, *folded)
            examples = args[batched[0]].shape[0 if dims[batched[0]] != 0 else 1]
            return out.unflatten(0, (info.batch_size, examples)), 0
        if info.batch_size == 0:
            return args[0].new_empty(0, *op.out_shape(*_shapes(dims, args, op.count))), 0
        return torch.stack([Forward.apply(op, *_sample(dims, args, i)) for i in range(info.batch_size)]), 0


class Backward(torch.autograd.Function):
    """The gradients of an op's active tensors, from (op, grad, *tensors, *statics)."""

    @staticmethod
    def forward(op: Op, *args: Any) -> tuple[Tensor, ...]:
        """Compute without derivatives."""
        return op.backward_op(*args) if _needs_library_op(args) else op.compute_gradients(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Save the tensors and the other arguments."""
        _save(ctx, inputs, 1 + inputs[0].count)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Gradients of the arguments."""
        return (None, *second_gradients(ctx.op, ctx.saved_tensors, ctx.statics, cotangents))

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Tangent from the tangents of the arguments."""
        op, given = ctx.op, ctx.saved_tensors
        _require_linear(op)
        totals: dict[int, Tensor | None] = dict.fromkeys(op.active)
        for place in (0, *(i + 1 for i in op.active)):
            tangent = tangents[1 + place]
            if tangent is None:
                continue
            replaced = [*given[:place], tangent, *given[place + 1 :]]
            for i, part in zip(op.active, Backward.apply(op, *replaced, *ctx.statics), strict=True):
                if i + 1 != place:  # the gradient of a tensor does not depend on it
                    totals[i] = _sum(totals[i], part)
        return tuple(torch.zeros_like(given[i + 1]) if total is None else total for i, total in totals.items())

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], op: Op, *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        """All samples, along a first axis."""
        # Each sample has its own gradients of the shared tensors, and no kernel returns those of many at once.
        dims, places = in_dims[1:], (0,) * len(op.active)
        if info.batch_size == 0:
            shapes = _shapes(dims, args, 1 + op.count)
            return tuple(args[1 + i].new_empty(0, *shapes[1 + i].shape) for i in op.active), places
        outs = [Backward.apply(op, *_sample(dims, args, i)) for i in range(info.batch_size)]
        return tuple(torch.stack(grads) for grads in zip(*outs, strict=True)), places


# PyTorch asks for the signature at each call, and working it out takes as long as a small kernel.
for _function in (Forward.forward, Backward.forward):
    _function.__signature__ = inspect.signature(_function)  # type: ignore[union-attr]


def second_gradients(
    op: Op, saved: Sequence[Tensor], statics: Sequence[Any], cotangents: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """Gradients of (grad, *tensors, *statics) in the op's gradients.

    Args:
        op: the op.
        saved: grad and the op's tensors.
        statics: its other arguments.
        cotangents: gradient of each of the op's gradients, or None.
    """
    _require_linear(op)
    grad, *tensors = saved
    of_grad, totals = None, dict.fromkeys(op.active)
    for i, cotangent in zip(op.active, cotangents, strict=True):
        if cotangent is None:
            continue
        replaced = [*tensors[:i], cotangent, *tensors[i + 1 :]]
        of_grad = _sum(of_grad, Forward.apply(op, *replaced, *statics))
        for j, part in zip(op.active, Backward.apply(op, grad, *replaced, *statics), strict=True):
            if j != i:
                totals[j] = _sum(totals[j], part)
    return (of_grad, *op.at_arguments(list(totals.values()), len(statics)))


def gradients_by_autograd(
    compute: Callable[..., tuple[Sequence[Tensor], Sequence[Tensor]]],
    tensors: Sequence[Any],
    needed: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients by autograd, themselves differentiable where gradients are recorded.

    Args:
        compute: returns outputs of the tensors, and the gradient of each output.
        tensors: its arguments, of which those whose gradient is not wanted may be None.
        needed: True for each tensor whose gradient is wanted.

    Returns:
        A gradient for each tensor, None where it is not wanted.
    """
    further = torch.is_grad_enabled()
    with torch.enable_grad():
        # Other tensors than the given ones, of which one may stand in several places.
        own = [
            t if not need else t.view_as(t) if t.requires_grad else t.detach().requires_grad_()
            for t, need in zip(tensors, needed, strict=True)
        ]
        outs, grads = compute(*own)
        wanted = [t for t, need in zip(own, needed, strict=True) if need]
        found = iter(torch.autograd.grad(outs, wanted, grads, create_graph=further))
    return tuple(next(found) if need else None for need in needed)


def _needs_library_op(args: Sequence[Any]) -> bool:
    """True if PyTorch has to see the op: a dispatch mode is active, or a tensor stands for many."""
    return is_observed(args) or any(map(is_batched, args))


def _sum(total: Tensor | None, part: Tensor) -> Tensor:
    return part if total is None else total + part


def _require_linear(op: Op) -> None:
    if op.nonlinear:
        raise NotImplementedError(op.nonlinear)


def _save(ctx: Any, inputs: tuple[Any, ...], count: int) -> None:
    ctx.set_materialize_grads(False)
    ctx.op, *given = inputs
    ctx.save_for_backward(*given[:count])
    ctx.save_for_forward(*given[:count])
    ctx.statics = tuple(given[count:])


def _sample(dims: Sequence[Any], args: Sequence[Any], index: int) -> list[Any]:
    """The arguments of one sample of a vmapped call."""
    return [
        arg.select(dim, index) if isinstance(arg, Tensor) and dim is not None else arg
        for dim, arg in zip(dims, args, strict=True)
    ]


def _shapes(dims: Sequence[Any], args: Sequence[Any], count: int) -> list[Tensor]:
    """Tensors without values, of the shapes that one sample's tensors have."""
    return [
        torch.empty([size for axis, size in enumerate(arg.shape) if axis != dim], device="meta")
        for dim, arg in zip(dims[:count], args[:count], strict=True)
    ]


def _fold(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """Put the vmapped axis in front of the examples: (size · b, ...)."""
    tensor = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return tensor.flatten(0, 1)
