"""Ops of PyTorch made of a forward and a backward function.

The library op is opaque: ``torch.compile`` and ``torch.export`` neither break the graph at it nor specialise on sizes,
and its backward pass gets the inputs alone. In eager mode the functions are called directly, since the
dispatcher takes as long as a small kernel (``scripts/measure_eager_path.py`` measures it).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lambdanets.kernels.autograd.derivatives import Forward, second_gradients
from lambdanets.kernels.autograd.layout import resolve_negatives, without_view
from lambdanets.kernels.autograd.modes import (
    is_compiling,
    is_observed,
    is_transformed,
    keep_in_inductor,
    without_autocast,
)
from lambdanets.kernels.precision import widened

__all__ = ["Op"]


class Op:
    """An op with its derivatives, registered as ``lambdanets::name`` and ``lambdanets::name_backward``.

    Args:
        name: of the op.
        forward: (*tensors, *statics) -> output.
        backward: (grad, *tensors, *statics) -> gradient of each tensor that is not in ``constant``.
        tensors: names of the tensor arguments, the query first, with a "value"; their first axis is the batch unless
            they are shared. The output (b, h, n, v) has the query's dtype.
        shared: tensors without a batch axis.
        constant: tensors without a gradient (integers); at least two others must remain.
        nonlinear: empty if the op is linear in each of the others, which gives it derivatives of every order; else the
            message that there are first ones in reverse mode only.
        widen: True if half precision reaches both functions as float32; else the functions widen it themselves.
        statics: schema of the other arguments, as ``"SymInt[] grid, str kernel"``.

    Attributes:
        name: as given, as are ``tensors``, ``shared``, ``nonlinear`` and ``widen``.
        forward_op: the library op.
        backward_op: the library op of its gradients.
        count: number of tensor arguments.
        active: indices of the tensors that have a gradient.
    """

    def __init__(
        self,
        name: str,
        forward: Callable[..., Tensor],
        backward: Callable[..., Sequence[Tensor]],
        *,
        tensors: Sequence[str],
        shared: Sequence[str] = (),
        constant: Sequence[str] = (),
        nonlinear: str = "",
        widen: bool = True,
        statics: str = "",
    ):
        self.name, self.tensors, self.shared, self.nonlinear, self.widen = name, tensors, shared, nonlinear, widen
        self.count, self._value = len(tensors), tensors.index("value")
        self.active = tuple(i for i, tensor in enumerate(tensors) if tensor not in constant)
        self._forward, self._backward = forward, backward
        arguments = ", ".join(f"Tensor {tensor}" for tensor in tensors) + (f", {statics}" if statics else "")
        results = ", ".join(["Tensor"] * len(self.active))
        self.forward_op = torch.library.custom_op(
            f"lambdanets::{name}", self._library_forward, mutates_args=(), schema=f"({arguments}) -> Tensor"
        )
        self.backward_op = torch.library.custom_op(
            f"lambdanets::{name}_backward",
            self._library_backward,
            mutates_args=(),
            schema=f"(Tensor grad, {arguments}) -> ({results})",
        )
        self.forward_op.register_fake(self._fake_forward)
        self.backward_op.register_fake(self._fake_backward)
        self.forward_op.register_autograd(self._registered_gradients, setup_context=self._save)
        self.backward_op.register_autograd(self._registered_second_gradients, setup_context=self._save_with_grad)

    def __call__(self, *args: Any) -> Tensor:
        """The output of (*tensors, *statics), with derivatives."""
        if is_compiling():
            return self.forward_op(*args)
        needs_grad = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in args[: self.count])
        if needs_grad or is_transformed():
            return Forward.apply(self, *args)
        return self.forward_op(*args) if is_observed(args) else self.compute(*args)

    def compute(self, *args: Any) -> Tensor:
        """The output from tensors that hold numbers, no view."""
        tensors = resolve_negatives(args[: self.count])
        first, shape = tensors[0], self.out_shape(*tensors)
        if 0 in shape or any(tensor.numel() == 0 for tensor in tensors):
            return first.new_zeros(shape)
        with without_autocast(first.device.type):
            out = self._forward(*(widened(tensors) if self.widen else tensors), *args[self.count :])
        return without_view(out.to(first.dtype))

    def compute_gradients(self, grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
        """The gradients of the active tensors from tensors that hold numbers, none a view."""
        grad, *tensors = resolve_negatives((grad, *args[: self.count]))
        targets = [tensors[i] for i in self.active]
        if grad.numel() == 0 or any(tensor.numel() == 0 for tensor in tensors):
            return tuple(target.new_zeros(target.shape) for target in targets)
        given = (grad, *tensors)
        with without_autocast(grad.device.type):
            grads = self._backward(*(widened(given) if self.widen else given), *args[self.count :])
        return tuple(without_view(part.to(target.dtype)) for part, target in zip(grads, targets, strict=True))

    def out_shape(self, *tensors: Tensor) -> tuple[int, ...]:
        """Shape of the output, (b, h, n, v)."""
        return (*tensors[0].shape[:3], tensors[self._value].shape[3])

    def at_arguments(self, grads: Sequence[Tensor | None], num_statics: int) -> tuple[Tensor | None, ...]:
        """Gradients of the active tensors at the places of their arguments, None at the others.

        Args:
            grads: one for each of ``active``.
            num_statics: number of arguments after the tensors.
        """
        every: list[Tensor | None] = [None] * (self.count + num_statics)
        for i, grad in zip(self.active, grads, strict=True):
            every[i] = grad
        return tuple(every)

    # The functions of the library ops: their results are contiguous, as the functions for fake tensors promise.

    def _library_forward(self, *args: Any) -> Tensor:
        return self.compute(*args).contiguous()

    def _library_backward(self, *args: Any) -> tuple[Tensor, ...]:
        return tuple(grad.contiguous() for grad in self.compute_gradients(*args))

    def _fake_forward(self, *args: Any) -> Tensor:
        keep_in_inductor(f"lambdanets::{self.name}")
        return args[0].new_empty(self.out_shape(*args[: self.count]))

    def _fake_backward(self, grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
        return tuple(args[i].new_empty(args[i].shape) for i in self.active)

    # The derivatives that torch.compile and torch.export trace; derivatives.py says why they are not the others.

    def _save(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[: self.count])
        ctx.statics = inputs[self.count :]

    def _registered_gradients(self, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grads = self.backward_op(grad, *ctx.saved_tensors, *ctx.statics)
        return self.at_arguments(grads, len(ctx.statics))

    def _save_with_grad(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[: 1 + self.count])
        ctx.statics = inputs[1 + self.count :]

    def _registered_second_gradients(self, ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        return second_gradients(self, ctx.saved_tensors, ctx.statics, cotangents)
