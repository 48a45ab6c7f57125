"""Checks of what the maps are asked for: places, heads, classes by number."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np

from lambdanets.explanation.terms import Array, LayerTerms

__all__ = ["Query", "checked_index", "chosen", "query_index"]

Query = int | Sequence[int]


def query_index(terms: LayerTerms, query: Query) -> int:
    """The number of a query among all n of a layer.

    Raises:
        ValueError: if it is outside; the message says what there is.
    """
    n, size = terms.num_queries, " x ".join(map(str, terms.grid))
    counted = f"a number from 0 to {n - 1}" + (f", the first {terms.prefix} for prefix tokens" if terms.prefix else "")
    if isinstance(query, int | np.integer) and not isinstance(query, bool):
        if not 0 <= query < n:
            raise ValueError(f"query must be {counted}, or a place on the grid of {size}, got {query}")
        return int(query)
    try:
        if isinstance(query, str | bytes):
            raise TypeError
        place = tuple(operator.index(at) for at in query)  # type: ignore[union-attr]
    except TypeError:
        place = ()
    inside = len(place) == len(terms.grid) and all(0 <= at < size for at, size in zip(place, terms.grid, strict=True))
    if not inside:
        raise ValueError(f"query must be a place on the grid of {size}, or {counted}, got {query!r}")
    return terms.prefix + int(np.ravel_multi_index(place, terms.grid))


def checked_index(name: str, index: int, count: int) -> int:
    """``index`` if it is an int in [0, count), else a ValueError that names it."""
    if isinstance(index, bool) or not isinstance(index, int | np.integer) or not 0 <= index < count:
        raise ValueError(f"{name} must be an int from 0 to {count - 1}, got {index!r}")
    return int(index)


def chosen(terms: LayerTerms, weights: Array, head: int | None, depth: int | None) -> Array:
    """Of weights (h, u, ...) those of one head, or of all, and of one u, or of all."""
    if depth is not None or terms.intra_depth == 1:
        weights = weights[:, checked_index("depth", 0 if depth is None else depth, terms.intra_depth)]
    return weights if head is None else weights[checked_index("head", head, terms.heads)]
