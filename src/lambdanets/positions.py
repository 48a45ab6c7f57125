"""The position embedding E: its numbers and its geometry, not the computation with it.

Letters as in the paper: n queries, m context positions, k query depth, u intra-depth. ``E[n, m]`` is a
(k, u) matrix, shared by all examples of a batch.

=================  ==============================================  ============================
class              E[n, m]                                          memory
=================  ==============================================  ============================
GridPositions      table[offset from n to m], 0 outside the table   the table, whatever n is
DensePositions     embedding[n, m]                                  n · m · k · u
EdgePositions      embedding[e] where index[:, e] = (n, m), else 0  edges · k · u
=================  ==============================================  ============================
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Proxy

__all__ = [
    "DensePositions",
    "EdgePositions",
    "GridPositions",
    "Positions",
    "describe_type",
    "lexicographic_past",
    "pairs_in_reach",
    "require_dense",
    "require_floating",
    "require_index",
    "without_future_edges",
    "without_future_offsets",
]


def describe_type(given: object) -> str:
    """The type of what stands in place of a tensor, for messages; with a remedy where ``torch.fx`` traces it."""
    name = type(given).__name__
    if not isinstance(given, Proxy):
        return name
    return (
        f"{name}; torch.fx.symbolic_trace knows no shapes: call lambda_apply in a function that torch.fx.wrap makes "
        "one node, or use the layers, which are nodes by themselves"
    )


def require_floating(name: str, tensor: object) -> None:
    """Raise a TypeError unless an argument is a dense floating-point tensor."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {describe_type(tensor)}")
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got {tensor.dtype}; convert it with .float()")
    require_dense(name, tensor)


def require_index(name: str, index: object, shape: str) -> None:
    """Raise a TypeError unless an argument is a dense int64 tensor; ``shape`` says in the message what it holds."""
    if not isinstance(index, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor of shape {shape}, int64, got {describe_type(index)}")
    if index.dtype != torch.int64:
        raise TypeError(f"{name} must be an int64 tensor of shape {shape}, got {index.dtype}; use .long()")
    require_dense(name, index)


def require_dense(name: str, tensor: Tensor) -> None:
    """Raise a TypeError if a tensor is sparse or nested."""
    if tensor.is_nested:
        raise TypeError(
            f"{name} must be a dense tensor, got a nested one; use .to_padded_tensor(0.0), and a mask for what it adds"
        )
    if tensor.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got one of layout {tensor.layout}; use .to_dense()")


def lexicographic_past(extents: Sequence[int], origin: Sequence[int], device: torch.device | None = None) -> Tensor:
    """Mask of the offsets that point to the position itself or to one before it in row-major order.

    Args:
        extents: shape of the table of offsets.
        origin: index of offset 0 along each axis.
        device: where the result lives.

    Returns:
        bool tensor of shape ``extents``; entry o is True where offset ``o - origin`` is lexicographically
        at most 0. Row-major order of a grid is the lexicographic order of its coordinates, so for
        n and m on a grid this is exactly m <= n.
    """
    past = torch.ones((), dtype=torch.bool, device=device)
    for extent, centre in reversed(list(zip(extents, origin, strict=True))):
        offset = torch.arange(extent, device=device) - centre
        offset = offset.reshape(-1, *([1] * past.ndim))
        past = (offset < 0) | ((offset == 0) & past)
    return past


def pairs_in_reach(grid: Sequence[int], extents: Sequence[int], origin: Sequence[int]) -> int:
    """Return the number of (query, context position) of a grid whose offset has an entry in the table.

    Args:
        grid: sizes of the grid.
        extents: sizes of the table of offsets.
        origin: place of offset 0 in the table.
    """
    axes = zip(grid, extents, origin, strict=True)
    return math.prod(sum(max(0, size - abs(i - zero)) for i in range(extent)) for size, extent, zero in axes)


def without_future_offsets(table: Tensor, origin: Sequence[int]) -> Tensor:
    """A table of offsets for causal order: 0 for offsets to later positions.

    They are filled, as an entry that is not finite stays so in a product with 0.

    Args:
        table: (u, k, *extents).
        origin: index of offset 0 along each axis.
    """
    return table.masked_fill(~lexicographic_past(table.shape[2:], origin, table.device), 0.0)


def without_future_edges(embedding: Tensor, index: Tensor) -> Tensor:
    """Embeddings of edges for causal order: 0 for edges to later positions.

    Args:
        embedding: (e, k, u).
        index: (2, e), rows (query, context).
    """
    return embedding.masked_fill((index[1] > index[0])[:, None, None], 0.0)


def _sizes(grid: object, extents: tuple[int, ...]) -> tuple[int, ...]:
    """``grid`` as a tuple of sizes, one for each extent."""
    expected = f"{len(extents)} non-negative ints, one for each extent of the table {extents}"
    try:
        given: tuple[object, ...] = tuple(grid)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"positions.grid must be a tuple of {expected}, got {grid!r}") from None
    sizes = tuple(map(_whole_number, given))
    if any(size is None for size in sizes):
        raise TypeError(f"positions.grid must be {expected}, got {given}; a size is a whole number of positions")
    if len(sizes) != len(extents):
        raise ValueError(
            f"positions.grid must be {expected}, got {len(sizes)}: {given}; the table has {len(extents) + 2} "
            "axes, (u, k, *extents)"
        )
    if any(size < 0 for size in sizes):  # type: ignore[operator]
        raise ValueError(f"positions.grid must be {expected}, got {given}; pass the shape of the input's grid")
    return sizes  # type: ignore[return-value]


