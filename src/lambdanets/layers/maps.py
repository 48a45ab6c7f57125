"""What the layers for feature maps share that lambda layers are compared with: checks of inputs, pooling."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from lambdanets.layers.arguments import check_dtype, positive_int

__all__ = ["check_map", "check_switch", "pooling"]


def pooling(stride: int) -> nn.Module:
    """Return the 3-wide average pooling that a strided layer has behind it, as lambda layers have; none for 1."""
    stride = positive_int("stride", stride)
    return nn.Identity() if stride == 1 else nn.AvgPool2d(3, stride, padding=1)


def check_switch(name: str, given: object) -> bool:
    """Return ``given``; raise a TypeError unless it is True or False."""
    if not isinstance(given, bool):
        raise TypeError(f"{name} must be True or False, got {given!r}")
    return given


def check_map(layer: nn.Module, x: Tensor, dim: int, projection: nn.Module, size: Sequence[int] | None = None) -> None:
    """Refuse an input that a layer does not take.

    Args:
        layer: for messages.
        x: the input.
        dim: channels that it must have.
        projection: the module that it enters first, whose dtype it must have.
        size: height and width that it must have; None for any.

    Raises:
        TypeError: if it is no floating-point tensor, or of another dtype than the weights without autocast.
        ValueError: if it has another shape, or no position.
    """
    name = type(layer).__name__
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a torch.Tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"x must be a floating-point tensor, got {x.dtype}; convert it with .float()")
    if x.ndim != 4 or x.shape[1] != dim:
        raise ValueError(f"x must have shape (batch, {dim}, height, width) for {name}(dim={dim}), got {tuple(x.shape)}")
    if 0 in x.shape[2:]:
        raise ValueError(f"x must have at least one position along each axis of its map, got shape {tuple(x.shape)}")
    if size is not None and tuple(x.shape[2:]) != tuple(size):
        raise ValueError(
            f"x has a map of {tuple(x.shape[2:])}, and this {name} was made for size={tuple(size)}; build one with "
            f"size={tuple(x.shape[2:])}"
        )
    check_dtype("x", x, projection)
