"""Takes a checked call apart: content term, position term by the kind of positions, the kernel for it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lambdanets.kernels import decompositions  # noqa: F401  # registers them
from lambdanets.kernels.autograd.library import HALF, without_autocast
from lambdanets.kernels.grid import planner
from lambdanets.kernels.grid.problem import problem_of, reachable_window
from lambdanets.kernels.portable import portable, summed_by_graph
from lambdanets.kernels.reference import reference
from lambdanets.kernels.terms.causal_content import causal_content_term
from lambdanets.kernels.terms.content import content_term, normalise
from lambdanets.kernels.terms.dense import dense_term
from lambdanets.kernels.terms.edges import edges_term
from lambdanets.kernels.terms.finite import set_apart
from lambdanets.kernels.terms.graph_content import segment_content_term, segment_softmax
from lambdanets.kernels.terms.grid import grid_term
from lambdanets.kernels.terms.joint import can_join, joint_term
from lambdanets.positions import (
    DensePositions,
    EdgePositions,
    GridPositions,
    Positions,
    lexicographic_past,
)

__all__ = ["dispatch", "dispatch_by_graph"]


def dispatch(
    query: Tensor,
    key: Tensor | None,
    value: Tensor,
    positions: Positions | None,
    mask: Tensor | None,
    causal: bool,
    kernel: str | None,
) -> Tensor:
    """Compute a call whose arguments fit each other; see ``lambdanets.lambda_apply``."""
    if kernel is not None:
        _require(kernel, positions)
    if torch.jit.is_tracing():
        kernel = _traceable(kernel)
        if isinstance(positions, EdgePositions):
            _refuse_scripted_onnx()

    def compute(query: Tensor, key: Tensor | None, value: Tensor) -> Tensor:
        return _masked_terms(query, key, value, positions, mask, causal, kernel)

    if isinstance(positions, GridPositions) and planner.takes_half(kernel, query.device.type):
        return compute(query, key, value)
    return _rounded_once(compute, query, key, value)


def dispatch_by_graph(
    query: Tensor, key: Tensor, value: Tensor, positions: EdgePositions | None, batch: Tensor, num_graphs: int
) -> Tensor:
    """Compute the nodes of many graphs; see ``lambdanets.functional.lambda_apply_by_graph``."""
    traced = torch.jit.is_tracing()
    if traced:
        _refuse_scripted_onnx()

    def compute(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        content_term = summed_by_graph if traced else segment_content_term
        out = content_term(query, segment_softmax(key, batch, num_graphs), value, batch, num_graphs)
        if positions is None:
            return out
        if traced:
            return out + portable(query, None, value, positions, causal=False)
        return out + _position_term(query, value, positions, causal=False)

    return _rounded_once(compute, query, key, value)


def _rounded_once(compute: Callable[..., Tensor], query: Tensor, key: Tensor | None, value: Tensor) -> Tensor:
    """Terms of half precision in float32: where they oppose each other, each one's rounding is more than the sum's."""
    if query.dtype not in HALF:
        return compute(query, key, value)
    with without_autocast(query.device.type):
        out = compute(query.float(), None if key is None else key.float(), value.float())
    return out.to(query.dtype)


def _masked_terms(
    query: Tensor,
    key: Tensor | None,
    value: Tensor,
    positions: Positions | None,
    mask: Tensor | None,
    causal: bool,
    kernel: str | None,
) -> Tensor:
    if kernel == planner.REFERENCE or 0 in (query.shape[2], value.shape[2]):  # nothing to be fast at
        return reference(query, key, value, positions, mask, causal)
    if mask is not None:
        # Once, for both terms; and not by a product, so that padding may hold anything, NaN too. Keys get the
        # smallest number, not -inf: an example without any visible position would become NaN.
        hidden = ~mask[:, None, :, None]
        key = None if key is None else key.masked_fill(hidden, torch.finfo(key.dtype).min)
        value = value.masked_fill(hidden, 0.0)
    if kernel == planner.PORTABLE:
        return portable(query, key, value, positions, causal)
    if not causal:
        return _terms(query, key, value, positions, causal, kernel)
    key, value, seen = set_apart(key, value)
    out = _terms(query, key, value, positions, causal, kernel)
    return out if seen is None else out + seen


def _terms(
    query: Tensor, key: Tensor | None, value: Tensor, positions: Positions | None, causal: bool, kernel: str | None
) -> Tensor:
    """Content and position term of a call without a mask."""
    if positions is None:
        return _content_term(query, key, value, causal)
    if isinstance(positions, GridPositions):
        return _grid_terms(query, key, value, positions, causal, kernel)
    out = _position_term(query, value, positions, causal)
    return out if key is None else _content_term(query, key, value, causal, out)


def _traceable(kernel: str | None) -> str:
    """A tracer records operations with the sizes of one example, which only plain ones survive."""
    if torch.onnx.is_in_onnx_export():  # kernels give the same numbers, and none is known there
        return planner.PORTABLE
    if kernel not in (None, planner.REFERENCE, planner.PORTABLE):
        raise ValueError(
            f"kernel={kernel!r} cannot be traced by torch.jit.trace; leave kernel=None, which traces "
            f"{planner.PORTABLE!r}, or use torch.export or torch.compile"
        )
    return kernel or planner.PORTABLE


def _refuse_scripted_onnx() -> None:
    """Raise a ValueError in an ONNX export by TorchScript, which adds up entries of one index wrongly."""
    if torch.onnx.is_in_onnx_export():
        raise ValueError(
            "a graph's edges and nodes cannot be exported by torch.onnx.export(..., dynamo=False), which would write a "
            "file with other numbers; use dynamo=True, PyTorch's default"
        )


def _content_term(
    query: Tensor, key: Tensor | None, value: Tensor, causal: bool, other: Tensor | None = None
) -> Tensor:
    if key is None:
        raise ValueError("key must be given where positions is None")
    if not causal:
        return content_term(query, normalise(key), value, other)
    content = causal_content_term(query, key, value)
    return content if other is None else content + other


def _position_term(query: Tensor, value: Tensor, positions: DensePositions | EdgePositions, causal: bool) -> Tensor:
    embedding = positions.embedding
    if embedding.dtype not in HALF or query.dtype != torch.float32:  # half precision: the op widens a part at a time
        embedding = embedding.to(query.dtype)
    if isinstance(positions, EdgePositions):
        if causal:
            future = positions.index[1] > positions.index[0]
            embedding = embedding.masked_fill(future[:, None, None], 0.0)
        return edges_term(query, value, positions.index, embedding)
    if causal:
        n = embedding.shape[0]
        past = torch.ones(n, n, dtype=torch.bool, device=embedding.device).tril()
        embedding = embedding.masked_fill(~past[..., None, None], 0.0)
    return dense_term(query, value, embedding)


def _require(kernel: str, positions: Positions | None) -> None:
    planner.require(kernel)
    if kernel not in planner.PLAIN and not isinstance(positions, GridPositions):
        given = "no positions" if positions is None else type(positions).__name__
        raise ValueError(
            f"kernel={kernel!r} cannot run here: it is for GridPositions, got {given}, which has one way only; "
            "leave kernel=None"
        )


def _grid_terms(
    query: Tensor, key: Tensor | None, value: Tensor, positions: GridPositions, causal: bool, kernel: str | None
) -> Tensor:
    """Both terms on a grid, at once where that can be."""
    table, origin = _reachable_table(positions, query.dtype, causal)
    if kernel is not None:
        planner.require(kernel, problem_of(query, value, table, positions.grid, origin))
    call = (list(positions.grid), origin, kernel or "")
    if key is not None and not causal and can_join(query, key, value, table):
        return joint_term(query, normalise(key), value, table, *call)
    out = grid_term(query, value, table, *call)
    return out if key is None else _content_term(query, key, value, causal, out)


def _reachable_table(positions: GridPositions, dtype: torch.dtype, causal: bool) -> tuple[Tensor, list[int]]:
    """The table cut to the offsets that occur, and where offset 0 stands in it."""
    extents = positions.extents
    # Without a grid's sizes in it, an exported program serves every grid, and a convolution's filters are constant.
    grid = extents if torch.compiler.is_exporting() else positions.grid
    window = reachable_window(extents, grid, causal)
    origin = [extent // 2 - start for extent, (start, _) in zip(extents, window, strict=True)]
    table = positions.table.to(dtype)
    for axis, (extent, (start, stop)) in enumerate(zip(extents, window, strict=True), start=2):
        if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
            # A view's contiguity depends on whether anything was cut off: a guard, and so a graph, for each answer.
            table = table.index_select(axis, torch.arange(start, stop, device=table.device))
        elif stop - start < extent:
            table = table.narrow(axis, start, stop - start)
    if causal and len(positions.grid) > 1:
        table = table * lexicographic_past(table.shape[2:], origin, table.device)
    return table, origin
