"""From a checked call to the terms of its sum."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from lambdanets.kernels.autograd.library import HALF, widened
from lambdanets.kernels.autograd.modes import is_jit_tracing, without_autocast
from lambdanets.kernels.call import Call
from lambdanets.kernels.grid import planner
from lambdanets.kernels.portable import portable
from lambdanets.kernels.reference import reference
from lambdanets.kernels.terms.content import any_content_term
from lambdanets.kernels.terms.dense import dense_positions_term
from lambdanets.kernels.terms.edges import edge_positions_term
from lambdanets.kernels.terms.finite import set_apart
from lambdanets.kernels.terms.graph_content import segment_content_term, segment_softmax
from lambdanets.kernels.terms.grid import grid_terms
from lambdanets.positions import DensePositions, EdgePositions, GridPositions

__all__ = ["dispatch", "dispatch_by_graph"]


def dispatch(call: Call) -> Tensor:
    """Compute a call; see ``lambdanets.lambda_apply``."""
    call, dtype = _with_kernel(call), call.query.dtype
    with without_autocast(call.query.device.type):
        if dtype in HALF and not _takes_half(call):
            # Both terms in float32: where they oppose each other, the rounding of each is more than that of the sum.
            call = call.widened()
        call, unseen = set_apart(call.masked())
        if call.kernel == planner.REFERENCE or call.has_nothing_to_sum:
            out = reference(call)
        elif call.kernel == planner.PORTABLE:
            out = portable(call)
        elif isinstance(call.positions, GridPositions):
            out = grid_terms(call, call.positions)
        elif isinstance(call.positions, DensePositions):
            out = any_content_term(call, dense_positions_term(call, call.positions))
        elif isinstance(call.positions, EdgePositions):
            out = any_content_term(call, edge_positions_term(call, call.positions))
        else:
            out = any_content_term(call)
        if unseen is not None:
            out = out + unseen
    return out.to(dtype)


def dispatch_by_graph(
    query: Tensor, key: Tensor, value: Tensor, positions: EdgePositions | None, batch: Tensor, num_graphs: int
) -> Tensor:
    """Compute the nodes of many graphs; see ``lambdanets.functional.lambda_apply_by_graph``."""
    dtype = query.dtype
    with without_autocast(query.device.type):
        query, key, value = widened((query, key, value))
        out = segment_content_term(query, segment_softmax(key, batch, num_graphs), value, batch, num_graphs)
        if positions is not None:
            out = out + edge_positions_term(Call(query, key, value, positions), positions)
    return out.to(dtype)


def _with_kernel(call: Call) -> Call:
    """The call if its kernel can serve it.

    Raises:
        ValueError: if there is no kernel of the name, or it is not for these positions or for tracing.
    """
    kernel = call.kernel
    if kernel is not None:
        planner.require(kernel)
        if kernel not in planner.PLAIN and not isinstance(call.positions, GridPositions):
            given = "no positions" if call.positions is None else type(call.positions).__name__
            raise ValueError(
                f"kernel={kernel!r} cannot run here: it is for GridPositions, got {given}, which has one method only; "
                "leave kernel=None"
            )
    if not is_jit_tracing() or kernel in planner.PLAIN:
        return call
    if kernel is not None:  # a tracer records operations with the sizes of one example
        raise ValueError(
            f"kernel={kernel!r} cannot be traced by torch.jit.trace; leave kernel=None, which traces "
            f"{planner.PORTABLE!r}, or use torch.export or torch.compile"
        )
    return replace(call, kernel=planner.PORTABLE)


def _takes_half(call: Call) -> bool:
    """True if half precision should reach the kernels as it is."""
    return isinstance(call.positions, GridPositions) and planner.takes_half(call.kernel, call.query.device.type)
