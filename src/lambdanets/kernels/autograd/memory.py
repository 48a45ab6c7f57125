"""Scratch memory for kernels on CPUs.

Fresh memory has a price at every call: the system hands it out page by page at the first touch, and an allocator
returns what is freed. So each thread keeps one buffer, out of which a call takes what it needs beyond its inputs and
outputs.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Workspace", "front_of", "release"]

# The most bytes that a thread keeps.
LARGEST_BUFFER = 64 << 20
# Pieces start at multiples of this, as vector instructions want.
_ALIGNMENT = 64


class Workspace:
    """Scratch memory for one call at a time; on devices other than CPUs its pieces are fresh memory.

    Pieces are taken inside of a ``with`` block and are free again at its end, so nothing that a kernel returns may lie
    in them. Blocks may be nested: a kernel that works in parts opens one for each.

        with Workspace.for_thread() as workspace:
            return kernel.forward(inputs, workspace)

    Attributes:
        buffer: the bytes that are kept, or None; it grows at the end of a call that needed more.
    """

    def __init__(self) -> None:
        self.buffer: Tensor | None = None
        self._by_dtype: dict[torch.dtype, Tensor] = {}
        self._used = self._wanted = 0
        self._starts: list[int] = []

    @staticmethod
    def for_thread() -> Workspace:
        """The workspace of the current thread."""
        return _threads.workspace

    def __enter__(self) -> Workspace:
        self._starts.append(self._used)
        return self

    def __exit__(self, *error: object) -> None:
        self._used = self._starts.pop()
        if not self._starts and self._wanted > (0 if self.buffer is None else self.buffer.numel()):
            self._grow()

    def scratch(self, like: Tensor, *shape: int) -> Tensor:
        """Uninitialised memory until the ``with`` block ends; fresh memory outside of one.

        Args:
            like: a tensor of the dtype and on the device wanted.
            shape: of the result, which is contiguous.
        """
        if like.device.type != "cpu" or not self._starts:
            return like.new_empty(shape)
        start, item = self._used, like.element_size()
        self._used += -(-math.prod(shape) * item // _ALIGNMENT) * _ALIGNMENT
        self._wanted = max(self._wanted, self._used)
        if self.buffer is None or self._used > self.buffer.numel():
            return like.new_empty(shape)
        stride, strides = 1, []
        for size in reversed(shape):
            strides.append(stride)
            stride *= size
        return self._elements(like.dtype).as_strided(shape, strides[::-1], start // item)

    def contiguous(self, tensor: Tensor) -> Tensor:
        """The tensor, or a contiguous copy in scratch memory."""
        return tensor if tensor.is_contiguous() else self.scratch(tensor, *tensor.shape).copy_(tensor)

    def padded(self, tensor: Tensor, pads: Sequence[int]) -> Tensor:
        """``torch.nn.functional.pad`` with zeros, none of ``pads`` below zero, into scratch memory."""
        axes = range(tensor.ndim - 1, tensor.ndim - 1 - len(pads) // 2, -1)
        sides = dict(zip(axes, zip(pads[::2], pads[1::2], strict=True), strict=True))
        shape = (size + sum(sides.get(axis, ())) for axis, size in enumerate(tensor.shape))
        out = self.scratch(tensor, *shape).zero_()
        inside = out
        for axis, (before, _) in sides.items():
            inside = inside.narrow(axis, before, tensor.shape[axis])
        inside.copy_(tensor)
        return out

    def release(self) -> None:
        """Free the buffer."""
        self.buffer, self._by_dtype, self._wanted = None, {}, 0

    def _elements(self, dtype: torch.dtype) -> Tensor:
        """The buffer as elements of ``dtype``."""
        if dtype not in self._by_dtype and self.buffer is not None:
            with torch.inference_mode(False):
                self._by_dtype[dtype] = self.buffer.view(dtype)
        return self._by_dtype[dtype]

    def _grow(self) -> None:
        size = min(self._wanted, LARGEST_BUFFER)
        if self.buffer is None or size > self.buffer.numel():
            self.buffer, self._by_dtype = None, {}
            with torch.inference_mode(False):
                self.buffer = torch.empty(size, dtype=torch.uint8, device="cpu")


class _Threads(threading.local):
    def __init__(self) -> None:
        self.workspace = Workspace()


_threads = _Threads()


def release() -> None:
    """Free the scratch memory that this thread keeps."""
    Workspace.for_thread().release()


def front_of(buffer: Tensor, shape: Sequence[int]) -> Tensor:
    """The front of a flat buffer in another shape."""
    return buffer[: math.prod(shape)].view(*shape)
