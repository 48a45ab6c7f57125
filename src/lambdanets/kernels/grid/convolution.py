"""Lambda first in a local context, as a convolution: λp = V * table with the value depth as one more batch axis.

PyTorch's convolutions are made for such filters, and skip what lies outside the grid. λp is made for a few examples at
a time and applied to their queries in one pass for each k, with positions along the memory:

    y[h, v, :] += q[h, k, :] · λp[k, v, :].

Multiply-adds: b·n·u·k·v·r² + b·h·n·k·v; kept for backward: the inputs. Backward makes λp again.

Axes in names: b batch, h heads, n positions, k query depth, v value depth, u intra-depth.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from lambdanets.kernels.autograd.memory import Workspace
from lambdanets.kernels.grid.contract import Gradients, GridInputs, GridKernel, GridProblem, Work
from lambdanets.kernels.slices import slices

__all__ = ["KERNEL"]

# Elements of λp that the examples of one step may have.
BLOCK_ELEMENTS = 1 << 20


def check(problem: GridProblem) -> str | None:
    """Return the reason why this kernel cannot run on ``problem``, or None."""
    if problem.sees_all_before and problem.num_positions > 1:
        return "it is for local contexts, and here every position reaches every one before it"
    return None


def _examples(problem: GridProblem) -> int:
    each = problem.num_positions * problem.dim_key * problem.dim_value
    return max(1, min(problem.batch, BLOCK_ELEMENTS // max(1, each)))


def work(problem: GridProblem, backward: bool) -> Work:
    """Multiply-adds, elements of λp and of what its k passes write, and calls."""
    lambdas = problem.batch * problem.num_positions * problem.dim_key * problem.dim_value
    seen = math.prod(sum(problem.visible(axis)) / size for axis, size in enumerate(problem.grid))
    products = lambdas * problem.intra_depth * seen
    passes = lambdas * problem.heads
    steps = math.ceil(problem.batch / _examples(problem))
    if backward:
        return Work(3 * products, 6 * lambdas + 3 * passes, steps * (16 + 4 * problem.dim_key))
    return Work(products, 2 * lambdas + passes, steps * (8 + problem.dim_key))


class _ConvolutionLayout:
    """Images and filters of one call: (b, u, v, *grid) and (k, u, 1, *extents), volumes with v in the batch."""

    def __init__(self, problem: GridProblem):
        self.batch, self.grid, self.extents = problem.batch, problem.grid, problem.extents
        self.intra_depth, self.dim_key, self.dim_value = problem.intra_depth, problem.dim_key, problem.dim_value
        self.step = _examples(problem)
        self.in_batch = len(problem.grid) == 3
        behind = [e - 1 - o for e, o in zip(problem.extents, problem.origin, strict=True)]
        self.pads = [pad for pair in zip(reversed(problem.origin), reversed(behind), strict=True) for pad in pair]
        self.even = list(problem.origin) == behind
        self.padding = [*([] if self.in_batch else [0]), *(problem.origin if self.even else [0] * len(self.grid))]
        self.conv = F.conv2d if len(problem.grid) == 1 else F.conv3d

    def steps(self) -> Iterator[slice]:
        """Examples that go through together."""
        return slices(self.batch, self.step)

    def images(self, value: Tensor) -> Tensor:
        """(b, u, n, v) -> images of a step."""
        images = value.transpose(2, 3)
        if self.in_batch:
            images = images.transpose(1, 2).reshape(-1, self.intra_depth, *self.grid)
        else:
            images = images.reshape(len(value), self.intra_depth, self.dim_value, *self.grid)
        return images if self.even else F.pad(images, self.pads)

    def images_gradient(self, grad: Tensor) -> Tensor:
        """Undo :meth:`images`."""
        if not self.even:
            grad = F.pad(grad, [-pad for pad in self.pads])
        if self.in_batch:
            return grad.reshape(-1, self.dim_value, self.intra_depth, math.prod(self.grid)).permute(0, 2, 3, 1)
        return grad.flatten(3).transpose(2, 3)

    def filters(self, table: Tensor) -> Tensor:
        """(u, k, *extents) -> filters."""
        filters = table.transpose(0, 1).contiguous()
        return filters if self.in_batch else filters.unsqueeze(2)

    def lambdas(self, images: Tensor, filters: Tensor) -> Tensor:
        """λp of a step, (b, k, v, n)."""
        return self.planes(self.conv(images, filters, padding=self.padding))

    def planes(self, out: Tensor) -> Tensor:
        """(b, k, v, *grid), volumes (b v, k, *grid) -> (b, k, v, n)."""
        if self.in_batch:
            return out.unflatten(0, (-1, self.dim_value)).flatten(3).transpose(1, 2)
        return out.flatten(3)

    def from_planes(self, planes: Tensor) -> Tensor:
        """Undo :meth:`planes`."""
        planes = planes.unflatten(3, self.grid)
        return planes.transpose(1, 2).flatten(0, 1) if self.in_batch else planes

    def gradients(self, grad_planes: Tensor, images: Tensor, filters: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of images and filters from that of λp."""
        ones = [1] * (images.ndim - 2)
        grad_images, grad_filters, _ = torch.ops.aten.convolution_backward(
            self.from_planes(grad_planes),
            images,
            filters,
            None,
            ones,
            self.padding,
            ones,
            False,
            [0] * len(ones),
            1,
            [True, True, False],
        )
        return grad_images, grad_filters


