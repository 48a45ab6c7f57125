"""Numbers of context or table that are not finite: they make exactly those outputs NaN that see them, in every kernel.

A sum over what a query sees is a product with zeros for what it does not see, and zero times NaN is NaN; a Fourier
transform spreads it over the whole grid. So such numbers are taken out of the context before the sums, and the outputs
that see them become NaN afterwards:

- without a causal order the content term sees the whole context, so all outputs of the channel: all kernels give that
  by themselves but those that mix channels. The planner takes none of these for such numbers, so it is done here only
  for one that was named;
- a causal content term sees the positions up to the query;
- the position term on a grid sees the table's extents around the query, a dense E the whole context (a zero in E is
  seen), the edges of a graph their own context positions.

An entry of a grid's table is seen by the queries that have a context position at its offset. Where a kernel mixes
offsets, the entry is taken out of the table inside the op, where the kernel is known; ``portable`` does so too, but
where it is traced, as an exported file holds it: there such an entry may show in every output.

In eager mode on CPUs a pass over the context says that there is nothing to do. A traced or transformed call, and one on
a GPU, where reading a value would wait, always computes both. A file of ``torch.onnx.export(..., dynamo=False)`` does
without: that exporter writes some of these operations wrongly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lambdanets.kernels.autograd.modes import is_eager, is_scripted_onnx_export
from lambdanets.kernels.call import Call
from lambdanets.kernels.grid.planner import GRID_KERNELS
from lambdanets.kernels.grid.spread import largest_seen
from lambdanets.kernels.slices import summed_at
from lambdanets.positions import EdgePositions, GridPositions

__all__ = ["remove_nonfinite", "remove_nonfinite_entries"]


def remove_nonfinite(call: Call) -> tuple[Call, Tensor | None]:
    """The call without the numbers of its context that are not finite, and their effect on the output.

    A key of -inf stays: its weight in the softmax is 0.

    Args:
        call: its mask is applied.

    Returns:
        The call, and a summand of the output, (b, 1, n, v): NaN where a query sees such a number, else 0. It is None
        where all are finite, or the whole context is seen by the content term.
    """
    key, value = call.key, call.value
    if is_scripted_onnx_export():
        return call, None
    if key is not None and not call.causal:
        if call.kernel not in GRID_KERNELS or not GRID_KERNELS[call.kernel].mixes_channels:
            return call, None
        key = None  # which every kernel takes as it is
    if value.device.type == "cpu" and is_eager((value,)) and _is_finite(key, value):
        return call, None
    bad_bumv = ~value.isfinite()
    bad_bmv = bad_bumv.any(1)
    value = value.masked_fill(bad_bumv, 0.0)
    if key is not None:
        bad_bumk = key.isnan() | (key == math.inf)
        bad_bmv = bad_bmv | bad_bumk.any(1).any(2, keepdim=True)
        call = replace(call, key=key.masked_fill(bad_bumk, 0.0))
    # Added, not filled in: a gradient that is NaN stays NaN, which scalers of half precision look for.
    nan_bnv = value.new_zeros(()).masked_fill(_seen(call, bad_bmv), float("nan"))
    return replace(call, value=value), nan_bnv[:, None]


def remove_nonfinite_entries(table: Tensor, grid: Sequence[int], origin: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    """The table without the numbers that are not finite, and the queries that see one of them.

    Args:
        table: (u, k, *extents).
        grid: sizes of the grid.
        origin: index of offset 0 in the table.

    Returns:
        The table with zeros for these numbers, and a bool tensor (n,), or None where all are finite.
    """
    if table.device.type == "cpu" and is_eager((table,)) and math.isfinite(table.detach().sum().item()):
        return table, None
    return table.masked_fill(~table.isfinite(), 0.0), ~largest_seen(table.detach(), grid, origin).isfinite().flatten()


def _is_finite(key: Tensor | None, value: Tensor) -> bool:
    # A sum is the fastest look at all numbers; one that overflows just means more work.
    if not math.isfinite(value.detach().sum().item()):
        return False
    return key is None or key.numel() == 0 or key.detach().amax().item() < math.inf  # False for NaN


def _seen(call: Call, bad_bmv: Tensor) -> Tensor:
    """True where a query sees one of the positions, (b, n, v)."""
    positions, causal = call.positions, call.causal
    if call.key is None and isinstance(positions, GridPositions):
        return _seen_on_grid(positions, bad_bmv, causal)
    if call.key is None and isinstance(positions, EdgePositions):
        query, context = positions.index
        bad_bev = bad_bmv.index_select(1, context)
        if causal:
            bad_bev = bad_bev & (context <= query)[:, None]
        return summed_at(bad_bev.int(), query, call.query.shape[2]) > 0
    if causal:
        return bad_bmv.cumsum(1) > 0
    return bad_bmv.any(1, keepdim=True).expand(-1, call.query.shape[2], -1)


def _seen_on_grid(positions: GridPositions, bad_bmv: Tensor, causal: bool) -> Tensor:
    """True where the table's extents around a query, or their past, hold one of the positions."""
    sides = [extent // 2 for extent in positions.extents]
    # Not unflatten, which TorchScript records with the sizes of the example.
    bad = bad_bmv.reshape(bad_bmv.shape[0], *positions.grid, bad_bmv.shape[2])
    if not causal:
        for axis, side in enumerate(sides, start=1):
            bad = _any_within(bad, axis, side, side)
        return bad.flatten(1, -2)
    # The past in row-major order: along the last axis; then the rows before, whole; and so on to the front.
    last = len(sides)
    seen = _any_within(bad, last, sides[-1], 0)
    earlier = bad
    for axis in range(last - 1, 0, -1):
        earlier = _any_within(earlier, axis + 1, sides[axis], sides[axis])
        seen = seen | _any_within(earlier, axis, sides[axis - 1], -1)
    return seen.flatten(1, -2)


def _any_within(flags: Tensor, axis: int, before: int, after: int) -> Tensor:
    """True where one of the places from ``before`` places back to ``after`` places ahead is True."""
    size = flags.shape[axis]
    counts = torch.cat([flags.narrow(axis, 0, 1).int() * 0, flags.int().cumsum(axis)], dim=axis)
    place = torch.arange(size, device=flags.device)
    stop = (place + after + 1).clamp(max=size)
    start = (place - before).clamp(min=0)
    return counts.index_select(axis, stop) > counts.index_select(axis, start)
