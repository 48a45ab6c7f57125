"""Takes a checked call apart: content term, position term by the kind of positions, the kernel for it."""

from __future__ import annotations

import torch
from torch import Tensor

from lambdanets.kernels import planner
from lambdanets.kernels.content import content_term
from lambdanets.kernels.ops import grid_term
from lambdanets.kernels.problem import problem_of, reachable_window
from lambdanets.kernels.reference import reference
from lambdanets.positions import GridPositions, Positions, lexicographic_past

__all__ = ["dispatch"]


def dispatch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    positions: Positions | None,
    mask: Tensor | None,
    causal: bool,
    kernel: str | None,
) -> Tensor:
    """Compute a call whose arguments fit each other; see ``lambdanets.lambda_apply``."""
    if kernel is not None:
        planner.require(kernel)
    if kernel == planner.REFERENCE or causal or not isinstance(positions, GridPositions | None):
        return reference(query, key, value, positions, mask, causal)
    if mask is not None:
        # Once, for both terms; and not by a product, so that padding may hold anything, NaN too.
        value = torch.where(mask[:, None, :, None], value, 0.0)
    out = content_term(query, key, value, mask)
    if positions is not None:
        out = out + _grid_position_term(query, value, positions, causal, kernel)
    return out


def _grid_position_term(
    query: Tensor, value: Tensor, positions: GridPositions, causal: bool, kernel: str | None
) -> Tensor:
    """Cut the table to the offsets that occur, then call the op."""
    window = reachable_window(positions.extents, positions.grid, causal)
    origin = [extent // 2 - start for extent, (start, _) in zip(positions.extents, window, strict=True)]
    table = positions.table.to(query.dtype)
    for axis, (start, stop) in enumerate(window, start=2):
        table = table.narrow(axis, start, stop - start)
    if causal and len(positions.grid) > 1:
        table = table * lexicographic_past(table.shape[2:], origin, table.device)
    if kernel is not None:
        planner.require(kernel, problem_of(query, value, table, positions.grid, origin))
    return grid_term(query, value, table, list(positions.grid), origin, kernel or "")
