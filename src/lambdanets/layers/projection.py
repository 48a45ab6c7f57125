"""From the input to normalised queries, keys and normalised values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module
from torch.nn.modules.conv import _ConvNd

from lambdanets.functional import is_readable
from lambdanets.kernels.autograd.modes import is_batched, is_transformed
from lambdanets.layers.single_example import guarded

__all__ = ["is_plain", "project"]

# Positions from which a product for each example is faster than a convolution.
PRODUCT_POSITIONS = 32

_FUNCTIONS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Conv1d: nn.functional.conv1d,
    nn.Conv2d: nn.functional.conv2d,
    nn.Conv3d: nn.functional.conv3d,
}


def project(
    qkv: nn.Module,
    norm_query: nn.Module,
    norm_value: nn.Module,
    widths: Sequence[int],
    x: Tensor,
    context: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of ``x``, keys and values of the context, queries and values normalised.

    Args:
        qkv: projection to queries, keys and values, side by side.
        norm_query: normalises queries.
        norm_value: normalises values.
        widths: channels of queries, keys and values.
        x: (b, dim, *grid).
        context: what keys and values are taken from; None for ``x``.

    Returns:
        Three tensors, (b, channels, *grid) each.
    """
    query, key, value = _projected(qkv, widths, x, context)
    # A batch-norm of a slice takes twice as long as that of its copy with the copying; folding it into the
    # projection's weight takes as long at small sizes and saves nothing that can be measured at large ones.
    return guarded(norm_query, query.contiguous()), key, guarded(norm_value, value.contiguous())


def _projected(
    qkv: nn.Module, widths: Sequence[int], x: Tensor, context: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    if context is None:
        if isinstance(qkv, _ConvNd) and _is_product(qkv, x):
            return _products(qkv, widths, x)
        return qkv(x).split(list(widths), dim=1)
    if not isinstance(qkv, _ConvNd) or not is_plain(qkv):
        # What it computes is its own affair: all of it twice, and a part of each.
        _, key, value = qkv(context).split(list(widths), dim=1)
        return qkv(x).narrow(1, 0, widths[0]), key, value
    function, weight, first = _FUNCTIONS[type(qkv)], qkv.weight, widths[0]
    bias = (None, None) if qkv.bias is None else (qkv.bias[:first], qkv.bias[first:])
    key_value = function(context, weight[first:], bias[1])
    return (function(x, weight[:first], bias[0]), *key_value.split(list(widths[1:]), dim=1))


def _is_product(qkv: _ConvNd, x: Tensor) -> bool:
    """Whether :func:`_products` may stand for ``qkv(x)`` and is faster: on a CPU in eager mode."""
    if not (is_readable(x) and is_readable(qkv.weight) and is_plain(qkv)):  # first: sizes may be symbols
        return False
    if is_transformed():
        return False
    is_pointwise = qkv.groups == 1 and qkv.weight.shape[2:].numel() == 1
    is_in_place = all(stride == 1 for stride in qkv.stride) and qkv.padding in ("same", "valid", (0,) * (x.ndim - 2))
    return (
        x.device.type == "cpu"
        and x.dtype == qkv.weight.dtype
        and x.dtype in (torch.float32, torch.float64)
        and x.is_contiguous()
        and x.shape[2:].numel() >= PRODUCT_POSITIONS
        and is_pointwise
        and is_in_place
        and not torch.is_autocast_enabled("cpu")
    )


def _products(qkv: _ConvNd, widths: Sequence[int], x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A 1x1 convolution as products for each example: without the convolution's rearrangements of its input."""
    parts = _PartedProduct.apply(x.flatten(2), qkv.weight.flatten(1), qkv.bias, *widths)
    query, key, value = (part.unflatten(2, x.shape[2:]) for part in parts)
    return query, key, value


class _PartedProduct(torch.autograd.Function):
    """(b, d, n) to (b, width, n) for each width: parts that need not be copied to stand apart, and whose gradients
    need not be put together.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *widths: int) -> tuple[Tensor, ...]:  # type: ignore[override]
        ctx.save_for_backward(x, weight)
        ctx.widths = widths
        weights = _for_each(weight.split(widths), len(x))
        if bias is None:
            return tuple(torch.bmm(part, x) for part in weights)
        biases = bias[:, None].split(widths)
        return tuple(torch.baddbmm(start, part, x) for start, part in zip(biases, weights, strict=True))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            # Many gradients at once may be of one batch in one part and of none in another.
            add = torch.Tensor.baddbmm if any(map(is_batched, grads)) else torch.Tensor.baddbmm_
            first, *others = zip(_for_each(weight.T.split(ctx.widths, dim=1), len(x)), grads, strict=True)
            grad_x = torch.bmm(*first)
            for part, grad in others:
                grad_x = add(grad_x, part, grad)
        if ctx.needs_input_grad[1]:
            grad_weight = torch.cat([torch.bmm(grad, x.transpose(1, 2)).sum(0) for grad in grads])
        if ctx.needs_input_grad[2]:
            grad_bias = torch.cat([grad.sum((0, 2)) for grad in grads])
        return (grad_x, grad_weight, grad_bias, *[None] * len(ctx.widths))


def _for_each(parts: Sequence[Tensor], examples: int) -> list[Tensor]:
    return [part.expand(examples, -1, -1) for part in parts]


def is_plain(module: nn.Module) -> bool:
    """Whether a module is PyTorch's own convolution, and nobody waits for its being called.

    Hooks are one way to wait for it; another is to replace ``forward`` on the object, as offloading does.
    """
    if type(module) not in _FUNCTIONS or "forward" in module.__dict__:
        return False
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or nn_module._has_any_global_hook()
    )
