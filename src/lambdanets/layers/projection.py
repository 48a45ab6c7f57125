"""From the input to normalised queries, keys and normalised values."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

# Input elements, in squares of the channels, from which norms are folded into the weight: below, the passes over the
# weight cost more than those over queries and values that they save.
FOLD_ABOVE = 8

__all__ = ["is_plain", "project", "scale_and_shift"]

_PLAIN = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


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
    plain = qkv if isinstance(qkv, _ConvNd) and is_plain(qkv) else None
    folded = None
    # While a graph is traced, sizes must not decide: they would become its guards.
    if plain is not None and (torch.compiler.is_compiling() or x.numel() >= FOLD_ABOVE * plain.in_channels**2):
        folded = _fold(plain, norm_query, norm_value, widths)
    if folded is not None:
        return _apply(*folded, widths, x, context)
    if context is None:
        query, key, value = qkv(x).split(list(widths), dim=1)
    elif plain is not None:
        query, key, value = _apply(plain.weight, plain.bias, widths, x, context)
    else:
        # What it computes is its own affair: all of it twice, and a part of each.
        query = qkv(x).narrow(1, 0, widths[0])
        _, key, value = qkv(context).split(list(widths), dim=1)
    return norm_query(query), key, norm_value(value)


def _pays(x: Tensor) -> bool:
    """Whether folding is the shorter way; a compiler, for which it is one, gets no branch on a size."""
    return torch.compiler.is_compiling() or x.numel() >= FOLD_ABOVE * x.shape[1] ** 2


def _apply(
    weight: Tensor, bias: Tensor | None, widths: Sequence[int], x: Tensor, context: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    function = (nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d)[weight.ndim - 3]
    if context is None:
        return function(x, weight, bias).split(list(widths), dim=1)
    first = widths[0]
    query = function(x, weight[:first], None if bias is None else bias[:first])
    key_value = function(context, weight[first:], None if bias is None else bias[first:])
    return (query, *key_value.split(list(widths[1:]), dim=1))


def _fold(
    qkv: _ConvNd, norm_query: nn.Module, norm_value: nn.Module, widths: Sequence[int]
) -> tuple[Tensor, Tensor] | None:
    """Weight and bias of the projection with the norms folded in, or None where they must be called.

    A batch-norm in evaluation is a scale and a shift for each channel: in the weight they save two passes over
    queries and values. In half precision the product would be rounded once more, and a shift is rounded before it
    cancels against the mean, so there the norms are called.
    """
    weight, bias = qkv.weight, qkv.bias
    if weight.dtype not in (torch.float32, torch.float64) or _is_autocast(weight.device.type):
        return None
    query, value = scale_and_shift(norm_query), scale_and_shift(norm_value)
    if query is None or value is None or not weight.dtype == query[0].dtype == value[0].dtype:
        return None
    scale = torch.cat([query[0], weight.new_ones(widths[1]), value[0]])
    shift = torch.cat([query[1], weight.new_zeros(widths[1]), value[1]])
    weight = weight * scale.view(-1, *[1] * (weight.ndim - 1))
    return weight, shift if bias is None else torch.addcmul(shift, bias, scale)


def _is_autocast(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def scale_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor] | None:
    """What a batch-norm in evaluation does to each channel; None for any other norm, and while one is trained."""
    if not isinstance(norm, _BatchNorm) or norm.training or not is_plain(norm):
        return None
    if norm.running_mean is None or norm.running_var is None:
        return None
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.affine:
        scale = norm.weight * scale
        return scale, torch.addcmul(norm.bias, norm.running_mean, scale, value=-1)
    return scale, -norm.running_mean * scale


def is_plain(module: nn.Module) -> bool:
    """Whether a module is PyTorch's own convolution or batch-norm, and nobody waits for its being called.

    Hooks are one way to wait for it; another is to replace ``forward`` on the object, as offloading does.
    """
    if type(module) not in _PLAIN or "forward" in module.__dict__:
        return False
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or nn_module._has_any_global_hook()
    )
