"""Maps of one query as a figure for papers."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lambdanets.explanation.terms import Array
from lambdanets.figure_text import as_drawn

__all__ = ["COLOURS", "draw"]

COLOURS = "RdBu_r"


def draw(
    maps: dict[str, Array],
    picture: Any,
    grid: tuple[int, ...],
    query: tuple[int, ...] | None,
    rows: list[str],
    title: str,
    scope: tuple[int, ...] | None,
) -> Figure:
    """A row of maps for each head, in one scale around 0.

    Args:
        maps: part -> (rows, *grid).
        picture: (height, width, 3), uint8, or None.
        grid: shape of the positions.
        query: where the query stands; None for a prefix token.
        rows: names of the rows.
        title: stands above.
        scope: extents of a local context, which is outlined; None for a global one.
    """
    shown = picture is not None
    columns = len(maps) + shown
    flat = len(grid) == 1
    figure = Figure(figsize=(2.3 * columns + 0.6, (1.1 if flat else 2.3) * len(rows) + 0.5), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    limit = max((float(np.abs(values).max(initial=0.0)) for values in maps.values()), default=0.0) or 1.0
    image: Any = None
    for row, name in enumerate(rows):
        if shown:
            _picture(axes[row, 0], picture, grid, query)
            axes[row, 0].set_title("query" if row == 0 else "")
        for column, (part, values) in enumerate(maps.items(), start=int(shown)):
            at = axes[row, column]
            plane = _plane(values[row], query)
            image = at.imshow(plane, cmap=COLOURS, vmin=-limit, vmax=limit, aspect="auto" if flat else "equal")
            at.set_title(part if row == 0 else "")
            _mark(at, query, scope)
        axes[row, 0].set_ylabel(name)
    for at in axes.flat:
        at.set_xticks([])
        at.set_yticks([])
    figure.colorbar(image, ax=axes, shrink=0.8, label="weight")
    (drawn,), style = as_drawn([title])
    figure.suptitle(drawn, fontsize=9, **style)
    return figure


def _plane(values: Array, query: tuple[int, ...] | None) -> Array:
    """Two axes of a map: a strip of a sequence, the query's slice of a volume."""
    if values.ndim == 1:
        return values[None]
    if values.ndim == 3:
        return values[query[0] if query else 0]
    return values


def _picture(at: Any, picture: Any, grid: tuple[int, ...], query: tuple[int, ...] | None) -> None:
    rows, columns = (1, *grid)[-2:]
    at.imshow(picture, extent=(-0.5, columns - 0.5, rows - 0.5, -0.5), aspect="auto" if rows == 1 else "equal")
    _mark(at, query, None)


def _mark(at: Any, query: tuple[int, ...] | None, scope: tuple[int, ...] | None) -> None:
    from matplotlib.patches import Rectangle

    if query is None:
        return
    row, column = (0, *query)[-2:]
    at.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="black", linewidth=1.2))
    if scope is not None:
        height, width = (1, *scope)[-2:]
        corner = (column - width / 2, row - height / 2)
        at.add_patch(Rectangle(corner, width, height, fill=False, edgecolor="grey", linewidth=0.8, linestyle="--"))
