"""Slices of a range, for work that is done a part at a time."""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["slices"]


def slices(total: int, step: int) -> Iterator[slice]:
    """Slices of [0, total) in order, ``step`` long each; the last may be shorter."""
    for first in range(0, total, step):
        yield slice(first, min(first + step, total))