# Geometry alone, so calls of one shape share it.
_layout = functools.lru_cache(maxsize=256)(_ConvolutionLayout)


def forward(inputs: GridInputs, workspace: Workspace) -> Tensor:
    """Forward pass, as in ``contract.py``."""
    layout, query, value = _layout(inputs.problem), inputs.query, inputs.value
    filters = layout.filters(inputs.table)
    query_bhkn = query.transpose(2, 3)
    out_bhvn = query.new_empty(*query.shape[:2], layout.dim_value, query.shape[2])
    for step in layout.steps():
        lambda_bkvn = layout.lambdas(layout.images(value[step]), filters)
        out, parts = out_bhvn[step], query_bhkn[step]
        torch.mul(parts[:, :, 0, None], lambda_bkvn[:, None, 0], out=out)
        for k in range(1, layout.dim_key):
            out.addcmul_(parts[:, :, k, None], lambda_bkvn[:, None, k])
    return out_bhvn.transpose(2, 3)


def backward(grad: Tensor, inputs: GridInputs, workspace: Workspace) -> Gradients:
    """Backward pass, as in ``contract.py``."""
    layout, query, value = _layout(inputs.problem), inputs.query, inputs.value
    filters = layout.filters(inputs.table)
    query_bhkn, grad_bhvn = query.transpose(2, 3), grad.transpose(2, 3)
    grad_query_bhkn = query.new_empty(query_bhkn.shape)
    grad_value, grad_filters = value.new_empty(value.shape), torch.zeros_like(filters)
    for step in layout.steps():
        images, part_bhkn, grad_part = layout.images(value[step]), query_bhkn[step], grad_bhvn[step].contiguous()
        lambda_bkvn = layout.lambdas(images, filters)
        grad_lambda_bkvn = torch.empty_like(lambda_bkvn)
        for k in range(layout.dim_key):
            torch.sum(grad_part * lambda_bkvn[:, None, k], dim=2, out=grad_query_bhkn[step, :, k])
            torch.sum(part_bhkn[:, :, k, None] * grad_part, dim=1, out=grad_lambda_bkvn[:, k])
        grad_images, grad_part_filters = layout.gradients(grad_lambda_bkvn, images, filters)
        grad_value[step] = layout.images_gradient(grad_images)
        grad_filters += grad_part_filters
    grad_table = grad_filters if layout.in_batch else grad_filters.squeeze(2)
    return grad_query_bhkn.transpose(2, 3), grad_value, grad_table.transpose(0, 1), None


KERNEL = GridKernel("convolution", forward, backward, check, work)
