"""Checks of inputs and pooling of the layers for feature maps that lambda layers are compared with."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from lambdanets.layers.arguments import check_dtype, check_heads, positive_int
from lambdanets.positions import require_floating

__all__ = ["attention_sizes", "by_heads", "check_map", "pooling"]


def attention_sizes(dim: int, dim_out: int | None, num_heads: int, dim_head: int | None) -> tuple[int, int, int, int]:
    """The sizes of an attention, checked: ``dim``, ``dim_out``, ``num_heads`` and ``dim_head``.

    Args:
        dim: channels of the input.
        dim_out: channels of the output; None for ``dim``.
        num_heads: must divide ``dim_out``.
        dim_head: depth of a head's queries and keys; None for that of its values, dim_out / num_heads.

    Raises:
        ValueError: if one is not a positive int, or the heads do not divide ``dim_out``.
    """
    dim, dim_out = positive_int("dim", dim), positive_int("dim_out", dim if dim_out is None else dim_out)
    num_heads = positive_int("num_heads", num_heads)
    check_heads(num_heads, dim_out)
    dim_head = dim_out // num_heads if dim_head is None else positive_int("dim_head", dim_head)
    return dim, dim_out, num_heads, dim_head


def by_heads(x: Tensor, num_heads: int) -> Tensor:
    """(b, heads · depth, *axes) -> (b, heads, depth, *axes)."""
    # Not unflatten, which the TorchScript exporter of torch.onnx writes with the sizes of the example.
    return x.reshape(x.shape[0], num_heads, x.shape[1] // num_heads, *x.shape[2:])


def pooling(stride: int) -> nn.Module:
    """Return the 3-wide average pooling that comes after a strided layer, as lambda layers have; none for 1."""
    stride = positive_int("stride", stride)
    return nn.Identity() if stride == 1 else nn.AvgPool2d(3, stride, padding=1)


def check_map(layer: nn.Module, x: Tensor, dim: int, projection: nn.Module, size: Sequence[int] | None = None) -> None:
    """Refuse an input that does not fit a layer.

    Args:
        layer: for messages.
        x: the input.
        dim: its number of channels.
        projection: the module that it enters first, whose dtype it must have.
        size: its height and width; None for any.

    Raises:
        TypeError: if it is no floating-point tensor, or of another dtype than the weights without autocast.
        ValueError: if it has another shape, or no example or position.
    """
    name = type(layer).__name__
    require_floating("x", x)
    if x.ndim != 4 or x.shape[1] != dim:
        raise ValueError(f"x must have shape (batch, {dim}, height, width) for {name}(dim={dim}), got {tuple(x.shape)}")
    if x.numel() == 0:
        raise ValueError(f"x must have at least one example and one position, got shape {tuple(x.shape)}")
    if size is not None and tuple(x.shape[2:]) != tuple(size):
        raise ValueError(
            f"x has a map of {tuple(x.shape[2:])}, and this {name} was made for size={tuple(size)}; build one with "
            f"size={tuple(x.shape[2:])}"
        )
    check_dtype("x", x, projection)