def _whole_number(size: object) -> int | None:
    """``size`` as an int, or None where it is none; a size that is being traced stays what it is."""
    if isinstance(size, bool) or (isinstance(size, Tensor) and size.dtype == torch.bool):
        return None
    if isinstance(size, int | torch.SymInt) or (isinstance(size, Tensor) and torch.jit.is_tracing()):
        return size  # type: ignore[return-value]
    try:
        return operator.index(size)  # type: ignore[arg-type]
    except TypeError:
        return None


@dataclass(frozen=True, eq=False)
class GridPositions:
    """Relative positions on a grid of rank 1, 2 or 3: a sequence, an image, a volume.

    E[n, m] = table[:, :, m - n] where that offset lies inside the table, else 0 (translation equivariance,
    section 3.2 of the paper). A *global* context on H x W has extents (2H-1, 2W-1), a *local* one of scope r
    has (r, r): they are the same thing. Offsets that no two positions of the grid have are never read, but by the
    kernel ``"portable"``, which multiplies them by zeros.

    Args:
        table: (u, k, *extents), every extent odd; the centre is offset 0.
        grid: shape of the positions, as many axes as the table has extents. The positions are numbered in
            row-major order.

    Raises:
        TypeError: if ``table`` is not a floating-point tensor or ``grid`` not a sequence of ints.
        ValueError: if the rank is not 1, 2 or 3, an extent is even, or ``grid`` does not fit.
    """

    table: Tensor
    grid: tuple[int, ...]

    def __post_init__(self) -> None:
        require_floating("positions.table", self.table)
        rank = self.table.ndim - 2
        if rank not in (1, 2, 3):
            raise ValueError(
                "positions.table must have shape (u, k, *extents) with 1, 2 or 3 extents, "
                f"got shape {tuple(self.table.shape)}"
            )
        extents = self.extents
        if any(extent % 2 == 0 for extent in extents):
            raise ValueError(
                f"positions.table must have odd extents so that its centre is offset 0, got {extents}; "
                "a global table for size s has extent 2s - 1, a local one its odd scope"
            )
        object.__setattr__(self, "grid", _sizes(self.grid, extents))

    @property
    def extents(self) -> tuple[int, ...]:
        """Shape of the table of offsets, without u and k."""
        return tuple(self.table.shape[2:])

    @property
    def intra_depth(self) -> int:
        """The paper's u."""
        return self.table.shape[0]

    @property
    def dim_key(self) -> int:
        """The paper's k."""
        return self.table.shape[1]

    @property
    def num_queries(self) -> int:
        """The paper's n."""
        return math.prod(self.grid)

    @property
    def num_context(self) -> int:
        """The paper's m: on a grid the positions are their own context."""
        return self.num_queries

    def dense(self) -> Tensor:
        """E written out, (n, m, k, u). For the reference and for small grids: n · m · k · u numbers."""
        table = self.table
        inside = torch.ones((), dtype=torch.bool, device=table.device)
        rank = len(self.grid)
        index = []
        for axis, (size, extent) in enumerate(zip(self.grid, self.extents, strict=True)):
            coordinate = torch.arange(size, device=table.device)
            offset = coordinate[None, :] - coordinate[:, None] + extent // 2  # (n_axis, m_axis)
            shape = [1] * (2 * rank)
            shape[axis], shape[rank + axis] = size, size
            offset = offset.reshape(shape)
            inside = inside & (offset >= 0) & (offset < extent)
            index.append(offset.clamp(0, extent - 1))
        # Indexing moves the gathered axes after u and k: (u, k, *grid, *grid).
        everywhere = (slice(None), slice(None), *torch.broadcast_tensors(*index))
        gathered = table[everywhere]
        gathered = torch.where(inside, gathered, gathered.new_zeros(()))
        n = self.num_queries
        return gathered.reshape(self.intra_depth, self.dim_key, n, n).permute(2, 3, 1, 0)


