"""How tensors lie in memory, and memory that a kernel needs while it runs.

Fresh memory has a price at every call: a system gives it out page by page, at the first touch of each, and an allocator
gives back what is freed. So kernels keep theirs on CPUs: much of what a call needs beyond its inputs and outputs comes
out of one buffer of the thread, which the next call finds again.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

__all__ = ["contiguous", "empty_in_order", "in_workspace", "padded", "release", "room", "scratch", "workspace"]

P = ParamSpec("P")
R = TypeVar("R")

# The most bytes that a thread keeps.
LARGEST_BUFFER = 64 << 20
# Pieces start where vector instructions want them.
_ALIGNMENT = 64


class _Workspace(threading.local):
    """A thread's buffer: its bytes, how many are given out, and the most that were asked for at once."""

    def __init__(self) -> None:
        self.buffer: Tensor | None = None
        self.views: dict[torch.dtype, Tensor] = {}
        self.depth = self.used = self.wanted = 0

    def keep(self, buffer: Tensor | None) -> None:
        """From now on, the pieces come out of ``buffer``."""
        self.buffer, self.views = buffer, {}

    def of_dtype(self, dtype: torch.dtype) -> Tensor:
        """The buffer as elements of ``dtype``."""
        if dtype not in self.views and self.buffer is not None:
            with torch.inference_mode(False):
                self.views[dtype] = self.buffer.view(dtype)
        return self.views[dtype]


_workspace = _Workspace()


def release() -> None:
    """Give back what this thread keeps."""
    _workspace.keep(None)
    _workspace.wanted = 0


class workspace:  # noqa: N801 - called as a function
    """In here :func:`scratch` may be called; at the end what it gave is anybody's again."""

    def __enter__(self) -> None:
        self.used = _workspace.used
        _workspace.depth += 1

    def __exit__(self, *error: object) -> None:
        _workspace.used, _workspace.depth = self.used, _workspace.depth - 1
        if _workspace.depth == 0:
            _grow(_workspace)


def in_workspace(function: Callable[P, R]) -> Callable[P, R]:
    """The function with a :func:`workspace` of its own at each call."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with workspace():
            return function(*args, **kwargs)

    return call


def _grow(space: _Workspace) -> None:
    size = min(space.wanted, LARGEST_BUFFER)
    if size > (0 if space.buffer is None else space.buffer.numel()):
        space.keep(None)
        with torch.inference_mode(False):
            space.keep(torch.empty(size, dtype=torch.uint8, device="cpu"))


def scratch(like: Tensor, *shape: int) -> Tensor:
    """Uninitialised memory until the :func:`workspace` ends: nothing that a kernel returns may lie in it.

    Args:
        like: of the dtype and on the device wanted.
        shape: of the result.
    """
    space = _workspace
    if space.depth == 0 or like.device.type != "cpu" or type(like) not in (Tensor, torch.nn.Parameter):
        return like.new_empty(shape)
    start, item = space.used, like.element_size()
    space.used += -(-math.prod(shape) * item // _ALIGNMENT) * _ALIGNMENT
    space.wanted = max(space.wanted, space.used)
    if space.buffer is None or space.used > space.buffer.numel():
        return like.new_empty(shape)
    stride, strides = 1, []
    for size in reversed(shape):
        strides.append(stride)
        stride *= size
    return space.of_dtype(like.dtype).as_strided(shape, strides[::-1], start // item)


def contiguous(tensor: Tensor) -> Tensor:
    """The tensor, or a contiguous copy in :func:`scratch`."""
    return tensor if tensor.is_contiguous() else scratch(tensor, *tensor.shape).copy_(tensor)


def padded(tensor: Tensor, pads: Sequence[int]) -> Tensor:
    """``torch.nn.functional.pad`` with zeros, none of ``pads`` below zero, into :func:`scratch`."""
    axes = range(tensor.ndim - 1, tensor.ndim - 1 - len(pads) // 2, -1)
    sides = dict(zip(axes, zip(pads[::2], pads[1::2], strict=True), strict=True))
    out = scratch(tensor, *(size + sum(sides.get(axis, ())) for axis, size in enumerate(tensor.shape))).zero_()
    inside = out
    for axis, (before, _) in sides.items():
        inside = inside.narrow(axis, before, tensor.shape[axis])
    inside.copy_(tensor)
    return out


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
