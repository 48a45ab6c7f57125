"""The derivatives of an op, in three forms, since no single one serves all.

- ``torch.compile`` and ``torch.export`` trace the one that is registered with the library op.
- ``torch.func`` transforms and forward mode go through autograd functions with rules for vmap and jvp.
- Everything else goes through one without rules: what PyTorch does around the others takes as long as a small kernel.

A position term is linear in each of its tensors, and so are its gradients. Then every further derivative is a sum of
the same two functions with one tensor replaced: gradients of gradients, tangents, Hessians.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["Inputs", "differentiable", "is_batched", "is_transformed"]

NO_SECOND_DERIVATIVE = (
    "the content term in causal order has first derivatives in reverse mode only; kernel='reference' has all of them"
)


@dataclass(frozen=True)
class Inputs:
    """The tensor arguments of an op.

    Args:
        names: one for each; their first axis is the batch unless they are shared.
        shared: those without a batch axis.
        constant: those without a gradient (integers).
        multilinear: whether the op is linear in each tensor that has a gradient.
    """

    names: tuple[str, ...]
    shared: tuple[str, ...] = ()
    constant: tuple[str, ...] = ()
    multilinear: bool = True

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.names)

    @property
    def active(self) -> tuple[int, ...]:
        """Where those with a gradient stand."""
        return tuple(i for i, name in enumerate(self.names) if name not in self.constant)

    def spread(self, grads: Sequence[Tensor | None], statics: int) -> tuple[Tensor | None, ...]:
        """Gradients of the active tensors put where their arguments stand, None for the others."""
        every: list[Tensor | None] = [None] * (self.count + statics)
        for i, grad in zip(self.active, grads, strict=True):
            every[i] = grad
        return tuple(every)


def differentiable(
    arguments: Inputs,
    forward_op: Any,
    backward_op: Any,
    forward_call: Callable[..., Tensor],
    backward_call: Callable[..., tuple[Tensor, ...]],
) -> Callable[..., Tensor]:
    """Register the op's derivatives.

    Args:
        arguments: its tensor arguments; others follow them.
        forward_op: the library op.
        backward_op: the library op of its gradients.
        forward_call: what computes it in eager mode.
        backward_call: what computes its gradients in eager mode.

    Returns:
        The op with its derivatives, in the form that each call needs.
    """
    forward, backward = _functions(arguments, forward_call, backward_call)
    eager = _eager_function(arguments, forward_call, backward_call, backward_op, backward)

    def gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return arguments.spread(backward_op(grad, *ctx.saved_tensors, *ctx.statics), len(ctx.statics))

    def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[: arguments.count])
        ctx.statics = inputs[arguments.count :]

    forward_op.register_autograd(gradients, setup_context=save)
    backward_op.register_autograd(backward.backward, setup_context=backward.setup_context)

    def apply(*args: Any) -> Tensor:
        if torch.compiler.is_compiling():
            return forward_op(*args)
        if is_transformed():
            return forward.apply(*args)
        if torch.is_grad_enabled() and any(t.requires_grad for t in args[: arguments.count]):
            return eager.apply(*args)
        return forward_call(*args)

    return apply


def is_transformed() -> bool:
    """Whether a torch.func transform or forward mode is at work; yes where PyTorch does not say."""
    active = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)
    return active() or getattr(forward_ad, "_current_level", 0) >= 0


def _eager_function(
    arguments: Inputs, forward_call: Callable[..., Tensor], backward_call: Any, backward_op: Any, backward: Any
) -> Any:
    """The autograd function that has no rules."""

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Tensor:  # type: ignore[override]
            ctx.save_for_backward(*args[: arguments.count])
            ctx.statics = args[arguments.count :]
            return forward_call(*args)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
            call = backward_call
            if torch.is_grad_enabled() or is_transformed():
                call = backward.apply
            elif is_batched(grad):
                call = backward_op
            grads = call(grad, *ctx.saved_tensors, *ctx.statics)
            return arguments.spread(grads, len(ctx.statics))

    return Eager


def is_batched(grad: Tensor) -> bool:
    """Whether many gradients come at once, as with ``is_grads_batched=True``: an op is then called for each."""
    check = getattr(getattr(torch._C, "_functorch", None), "is_legacy_batchedtensor", None)
    return check is not None and check(grad)


def _functions(arguments: Inputs, forward_call: Callable[..., Tensor], backward_call: Any) -> tuple[Any, Any]:
    """The autograd functions of the op and of its gradients, with rules for vmap, jvp and further derivatives."""
    active = arguments.active

    class Backward(torch.autograd.Function):
        """Gradients of the active tensors from (grad, *tensors, *statics)."""

        @staticmethod
        def forward(*args: Any) -> tuple[Tensor, ...]:
            return backward_call(*args)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            _save(ctx, inputs, arguments.count + 1)

        @staticmethod
        def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
            _require(arguments)
            grad, *tensors = ctx.saved_tensors
            total = _Sum()
            totals = {i: _Sum() for i in active}
            for i, cotangent in zip(active, cotangents, strict=True):
                if cotangent is None:
                    continue
                replaced = [*tensors[:i], cotangent, *tensors[i + 1 :]]
                total.add(Forward.apply(*replaced, *ctx.statics))
                for j, part in zip(active, Backward.apply(grad, *replaced, *ctx.statics), strict=True):
                    if j != i:
                        totals[j].add(part)
            return (total.value, *arguments.spread([totals[i].value for i in active], len(ctx.statics)))

        @staticmethod
        def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, ...]:  # type: ignore[override]
            _require(arguments)
            given = ctx.saved_tensors
            totals = {i: _Sum() for i in active}
            for place in (0, *(i + 1 for i in active)):
                tangent = tangents[place]
                if tangent is None:
                    continue
                replaced = [*given[:place], tangent, *given[place + 1 :]]
                for i, part in zip(active, Backward.apply(*replaced, *ctx.statics), strict=True):
                    if i + 1 != place:  # the gradient of a tensor does not depend on it
                        totals[i].add(part)
            return tuple(totals[i].or_zeros(given[i + 1]) for i in active)

        @staticmethod
        def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
            # Each sample has gradients of the shared tensors of its own, which no kernel returns for many at once.
            outs = [Backward.apply(*_sample(in_dims, args, i)) for i in range(info.batch_size)]
            return tuple(torch.stack(grads) for grads in zip(*outs, strict=True)), (0,) * len(active)

    class Forward(torch.autograd.Function):
        """The op itself."""

        @staticmethod
        def forward(*args: Any) -> Tensor:
            return forward_call(*args)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            _save(ctx, inputs, arguments.count)

        @staticmethod
        def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
            statics = len(ctx.statics)
            if grad is None:
                return (None,) * (arguments.count + statics)
            return arguments.spread(Backward.apply(grad, *ctx.saved_tensors, *ctx.statics), statics)

        @staticmethod
        def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:  # type: ignore[override]
            _require(arguments)
            given, total = ctx.saved_tensors, _Sum()
            for i in active:
                if tangents[i] is not None:
                    total.add(Forward.apply(*given[:i], tangents[i], *given[i + 1 :], *ctx.statics))
            return total.value if total.value is not None else torch.zeros_like(Forward.apply(*given, *ctx.statics))

        @staticmethod
        def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
            shared = [name in arguments.shared for name in arguments.names]
            if all(dim is None for dim, is_shared in zip(in_dims, shared, strict=False) if is_shared):
                folded = list(args)  # nothing but more examples
                for i in (i for i, is_shared in enumerate(shared) if not is_shared):
                    folded[i] = _fold(args[i], in_dims[i], info.batch_size)
                return Forward.apply(*folded).unflatten(0, (info.batch_size, -1)), 0
            outs = [Forward.apply(*_sample(in_dims, args, i)) for i in range(info.batch_size)]
            return torch.stack(outs), 0

    return Forward, Backward


class _Sum:
    """A sum that is None until something is added."""

    def __init__(self) -> None:
        self.value: Tensor | None = None

    def add(self, part: Tensor) -> None:
        self.value = part if self.value is None else self.value + part

    def or_zeros(self, like: Tensor) -> Tensor:
        return torch.zeros_like(like) if self.value is None else self.value


def _require(inputs: Inputs) -> None:
    if not inputs.multilinear:
        raise NotImplementedError(NO_SECOND_DERIVATIVE)


def _save(ctx: Any, given: tuple[Any, ...], count: int) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*given[:count])
    ctx.save_for_forward(*given[:count])
    ctx.statics = given[count:]


def _sample(in_dims: Sequence[Any], args: Sequence[Any], index: int) -> list[Any]:
    """One sample of a vmapped call."""
    return [
        arg.select(dim, index) if isinstance(arg, Tensor) and dim is not None else arg
        for dim, arg in zip(in_dims, args, strict=True)
    ]


def _fold(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """Put the vmapped axis in front of the examples: (size · b, ...)."""
    tensor = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return tensor.flatten(0, 1)
