"""The contract of a kernel: the problem that it gets, the work that it counts, and the functions that it provides.

Letters as in the paper: b batch, h heads, n queries, m context positions, k query depth, v value depth,
u intra-depth.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from lambdanets.kernels.autograd.memory import Workspace
from lambdanets.kernels.slices import slices

__all__ = [
    "SMALL_PRODUCT",
    "Backward",
    "Forward",
    "GridKernel",
    "GridProblem",
    "Work",
    "in_parts",
    "problem_of",
    "reachable_window",
]

# What one small product in a batch of them costs beside its multiply-adds, in moved elements.
SMALL_PRODUCT = 400


def reachable_window(extents: tuple[int, ...], grid: tuple[int, ...], causal: bool) -> tuple[tuple[int, int], ...]:
    """The part of a table of offsets that two positions of the grid can have, as (start, stop) an axis.

    Args:
        extents: odd extents of the table.
        grid: sizes of the grid.
        causal: True if only offsets that are lexicographically at most 0 count: then the first axis ends at
            offset 0.
    """
    window = []
    for axis, (extent, size) in enumerate(zip(extents, grid, strict=True)):
        centre = extent // 2
        reach = min(centre, max(size - 1, 0))
        stop = centre + 1 if causal and axis == 0 else centre + reach + 1
        window.append((centre - reach, stop))
    return tuple(window)


@dataclass(frozen=True)
class GridProblem:
    """One position term on a grid: y[b,h,n] = Σ_mu (q[b,h,n] · E[n,m,u]) V[b,u,m].

    Args:
        batch: b.
        heads: h.
        dim_key: k.
        dim_value: v.
        intra_depth: u.
        grid: sizes of the grid; n = m = their product.
        extents: extents of the reachable part of the table.
        origin: index of offset 0 in that part.
        dtype: element type of queries and values.
        device: "cpu", "cuda", ...
        one_sided: True if the table ends at offset 0 along its first axis, as in causal order: a query may then see
            nothing but itself. Default False.
    """

    batch: int
    heads: int
    dim_key: int
    dim_value: int
    intra_depth: int
    grid: tuple[int, ...]
    extents: tuple[int, ...]
    origin: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    one_sided: bool = False

    @property
    def num_positions(self) -> int:
        """Number of positions, n = m."""
        return math.prod(self.grid)

    @property
    def is_empty(self) -> bool:
        """True if an axis has no elements."""
        sizes = (self.batch, self.heads, self.dim_key, self.dim_value, self.intra_depth, *self.grid)
        return 0 in sizes

    @property
    def sees_all_before(self) -> bool:
        """True if the table has all offsets back: every position reaches every one before it along each axis."""
        return all(o == size - 1 for o, size in zip(self.origin, self.grid, strict=True))

    @property
    def sees_everything(self) -> bool:
        """True if every position reaches every other."""
        whole = all(extent >= 2 * size - 1 for extent, size in zip(self.extents, self.grid, strict=True))
        return whole and not self.one_sided

    def visible(self, axis: int) -> tuple[int, ...]:
        """Number of context places along an axis that a query at each of its places sees."""
        return _visible(self.grid[axis], self.extents[axis], self.origin[axis])


@functools.lru_cache(maxsize=1024)
def _visible(size: int, extent: int, origin: int) -> tuple[int, ...]:
    return tuple(min(size, place - origin + extent) - max(0, place - origin) for place in range(size))


def in_parts(problem: GridProblem, examples: int) -> Iterator[tuple[slice, GridProblem]]:
    """Slices of ``examples`` examples at most, each with its problem."""
    for part in slices(problem.batch, examples):
        yield part, replace(problem, batch=part.stop - part.start)


@dataclass(frozen=True)
class Work:
    """Operations of a kernel on a problem; the planner turns them into seconds.

    Args:
        multiply_adds: in matrix products.
        moved: elements written or copied outside of matrix products.
        calls: library calls, each with a fixed cost.
    """

    multiply_adds: float
    moved: float
    calls: float


class Forward(Protocol):
    """Forward pass of a kernel."""

    def __call__(
        self,
        query: Tensor,
        value: Tensor,
        table: Tensor,
        problem: GridProblem,
        workspace: Workspace,
        content: Tensor | None = None,
    ) -> Tensor:
        """Compute the position term, plus the content term q·λc if the kernel adds it.

        Args:
            query: (b, h, n, k), with any strides.
            value: (b, u, n, v), with any strides.
            table: (u, k, *extents), the reachable offsets.
            problem: the shape of the call.
            workspace: scratch memory for intermediate results; the output does not lie in it.
            content: λc, (b, k, v), or None for no content term. Always None for a kernel without ``adds_content``.

        Returns:
            (b, h, n, v), with any strides; the inputs are left as they are.
        """


class Backward(Protocol):
    """Backward pass of a kernel, which computes again what it needs from the inputs."""

    def __call__(
        self,
        grad: Tensor,
        query: Tensor,
        value: Tensor,
        table: Tensor,
        problem: GridProblem,
        workspace: Workspace,
        content: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Compute the gradients for the arguments of :class:`Forward`.

        Args:
            grad: (b, h, n, v), gradient of the output.
            query: as in the forward pass, as are the arguments behind it.
            value: (b, u, n, v).
            table: (u, k, *extents).
            problem: the shape of the call.
            workspace: scratch memory; no gradient lies in it.
            content: λc, (b, k, v), or None.

        Returns:
            Gradients of query, value, table, and content (None if content is None), with any strides.
        """


@dataclass(frozen=True)
class GridKernel:
    """A method for the position term of a grid. Each kernel's file ends with its ``KERNEL``.

    Args:
        name: value of ``kernel=`` in the public functions.
        forward: the forward pass.
        backward: the backward pass.
        check: the reason why the kernel cannot run on a problem, or None.
        work: operations on (problem, backward).
        adds_content: True if the kernel adds the content term; else it is added to the output afterwards.
        spreads_errors: True if rounding errors of a value reach outputs outside of its scope, as those of a Fourier
            transform do. The planner then keeps the kernel from values of very different sizes (see ``spread.py``).
        mixes_channels: True if rounding errors and NaN of one channel of the values reach others too, as those of a
            transform do that takes two channels as real and imaginary part. Such a kernel spreads errors as well.
        device: the only type of device that it runs on; None for all.
        half: True if it takes half precision as it is; others get float32.
    """

    name: str
    forward: Forward
    backward: Backward
    check: Callable[[GridProblem], str | None]
    work: Callable[[GridProblem, bool], Work]
    adds_content: bool = False
    spreads_errors: bool = False
    mixes_channels: bool = False
    device: str | None = None
    half: bool = False


def problem_of(
    query: Tensor,
    value: Tensor,
    table: Tensor,
    grid: Sequence[int],
    origin: Sequence[int],
    one_sided: bool = False,
) -> GridProblem:
    """The shape of a call, for the planner."""
    return GridProblem(
        batch=query.shape[0],
        heads=query.shape[1],
        dim_key=query.shape[3],
        dim_value=value.shape[3],
        intra_depth=value.shape[1],
        grid=tuple(grid),
        extents=tuple(table.shape[2:]),
        origin=tuple(origin),
        dtype=query.dtype,
        device=query.device.type,
        one_sided=one_sided,
    )
