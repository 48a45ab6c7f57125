"""Checks of what is asked for: models, pictures, names, places, heads, classes by number."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import nn

from lambdanets.explanation.terms import Array, LayerTerms

__all__ = ["Query", "check_input", "checked_index", "checked_names", "chosen", "query_index"]

Query = int | Sequence[int]


def check_input(model: nn.Module, image: Any, transform: Any, picture: Any) -> None:
    """Refuse arguments of :func:`lambdanets.explain` that mean nothing, before the model runs.

    Raises:
        TypeError: if ``model`` is no module, ``picture`` no PIL.Image, or ``transform`` cannot be called.
        ValueError: if ``transform`` is given for something else than a PIL.Image.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if picture is not None and not isinstance(picture, Image.Image):
        raise TypeError(f"picture must be a PIL.Image, got {type(picture).__name__}; use Image.fromarray(picture)")
    if transform is not None and not callable(transform):
        raise TypeError(f"transform must be a function of a PIL.Image, got {transform!r}")
    if transform is not None and not isinstance(image, Image.Image):
        raise ValueError(f"transform is for a PIL.Image, and image is a {type(image).__name__}; leave it out")


def checked_names(argument: str, names: Iterable[str]) -> tuple[str, ...]:
    """Texts of an argument as a tuple.

    Raises:
        TypeError: if it is one text, or holds something else than texts.
        ValueError: if it is empty.
    """
    if isinstance(names, str):
        raise TypeError(f"{argument} must be a sequence of texts, got the text {names!r}; use {argument}=[{names!r}]")
    if not isinstance(names, Iterable):
        raise TypeError(f"{argument} must be a sequence of texts, got {names!r}")
    found = tuple(names)
    if not found:
        raise ValueError(f"{argument} must have at least one text, got none; leave it out for the default")
    if others := [one for one in found if not isinstance(one, str)]:
        raise TypeError(f"{argument} must be a sequence of texts, got {others[0]!r} in it")
    return found


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
