"""Values of very different sizes, which keep the planner from kernels that spread rounding errors over the grid.

The rounding error of a Fourier transform is in proportion to the largest number of its input, wherever that stands. In
a context that does not see all positions it would show in outputs that do not see that number. So the planner's choice
of such a kernel holds only while the largest value that any query sees is at least 1/``RATIO`` of the largest of all:
an error of ε of the largest is then at most ``RATIO``·ε of a value that the query sees, 1e-5 in float32.

A window of scope r holds one of the blocks of r // 2 + 1 neighbouring positions, or of fewer, wherever it stands, so
one pass over the blocks' maxima decides. In causal order the first queries see no more than themselves; there a block
has 8 positions along each axis, or half of the axis, or what a query sees back. Blocks that leave a large rest at the
end of the axis are taken: a rest of one position is small now and then by chance. In a context that sees all positions
nothing has to be compared.

In a kernel that mixes channels the error is in proportion to the largest number of all channels, so there the block's
largest value of each channel is compared with the largest value of all channels of the example, in every context.

The compiled library, where there is one, looks at all of it in one pass over memory.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from lambdanets.kernels.grid.compiled import binding
from lambdanets.kernels.grid.contract import GridProblem

__all__ = ["RATIO", "differ_in_size"]

# The largest value on the grid over the largest in a block.
RATIO = 64
# Positions of a block along an axis in causal order.
CAUSAL_BLOCK = 8


def differ_in_size(
    problem: GridProblem, query: Tensor, value: Tensor, grad: Tensor | None = None, *, channels: bool = False
) -> bool:
    """True if rounding errors that spread over the grid would show, or if finding out would make a GPU wait.

    So they would for numbers that are not finite.

    Args:
        problem: the shape of the call.
        query: (b, h, n, k).
        value: (b, u, n, v).
        grad: (b, h, n, v), gradient of the output; None in the forward pass.
        channels: True if errors spread over the channels too.
    """
    if problem.sees_everything and not channels:
        return False
    if problem.device != "cpu":  # reading a value would wait for all that runs there
        return True
    tensors = (query, value) if grad is None else (query, value, grad)
    if all(tensor.dtype == torch.float32 for tensor in tensors) and binding.check(problem) is None:
        return binding.differ_in_size(problem, query, value, grad, _block(problem), channels, RATIO)
    if _differ(problem, value.abs(), channels):
        return True
    # The gradient of a value sums the products of queries and gradients in its scope.
    return grad is not None and _differ(problem, grad.abs().amax(1) * query.abs().amax((1, 3))[..., None], channels)


def _differ(problem: GridProblem, sizes: Tensor, channels: bool) -> bool:
    """True if a block's largest size is below 1/RATIO of the largest on its plane, or on those of all channels.

    Args:
        problem: the shape of the call.
        sizes: (..., n, v), not negative; a plane for each of the others.
        channels: True if the largest size is that of all v.
    """
    planes = sizes.transpose(-1, -2)
    blocks = _blocks(problem, planes)
    smallest, largest = blocks.amin(-1), blocks.amax(-1)
    if channels:
        largest = largest.amax(-1, keepdim=True)
    # Not a comparison that NaN would pass, or infinity.
    return not bool(((smallest * RATIO >= largest) & (largest < math.inf)).all())


def _blocks(problem: GridProblem, planes: Tensor) -> Tensor:
    """The largest of each block, (..., v, blocks), of planes (..., v, n)."""
    images = planes.unflatten(-1, problem.grid)
    for axis, block in enumerate(_block(problem), start=planes.ndim - 1):
        rest = images.shape[axis] % block
        whole = images.narrow(axis, 0, images.shape[axis] - rest).unflatten(axis, (-1, block)).amax(axis + 1)
        last = images.narrow(axis, images.shape[axis] - rest, rest)
        images = torch.cat([whole, last.amax(axis, keepdim=True)], axis) if rest else whole
    return images.flatten(planes.ndim - 1)


@functools.lru_cache(maxsize=1024)
def _block(problem: GridProblem) -> list[int]:
    """Positions of a block along each axis."""
    if problem.sees_everything:
        return list(problem.grid)
    axes = list(zip(problem.grid, problem.extents, problem.origin, strict=True))
    if problem.one_sided:
        return [_with_large_rest(size, min(CAUSAL_BLOCK, -(-size // 2), origin + 1)) for size, _, origin in axes]
    return [_with_large_rest(size, min(size, origin + 1, extent - origin)) for size, extent, origin in axes]


def _with_large_rest(size: int, most: int) -> int:
    """The block of at most ``most`` positions that leaves the largest last block on an axis of ``size``."""
    return max(range(most, 0, -1), key=lambda block: (size - 1) % block + 1)
