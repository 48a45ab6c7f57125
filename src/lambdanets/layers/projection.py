"""From the input to normalised queries, keys and normalised values."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn.modules import module as nn_module
from torch.nn.modules.conv import _ConvNd

__all__ = ["is_plain", "project"]

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
        return qkv(x).split(list(widths), dim=1)
    if not isinstance(qkv, _ConvNd) or not is_plain(qkv):
        # What it computes is its own affair: all of it twice, and a part of each.
        _, key, value = qkv(context).split(list(widths), dim=1)
        return qkv(x).narrow(1, 0, widths[0]), key, value
    function, weight, first = _FUNCTIONS[type(qkv)], qkv.weight, widths[0]
    bias = (None, None) if qkv.bias is None else (qkv.bias[:first], qkv.bias[first:])
    key_value = function(context, weight[first:], bias[1])
    return (function(x, weight[:first], bias[0]), *key_value.split(list(widths[1:]), dim=1))


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
