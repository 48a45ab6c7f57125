"""Slices of a range, for work that is done a part at a time, and sums of rows by an index."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

__all__ = ["blocks", "slices", "summed_at"]


def slices(total: int, step: int) -> Iterator[slice]:
    """Slices of [0, total) in order, ``step`` long each; the last may be shorter."""
    for first in range(0, total, step):
        yield slice(first, min(first + step, total))


def blocks(total: int, each: int, most: int) -> Iterator[slice]:
    """Slices of [0, total) of as many as take up to ``most`` numbers, one at the least.

    Args:
        total: how many there are.
        each: numbers that one of them takes.
        most: numbers of a block.
    """
    return slices(total, max(1, most // max(1, each)))


def summed_at(rows: Tensor, index: Tensor, count: int) -> Tensor:
    """Sum of the rows of each index, zeros where there are none.

    Not index_add, which under vmap takes the samples of an index apart and fails where there are none.

    Args:
        rows: (..., rows, channels).
        index: (rows,) int64 in [0, count).
        count: rows of the result.

    Returns:
        (..., count, channels).
    """
    sums = rows.new_zeros(*rows.shape[:-2], count, rows.shape[-1])
    return sums.scatter_add(rows.ndim - 2, index[:, None].expand(rows.shape), rows)
