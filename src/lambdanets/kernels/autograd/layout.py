"""The layout of tensors in memory: the order of their axes, views, and signs that are only noted."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lambdanets.kernels.autograd.modes import is_view

__all__ = ["depth_before_positions", "empty_in_order", "resolve_negatives", "without_view"]


def depth_before_positions(tensor: Tensor) -> bool:
    """True if the depth of a tensor (..., n, depth) stands before its positions in memory, as after a convolution."""
    return tensor.stride(-1) > tensor.stride(-2)


def empty_in_order(like: Tensor, depth: int) -> Tensor:
    """An uninitialised (b, h, n, depth) whose axes follow each other in memory as those of ``like`` do.

    A layer's projection of images makes positions the innermost axis, attention modules often have heads inside of
    positions; a result in the same order needs no copy afterwards.

    Args:
        like: (b, h, n, any depth).
        depth: of the result.
    """
    b, h, n, _ = like.shape
    if depth_before_positions(like):
        return like.new_empty(b, h, depth, n).transpose(2, 3)
    if like.stride(2) > like.stride(1):
        return like.new_empty(b, n, h, depth).transpose(1, 2)
    return like.new_empty(b, h, n, depth)


def without_view(tensor: Tensor) -> Tensor:
    """The same memory as a tensor that is no view, so that users may write into an output."""
    if not is_view(tensor):
        return tensor
    return tensor.new_empty(0).set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())


def resolve_negatives(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Tensors whose memory holds their values: kernels read it, and ``z.conj().imag`` only notes that signs change."""
    return tuple(t.resolve_neg() for t in tensors)