@dataclass(frozen=True, eq=False)
class DensePositions:
    """Any embedding of the relation between a query and a context position, written out in full.

    Args:
        embedding: (n, m, k, u).

    Raises:
        TypeError: if ``embedding`` is not a floating-point tensor.
        ValueError: if it does not have four axes.
    """

    embedding: Tensor

    def __post_init__(self) -> None:
        require_floating("positions.embedding", self.embedding)
        if self.embedding.ndim != 4:
            raise ValueError(
                "positions.embedding must have shape (n, m, k, u) for DensePositions, "
                f"got {tuple(self.embedding.shape)}"
            )

    @property
    def intra_depth(self) -> int:
        """The paper's u."""
        return self.embedding.shape[3]

    @property
    def dim_key(self) -> int:
        """The paper's k."""
        return self.embedding.shape[2]

    @property
    def num_queries(self) -> int:
        """The paper's n."""
        return self.embedding.shape[0]

    @property
    def num_context(self) -> int:
        """The paper's m."""
        return self.embedding.shape[1]

    def dense(self) -> Tensor:
        """The embedding itself, (n, m, k, u)."""
        return self.embedding


@dataclass(frozen=True, eq=False)
class EdgePositions:
    """Embeddings of the edges of a graph: E is zero where there is no edge, and costs nothing there.

    Args:
        index: (2, e) int64, row 0 the query node and row 1 the context node of each edge. Parallel edges
            add up.
        embedding: (e, k, u), one for each edge.
        in_range: the caller knows that every index is in range, so its values are not looked at; on a GPU looking
            waits for it. Default False.

    Raises:
        TypeError: if ``index`` is not int64, ``embedding`` not a floating-point tensor, or ``in_range`` no bool.
        ValueError: if the shapes do not fit each other.
    """

    index: Tensor
    embedding: Tensor
    in_range: bool = False

    def __post_init__(self) -> None:
        require_index("positions.index", self.index, "(2, e)")
        if not isinstance(self.in_range, bool):
            raise TypeError(f"positions.in_range must be True or False, got {self.in_range!r}")
        require_floating("positions.embedding", self.embedding)
        if self.index.ndim != 2 or self.index.shape[0] != 2:
            raise ValueError(
                f"positions.index must have shape (2, e), rows (query, context), got {tuple(self.index.shape)}"
            )
        if self.embedding.ndim != 3 or self.embedding.shape[0] != self.index.shape[1]:
            raise ValueError(
                f"positions.embedding must have shape (e, k, u) with e = {self.index.shape[1]} edges as in "
                f"positions.index, got {tuple(self.embedding.shape)}"
            )

    @property
    def intra_depth(self) -> int:
        """The paper's u."""
        return self.embedding.shape[2]

    @property
    def dim_key(self) -> int:
        """The paper's k."""
        return self.embedding.shape[1]

    def dense(self, num_queries: int, num_context: int) -> Tensor:
        """E written out, (n, m, k, u). For the reference only."""
        shape = (num_queries, num_context, self.dim_key, self.intra_depth)
        return self.embedding.new_zeros(shape).index_put(
            (self.index[0], self.index[1]), self.embedding, accumulate=True
        )


Positions = GridPositions | DensePositions | EdgePositions
