"""How tensors lie in memory."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

__all__ = ["empty_in_order", "room"]


def empty_in_order(like: Tensor, depth: int) -> Tensor:
    """An uninitialised (b, h, n, depth) whose axes follow each other in memory as those of ``like`` do.

    A layer's projection of images leaves positions behind the depth, attention modules often leave heads behind the
    positions; what comes back in the same order needs no copy behind it.

    Args:
        like: (b, h, n, any depth).
        depth: of the result.
    """
    b, h, n, _ = like.shape
    _, by_head, by_position, by_depth = like.stride()
    if by_depth > by_position:
        return like.new_empty(b, h, depth, n).transpose(2, 3)
    if by_position > by_head:
        return like.new_empty(b, n, h, depth).transpose(1, 2)
    return like.new_empty(b, h, n, depth)


def room(buffer: Tensor, shape: Sequence[int]) -> Tensor:
    """The front of a flat buffer in another shape."""
    return buffer[: math.prod(shape)].view(*shape)
