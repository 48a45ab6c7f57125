"""From the input to normalised queries, keys and normalised values."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module
from torch.nn.modules.conv import _ConvNd

from lambdanets.functional import is_readable

__all__ = ["is_plain", "project"]

# Positions from which a product for each example is faster than a convolution.
PRODUCT_POSITIONS = 128

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
    return norm_query(query.contiguous()), key, norm_value(value.contiguous())


def _projected(
    qkv: nn.Module, widths: Sequence[int], x: Tensor, context: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    if context is None:
        y = _product(qkv, x) if isinstance(qkv, _ConvNd) and _is_product(qkv, x) else qkv(x)
        return y.split(list(widths), dim=1)
    if not isinstance(qkv, _ConvNd) or not is_plain(qkv):
        # What it computes is its own affair: all of it twice, and a part of each.
        _, key, value = qkv(context).split(list(widths), dim=1)
        return qkv(x).narrow(1, 0, widths[0]), key, value
    function, weight, first = _FUNCTIONS[type(qkv)], qkv.weight, widths[0]
    bias = (None, None) if qkv.bias is None else (qkv.bias[:first], qkv.bias[first:])
    key_value = function(context, weight[first:], bias[1])
    return (function(x, weight[:first], bias[0]), *key_value.split(list(widths[1:]), dim=1))


def _is_product(qkv: _ConvNd, x: Tensor) -> bool:
    """Whether :func:`_product` may stand for ``qkv(x)`` and is faster: on a CPU in eager mode."""
    if not (is_readable(x) and is_readable(qkv.weight) and is_plain(qkv)):  # first: sizes may be symbols
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


def _product(qkv: _ConvNd, x: Tensor) -> Tensor:
    """A 1x1 convolution as a product for each example: without the convolution's rearrangements of its input."""
    weight = qkv.weight.flatten(1).expand(len(x), -1, -1)
    y = torch.bmm(weight, x.flatten(2))
    if qkv.bias is not None:
        y = y + qkv.bias[:, None]
    return y.unflatten(2, x.shape[2:])


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
