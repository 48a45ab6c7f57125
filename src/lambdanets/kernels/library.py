"""How a kernel's forward and backward functions become one op of PyTorch: fake kernel, autograd, vmap.

The op is opaque, so ``torch.compile`` and ``torch.export`` neither break the graph at it nor specialise on sizes,
and its backward pass gets the inputs alone: what is recomputed is the kernel's affair.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

__all__ = ["Op", "define_op"]

_PLAIN = (Tensor, nn.Parameter)
_HALF = (torch.float16, torch.bfloat16)

NO_SECOND_DERIVATIVE = (
    "lambda_apply supports second derivatives with kernel='reference' only; "
    "the fast kernels recompute their backward pass and have no derivative of it"
)


@dataclass(frozen=True)
class Op:
    """An op and what calls it.

    Args:
        forward: the library op.
        backward: the library op of its gradients.
        apply: the op with its derivative; call this one.
    """

    forward: Any
    backward: Any
    apply: Callable[..., Tensor]


def define_op(
    name: str,
    forward: Callable[..., Tensor],
    backward: Callable[..., Sequence[Tensor]],
    out_shape: Callable[..., tuple[int, ...]],
    *,
    tensors: Sequence[str],
    shared: Sequence[str] = (),
    constant: Sequence[str] = (),
    statics: str = "",
) -> Op:
    """Register ``lambdanets::name`` and ``lambdanets::name_backward``.

    Args:
        name: of the op.
        forward: (*tensors, *statics) -> output. Half precision reaches it as float32, so that its sums are.
        backward: (grad, *tensors, *statics) -> gradient of each tensor that is not in ``constant``.
        out_shape: (*tensors) -> shape of the output, which is of the first tensor's dtype.
        tensors: names of the tensor arguments; their first axis is the batch unless they are shared.
        shared: those without a batch axis.
        constant: those without a gradient (integers); at least two others must remain.
        statics: schema of the other arguments, as ``"SymInt[] grid, str kernel"``.
    """
    tail = f", {statics}" if statics else ""
    arguments = ", ".join(f"Tensor {tensor}" for tensor in tensors) + tail
    count = len(tensors)
    active = [i for i, tensor in enumerate(tensors) if tensor not in constant]
    results = ", ".join(["Tensor"] * len(active))

    def compute(*args: Any) -> Tensor:
        given = args[:count]
        shape = out_shape(*given)
        if 0 in shape or any(t.numel() == 0 for t in given):
            return given[0].new_zeros(shape)
        with _without_autocast(given[0].device.type):
            out = forward(*_accumulating(given), *args[count:])
        return out.to(given[0].dtype)

    def compute_backward(grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
        given = args[:count]
        targets = [given[i] for i in active]
        if grad.numel() == 0 or any(t.numel() == 0 for t in given):
            return tuple(t.new_zeros(t.shape) for t in targets)
        with _without_autocast(given[0].device.type):
            grads = backward(*_accumulating((grad, *given)), *args[count:])
        return tuple(g.to(t.dtype) for g, t in zip(grads, targets, strict=True))

    def library_op(suffix: str, schema: str, function: Callable[..., Any], fake: Callable[..., Any]) -> Any:
        op = torch.library.custom_op(f"lambdanets::{name}{suffix}", function, mutates_args=(), schema=schema)
        op.register_fake(fake)
        return op

    # Contiguous, as the fake kernels promise.
    forward_op = library_op(
        "",
        f"({arguments}) -> Tensor",
        lambda *args: compute(*args).contiguous(),
        lambda *args: args[0].new_empty(out_shape(*args[:count])),
    )
    backward_op = library_op(
        "_backward",
        f"(Tensor grad, {arguments}) -> ({results})",
        lambda *args: tuple(grad.contiguous() for grad in compute_backward(*args)),
        lambda grad, *args: tuple(args[i].new_empty(args[i].shape) for i in active),
    )
    calls = _or_direct(forward_op, compute), _or_direct(backward_op, compute_backward)
    return Op(forward_op, backward_op, _differentiable(forward_op, backward_op, *calls, tensors, shared, active))


def _or_direct(op: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """The op, or what it does where nobody watches: the way through the dispatcher costs as much as a small kernel."""

    def call(*args: Any) -> Any:
        watched = is_in_torch_dispatch_mode() or any(
            isinstance(arg, Tensor) and (type(arg) not in _PLAIN or arg.device.type == "meta") for arg in args
        )
        return (op if watched else function)(*args)

    return call


def _without_autocast(device: str) -> AbstractContextManager[Any]:
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def _accumulating(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.float() if t.dtype in _HALF else t for t in tensors]


def _differentiable(
    forward_op: Any,
    backward_op: Any,
    forward_call: Callable[..., Tensor],
    backward_call: Callable[..., tuple[Tensor, ...]],
    tensors: Sequence[str],
    shared: Sequence[str],
    active: Sequence[int],
) -> Callable[..., Tensor]:
    """The derivative in three forms, since no single one serves all.

    torch.compile and torch.export trace the one that is registered with the op; torch.func transforms (per-sample
    gradients) go through autograd functions with a vmap rule; and everything else through one without, since what
    PyTorch does around the others takes as long as a small kernel.
    """
    count = len(tensors)
    batched = [i for i, tensor in enumerate(tensors) if tensor not in shared]
    unbatched = [i for i, tensor in enumerate(tensors) if tensor in shared]

    def save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:count])
        ctx.statics = inputs[count:]

    def spread(ctx: Any, grads: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        every: list[Tensor | None] = [None] * (count + len(ctx.statics))
        for i, grad in zip(active, grads, strict=True):
            every[i] = grad
        return tuple(every)

    def refuse(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        raise NotImplementedError(NO_SECOND_DERIVATIVE)

    def ignore(ctx: Any, inputs: Any, output: Any) -> None:
        return None

    forward_op.register_autograd(
        lambda ctx, grad: spread(ctx, backward_op(grad, *ctx.saved_tensors, *ctx.statics)), setup_context=save
    )
    backward_op.register_autograd(refuse, setup_context=ignore)

    class Backward(torch.autograd.Function):
        @staticmethod
        def forward(*args: Any) -> tuple[Tensor, ...]:
            return backward_call(*args)

        setup_context = staticmethod(ignore)
        backward = staticmethod(refuse)

        @staticmethod
        def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
            # Each sample has gradients of the shared tensors of its own, which no kernel returns for many at once.
            outs = [Backward.apply(*_sample(in_dims, args, i)) for i in range(info.batch_size)]
            return tuple(torch.stack(grads) for grads in zip(*outs, strict=True)), (0,) * len(active)

    class Forward(torch.autograd.Function):
        @staticmethod
        def forward(*args: Any) -> Tensor:
            return forward_call(*args)

        setup_context = staticmethod(save)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
            return spread(ctx, Backward.apply(grad, *ctx.saved_tensors, *ctx.statics))

        @staticmethod
        def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
            if all(in_dims[i] is None for i in unbatched):  # nothing but more examples
                folded = list(args)
                for i in batched:
                    folded[i] = _fold(args[i], in_dims[i], info.batch_size)
                return Forward.apply(*folded).unflatten(0, (info.batch_size, -1)), 0
            outs = [Forward.apply(*_sample(in_dims, args, i)) for i in range(info.batch_size)]
            return torch.stack(outs), 0

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Tensor:  # type: ignore[override]
            save(ctx, args, args[0])
            return forward_call(*args)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
            # With gradients of gradients, or many at once, what they do not support has to be told.
            call = Backward.apply if torch.is_grad_enabled() or _is_transformed() else backward_call
            return spread(ctx, call(grad, *ctx.saved_tensors, *ctx.statics))

    def apply(*args: Any) -> Tensor:
        if torch.compiler.is_compiling():
            return forward_op(*args)
        if _is_transformed():
            return Forward.apply(*args)
        if torch.is_grad_enabled() and any(t.requires_grad for t in args[:count]):
            return Eager.apply(*args)
        return forward_call(*args)

    return apply


def _is_transformed() -> bool:
    """Whether a torch.func transform is at work; yes where PyTorch does not say."""
    return getattr(torch._C, "_are_functorch_transforms_active", lambda: True)()


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
