"""Numbers of very different sizes, which keep the planner from kernels that spread rounding errors over the grid.

The rounding error of a Fourier transform is in proportion to the largest number of its input, wherever that stands. In
a context that does not see all positions it would show in outputs that do not see that number. So the planner's choice
of such a kernel holds only while the largest value that any query sees is at least 1/``RATIO`` of the largest of all:
an error of ε of the largest is then at most ``RATIO``·ε of a value that the query sees, 1e-5 in float32.

A window of scope r holds one of the blocks of r // 2 + 1 neighbouring positions, or of fewer, wherever it stands, so
one pass over the blocks' maxima decides. In causal order the first queries see no more than themselves; there a block
has 8 positions along each axis, or half of the axis, or what a query sees back. Blocks that leave a large rest at the
end of the axis are taken: a rest of one position is small now and then by chance. In a context that sees all positions
no values have to be compared.

**The table** has offsets that few queries see, in a context that sees all positions too. An output sums all u and k of
the offsets that its query sees, so the largest of these is compared with the largest of the table: exactly, for every
query, since the table is small. Values see the same windows of it in backward.

**The gradient of the table** sums, for each offset, the products of queries, output gradients and values of the pairs
of positions that have it: a window of the grid for each of the two, which ends at one side of it. So the blocks in
backward are no larger than the smallest of these windows, or 8 positions along each axis, or half of the axis; the
offsets from one end of the grid to the other have fewer pairs than that.

In a kernel that mixes channels the error is in proportion to the largest number of all channels, so there the block's
largest value of each channel is compared with the largest value of all channels of the example, in every context.

The compiled library, where there is one, looks at all of it in one pass over memory.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lambdanets.kernels.grid.compiled import binding
from lambdanets.kernels.grid.contract import GridProblem

__all__ = ["RATIO", "answer_unread", "differ_in_size", "largest_seen"]

# The largest value on the grid over the largest in a block.
RATIO = 64
# Positions of a block along an axis where a window may have a single one: in causal order, and in backward.
LEAST_BLOCK = 8


def differ_in_size(
    problem: GridProblem,
    query: Tensor,
    value: Tensor,
    table: Tensor,
    grad: Tensor | None = None,
    *,
    channels: bool = False,
) -> bool:
    """True if rounding errors that spread over the grid would show, as they would for numbers that are not finite.

    Only the numbers of CPUs are read; see :func:`answer_unread` for other devices.

    Args:
        problem: the shape of the call.
        query: (b, h, n, k).
        value: (b, u, n, v).
        table: (u, k, *extents), the reachable offsets.
        grad: (b, h, n, v), gradient of the output; None in the forward pass.
        channels: True if errors spread over the channels too.
    """
    unread = answer_unread(problem)
    if unread is not None:
        return unread
    if _entries_differ(problem, table):
        return True
    if problem.sees_everything and not channels and grad is None:
        return False
    tensors = (query, value) if grad is None else (query, value, grad)
    block = _block(problem, grad is not None)
    if all(tensor.dtype == torch.float32 for tensor in tensors) and binding.check(problem) is None:
        return binding.differ_in_size(problem, query, value, grad, block, channels, RATIO)
    if _differ(problem, value.abs(), block, channels):
        return True
    # The gradient of a value sums the products of queries and gradients in its scope.
    return grad is not None and _differ(
        problem, grad.abs().amax(1) * query.abs().amax((1, 3))[..., None], block, channels
    )


def answer_unread(problem: GridProblem) -> bool | None:
    """The answer where numbers are not read, as reading one would wait for all that runs on the device; None on CPUs.

    It is True for a local or causal context: errors are taken to show. A context that sees all positions is not
    guarded.
    """
    return None if problem.device == "cpu" else not problem.sees_everything


def largest_seen(table: Tensor, grid: Sequence[int], origin: Sequence[int]) -> Tensor:
    """Size of the largest entry that each query sees, (*grid); not finite where one of them is not.

    Args:
        table: (u, k, *extents).
        grid: sizes of the grid.
        origin: index of offset 0 in the table.
    """
    sizes = table.abs().amax((0, 1))
    for axis, (size, before) in enumerate(zip(grid, origin, strict=True)):
        after = sizes.shape[axis] - 1 - before
        place = torch.arange(size, device=table.device)
        # Every query sees offset 0, and from there some places back and some ahead.
        back = sizes.narrow(axis, 0, before + 1).flip(axis).cummax(axis).values
        ahead = sizes.narrow(axis, before, after + 1).cummax(axis).values
        back = back.index_select(axis, place.clamp(max=before))
        ahead = ahead.index_select(axis, (size - 1 - place).clamp(max=after))
        sizes = torch.maximum(back, ahead)
    return sizes


def _entries_differ(problem: GridProblem, table: Tensor) -> bool:
    """True if a query sees only entries below 1/RATIO of the largest one, or one is not finite."""
    least, most = (entry.item() for entry in table.aminmax())
    # Every query sees offset 0, where most tables have entries large enough.
    nearest = table
    for place in reversed(problem.origin):
        nearest = nearest.select(-1, place)
    largest = max(-least, most)
    if nearest.abs().amax().item() * RATIO >= largest and largest < math.inf:
        return False
    smallest = largest_seen(table, problem.grid, problem.origin).amin().item()
    return not (smallest * RATIO >= largest and largest < math.inf)


def _differ(problem: GridProblem, sizes: Tensor, block: Sequence[int], channels: bool) -> bool:
    """True if a block's largest size is below 1/RATIO of the largest on its plane, or on those of all channels.

    Args:
        problem: the shape of the call.
        sizes: (..., n, v), not negative; a plane for each of the others.
        block: positions of a block along each axis.
        channels: True if the largest size is that of all v.
    """
    planes = sizes.transpose(-1, -2)
    blocks = _blocks(planes.unflatten(-1, problem.grid), block)
    smallest, largest = blocks.amin(-1), blocks.amax(-1)
    if channels:
        largest = largest.amax(-1, keepdim=True)
    # Not a comparison that NaN would pass, or infinity.
    return not bool(((smallest * RATIO >= largest) & (largest < math.inf)).all())


def _blocks(images: Tensor, block: Sequence[int]) -> Tensor:
    """The largest of each block, (..., v, blocks), of planes (..., v, *grid)."""
    first = images.ndim - len(block)
    for axis, length in enumerate(block, start=first):
        rest = images.shape[axis] % length
        whole = images.narrow(axis, 0, images.shape[axis] - rest).unflatten(axis, (-1, length)).amax(axis + 1)
        last = images.narrow(axis, images.shape[axis] - rest, rest)
        images = torch.cat([whole, last.amax(axis, keepdim=True)], axis) if rest else whole
    return images.flatten(first)


@functools.lru_cache(maxsize=1024)
def _block(problem: GridProblem, backward: bool) -> list[int]:
    """Positions of a block along each axis."""
    return [_block_of_axis(problem, axis, backward) for axis in range(len(problem.grid))]


def _block_of_axis(problem: GridProblem, axis: int, backward: bool) -> int:
    size, extent, origin = problem.grid[axis], problem.extents[axis], problem.origin[axis]
    least = min(LEAST_BLOCK, -(-size // 2))
    if problem.sees_everything:
        most = size
    elif problem.one_sided:
        most = min(least, origin + 1)
    else:
        most = min(size, origin + 1, extent - origin)
    if backward:
        most = min(most, max(least, size - max(origin, extent - 1 - origin)))
    return _with_large_rest(size, most)


def _with_large_rest(size: int, most: int) -> int:
    """The block of at most ``most`` positions that leaves the largest last block on an axis of ``size``."""
    return max(range(most, 0, -1), key=lambda block: (size - 1) % block + 1)
