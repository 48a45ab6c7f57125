"""The shape of one call of the op, as the planner and the kernels' checks see it.

Letters as in the paper: b batch, h heads, n queries, m context positions, k query depth, v value depth,
u intra-depth.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["SMALL_PRODUCT", "GridProblem", "Work", "good_length", "in_parts", "problem_of", "reachable_window"]


# What one small product in a batch of them costs beside its multiply-adds, in moved elements.
SMALL_PRODUCT = 400


def reachable_window(extents: tuple[int, ...], grid: tuple[int, ...], causal: bool) -> tuple[tuple[int, int], ...]:
    """The part of a table of offsets that two positions of the grid can have, as (start, stop) an axis.

    Args:
        extents: odd extents of the table.
        grid: sizes of the grid.
        causal: whether only offsets that are lexicographically at most 0 count: then the first axis ends at
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

    def on(self, device: str) -> GridProblem:
        """The same problem on another device."""
        return replace(self, device=device)

    @property
    def num_positions(self) -> int:
        """N = m."""
        return math.prod(self.grid)

    @property
    def is_global(self) -> bool:
        """Whether every position reaches every other (or, causal, every earlier one)."""
        return all(o == size - 1 for o, size in zip(self.origin, self.grid, strict=True))


def in_parts(problem: GridProblem, examples: int) -> Iterator[tuple[slice, GridProblem]]:
    """Some examples at a time, and the problem that they are."""
    for first in range(0, problem.batch, examples):
        part = slice(first, min(first + examples, problem.batch))
        yield part, replace(problem, batch=part.stop - part.start)


@dataclass(frozen=True)
class Work:
    """What a kernel has to do on a problem, counted; the planner turns it into seconds.

    Args:
        multiply_adds: in matrix products.
        moved: elements written or copied outside of matrix products.
        calls: library calls, each with a fixed cost.
    """

    multiply_adds: float
    moved: float
    calls: float


def problem_of(query: Tensor, value: Tensor, table: Tensor, grid: Sequence[int], origin: Sequence[int]) -> GridProblem:
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
    )


# What a point of a transform costs by how often its length is divisible by 2; 1 from four times on (measured on CPUs).
_COST_BY_TWOS = (2.5, 1.4, 1.25, 1.1)


@functools.lru_cache(maxsize=4096)
def good_length(least: int) -> int:
    """The length >= ``least`` that is the fastest to transform.

    Its prime factors are 2, 3, 5 and 7. Odd lengths take more than twice the time of even ones, so that a few points
    more are often less work.
    """
    best, length = (math.inf, 0), max(1, least)
    while length < best[0]:  # a point costs at least 1
        rest, twos = length, 0
        for prime in (2, 3, 5, 7):
            while rest % prime == 0:
                rest //= prime
                twos += prime == 2
        if rest == 1:
            cost = length * (_COST_BY_TWOS[twos] if twos < len(_COST_BY_TWOS) else 1.0)
            best = min(best, (cost, length))
        length += 1
    return best[1]
