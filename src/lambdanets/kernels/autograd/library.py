"""How a kernel's forward and backward functions become one op of PyTorch.

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

from lambdanets.kernels.autograd.derivatives import Inputs, differentiable

__all__ = ["HALF", "Op", "define_op", "is_watched", "whole", "widened", "without_autocast"]

_PLAIN = (Tensor, nn.Parameter)
HALF = (torch.float16, torch.bfloat16)


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
    multilinear: bool = True,
    widen: bool = True,
    statics: str = "",
) -> Op:
    """Register ``lambdanets::name`` and ``lambdanets::name_backward``.

    Args:
        name: of the op.
        forward: (*tensors, *statics) -> output.
        backward: (grad, *tensors, *statics) -> gradient of each tensor that is not in ``constant``.
        out_shape: (*tensors) -> shape of the output, which is of the first tensor's dtype.
        tensors: names of the tensor arguments; their first axis is the batch unless they are shared.
        shared: those without a batch axis.
        constant: those without a gradient (integers); at least two others must remain.
        multilinear: whether the op is linear in each of the others, which gives it derivatives of every order.
        widen: whether half precision reaches both functions as float32, so that their sums are; else that is their
            own affair.
        statics: schema of the other arguments, as ``"SymInt[] grid, str kernel"``.
    """
    tail = f", {statics}" if statics else ""
    arguments = ", ".join(f"Tensor {tensor}" for tensor in tensors) + tail
    inputs = Inputs(tuple(tensors), tuple(shared), tuple(constant), multilinear)
    prepared = widened if widen else tuple
    count, active = inputs.count, inputs.active
    results = ", ".join(["Tensor"] * len(active))

    def compute(*args: Any) -> Tensor:
        given = args[:count]
        shape = out_shape(*given)
        if 0 in shape or any(t.numel() == 0 for t in given):
            return given[0].new_zeros(shape)
        with without_autocast(given[0].device.type):
            out = forward(*prepared(given), *args[count:])
        return out.to(given[0].dtype)

    def compute_backward(grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
        given = args[:count]
        targets = [given[i] for i in active]
        if grad.numel() == 0 or any(t.numel() == 0 for t in given):
            return tuple(t.new_zeros(t.shape) for t in targets)
        with without_autocast(given[0].device.type):
            grads = backward(*prepared((grad, *given)), *args[count:])
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
    calls = (
        _or_direct(forward_op, lambda *args: whole(compute(*args))),
        _or_direct(backward_op, lambda *args: tuple(map(whole, compute_backward(*args)))),
    )
    return Op(forward_op, backward_op, differentiable(inputs, forward_op, backward_op, *calls))


def _or_direct(op: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """The op, or what it does where nobody watches: the way through the dispatcher costs as much as a small kernel."""

    def call(*args: Any) -> Any:
        return (op if is_watched(args) else function)(*args)

    return call


def is_watched(args: Sequence[Any]) -> bool:
    """Whether somebody sees each operation: a dispatch mode, a subclass of tensors, tensors without values."""
    if is_in_torch_dispatch_mode():
        return True
    # A loop: this is asked several times a call, and any() over a generator takes twice as long.
    for arg in args:  # noqa: SIM110
        if isinstance(arg, Tensor) and (type(arg) not in _PLAIN or arg.is_meta):
            return True
    return False


def whole(tensor: Tensor) -> Tensor:
    """The same memory as a tensor that is no view, so that users may write into an output."""
    if not tensor._is_view():
        return tensor
    return tensor.new_empty(0).set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())


def without_autocast(device: str) -> AbstractContextManager[Any]:
    """Operations keep the dtypes of their inputs inside."""
    # Asking about a device that has no autocast, as meta, is an error.
    enabled = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if enabled else nullcontext()


def widened(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Tensors of half precision as float32, others as they are."""
    return tuple(t.float() if t.dtype in HALF else t for t in tensors)
