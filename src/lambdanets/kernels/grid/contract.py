"""The contract of a kernel: the inputs that it gets, the work that it counts, and the functions that it provides.

Letters as in the paper: b batch, h heads, n queries, m context positions, k query depth, v value depth,
u intra-depth.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from lambdanets.kernels.autograd.memory import Workspace
from lambdanets.kernels.precision import widened
from lambdanets.kernels.slices import slices

__all__ = [
    "BackwardPass",
    "ForwardPass",
    "Gradients",
    "GridInputs",
    "GridKernel",
    "GridProblem",
    "Work",
]


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

    @classmethod
    def of(
        cls,
        batch: int,
        heads: int,
        dim_key: int,
        dim_value: int,
        intra_depth: int,
        grid: Sequence[int],
        extents: Sequence[int],
        origin: Sequence[int],
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
    ) -> GridProblem:
        """The problem with a table of any extents: only its offsets that two positions of the grid have are reachable.

        Args:
            batch: as of the class, as are the other sizes.
            heads: h.
            dim_key: k.
            dim_value: v.
            intra_depth: u.
            grid: sizes of the grid.
            extents: of the table as it is given; in causal order its first axis ends at offset 0.
            origin: index of offset 0 in that table.
            dtype: element type.
            device: "cpu", "cuda", ...
        """
        reachable, before = [], []
        for size, extent, o in zip(grid, extents, origin, strict=True):
            most = max(size - 1, 0)
            back = min(o, most)
            before.append(back)
            reachable.append(back + 1 + min(extent - 1 - o, most))
        # An extent of 1 looks like causal order too: values are then compared for the planner where there is no need.
        one_sided = extents[0] == origin[0] + 1
        sizes = (batch, heads, dim_key, dim_value, intra_depth)
        return cls(*sizes, tuple(grid), tuple(reachable), tuple(before), dtype, device, one_sided)

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

    def as_image(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """Grid, extents and origin of a problem of rank 1 or 2, a sequence as an image of one row."""
        grid, extents, origin = (1, *self.grid)[-2:], (1, *self.extents)[-2:], (0, *self.origin)[-2:]
        return (grid[0], grid[1]), (extents[0], extents[1]), (origin[0], origin[1])

    def visible(self, axis: int) -> tuple[int, ...]:
        """Number of context places along an axis that a query at each of its places sees."""
        return _visible(self.grid[axis], self.extents[axis], self.origin[axis])


@functools.lru_cache(maxsize=1024)
def _visible(size: int, extent: int, origin: int) -> tuple[int, ...]:
    return tuple(min(size, place - origin + extent) - max(0, place - origin) for place in range(size))


@dataclass(frozen=True, slots=True)
class GridInputs:
    """Tensors of one call, in the shapes that its problem states.

    Args:
        query: (b, h, n, k), with any strides.
        value: (b, u, n, v), with any strides.
        table: (u, k, *extents), the reachable offsets.
        problem: the shape of the call.
        content: λc, (b, k, v), or None for no content term. A kernel without ``adds_content`` leaves it alone.
    """

    query: Tensor
    value: Tensor
    table: Tensor
    problem: GridProblem
    content: Tensor | None = None

    @classmethod
    def of(
        cls,
        query: Tensor,
        value: Tensor,
        table: Tensor,
        grid: Sequence[int],
        origin: Sequence[int],
        content: Tensor | None = None,
    ) -> GridInputs:
        """The inputs with a table of any extents; ``grid`` and ``origin`` as in :meth:`GridProblem.of`."""
        b, h, _, k = query.shape
        _, u, _, v = value.shape
        extents = table.shape[2:]
        problem = GridProblem.of(b, h, k, v, u, grid, extents, origin, query.dtype, query.device.type)
        return cls(query, value, _reachable(table, problem, origin), problem, content)

    def whole_table(self, grad: Tensor, table: Tensor, origin: Sequence[int]) -> Tensor:
        """Undo the cut of :meth:`of` for a gradient: zeros for the offsets of ``table`` that are out of reach."""
        if grad.shape == table.shape:
            return grad
        out = grad.new_zeros(table.shape)
        _reachable(out, self.problem, origin).copy_(grad)
        return out

    def widened(self) -> GridInputs:
        """The inputs with half precision in float32."""
        query, value, table = widened((self.query, self.value, self.table))
        return replace(self, query=query, value=value, table=table, problem=replace(self.problem, dtype=query.dtype))

    def parts(self, examples: int) -> Iterator[tuple[slice, GridInputs]]:
        """Slices of ``examples`` examples at most, each with its inputs."""
        for part in slices(self.problem.batch, examples):
            content = None if self.content is None else self.content[part]
            problem = replace(self.problem, batch=part.stop - part.start)
            yield part, replace(self, query=self.query[part], value=self.value[part], problem=problem, content=content)


def _reachable(table: Tensor, problem: GridProblem, origin: Sequence[int]) -> Tensor:
    """View of the offsets that are in reach; ``origin`` is the index of offset 0 in the whole table."""
    for axis, length in enumerate(problem.extents):
        if length < table.shape[axis + 2]:
            table = table.narrow(axis + 2, origin[axis] - problem.origin[axis], length)
    return table


# Gradients of query, value, table and content (None if content is None), with any strides.
Gradients: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor | None]


@dataclass(frozen=True)
class Work:
    """Operations of a kernel on a problem; the planner turns them into seconds.

    The rates of each kernel are fitted to its measured times (``lambdanets bench --calibrate``), so the counts need to
    grow with a problem as its time does, and need not be exact.

    Args:
        multiply_adds: multiplications with an addition that the kernel does at its highest rate: in matrix products,
            or in Fourier transforms.
        moved: elements written, copied or multiplied one by one besides, at the rate of memory.
        calls: library calls, each with a fixed cost: about as many as PyTorch operations.
    """

    multiply_adds: float
    moved: float
    calls: float


class ForwardPass(Protocol):
    """Forward pass of a kernel."""

    def __call__(self, inputs: GridInputs, workspace: Workspace) -> Tensor:
        """Compute the position term, plus the content term q·λc if there is λc and the kernel adds it.

        Args:
            inputs: of the call; they are left as they are.
            workspace: scratch memory for intermediate results; the output does not lie in it.

        Returns:
            (b, h, n, v), with any strides.
        """


class BackwardPass(Protocol):
    """Backward pass of a kernel, which computes again what it needs from the inputs."""

    def __call__(self, grad: Tensor, inputs: GridInputs, workspace: Workspace) -> Gradients:
        """Compute the gradients of the inputs.

        Args:
            grad: (b, h, n, v), gradient of the output.
            inputs: as in the forward pass.
            workspace: scratch memory; no gradient lies in it.

        Returns:
            See :data:`Gradients`; None for λc too if the kernel leaves it alone.
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
        spreads_nonfinite_entries: True if an entry of the table that is not finite would reach outputs that do not see
            it, through a transform or zeros outside of the grid. The kernel gets the table without such entries (see
            ``terms/finite.py``).
        device: the only type of device that it runs on; None for all.
        half: True if it takes half precision as it is; others get float32.
        compiled: True if it is a function of the library of ``compiled/``.
    """

    name: str
    forward: ForwardPass
    backward: BackwardPass
    check: Callable[[GridProblem], str | None]
    work: Callable[[GridProblem, bool], Work]
    adds_content: bool = False
    spreads_errors: bool = False
    mixes_channels: bool = False
    spreads_nonfinite_entries: bool = False
    device: str | None = None
    half: bool = False
    compiled: bool = False
