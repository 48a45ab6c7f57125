"""From a checked call to the terms of its sum."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from lambdanets.kernels import decompositions  # noqa: F401  # registers them
from lambdanets.kernels.autograd.modes import is_jit_tracing, is_scripted_onnx_export, without_autocast
from lambdanets.kernels.call import Call
from lambdanets.kernels.grid.planner import takes_half
from lambdanets.kernels.names import PLAIN, PORTABLE, REFERENCE, require, require_without_grid
from lambdanets.kernels.portable import graph_content_term, portable
from lambdanets.kernels.precision import HALF, widened
from lambdanets.kernels.reference import reference
from lambdanets.kernels.terms.content import add_content_term
from lambdanets.kernels.terms.dense import dense_positions_term
from lambdanets.kernels.terms.edges import edge_positions_term
from lambdanets.kernels.terms.finite import remove_nonfinite
from lambdanets.kernels.terms.graph_content import SEGMENTS_OP, segment_softmax
from lambdanets.kernels.terms.grid import grid_terms
from lambdanets.positions import DensePositions, EdgePositions, GridPositions

__all__ = ["dispatch", "dispatch_by_graph"]


def dispatch(call: Call) -> Tensor:
    """Compute a call; see ``lambdanets.lambda_apply``.

    1. The kernel of its name, or of the mode that PyTorch is in.
    2. Half precision in float32, for kernels that do not take it as it is.
    3. The mask is applied: all that follows has none.
    4. An output that is a sum of nothing is answered here, so that no term has to think of it.
    5. Numbers that are not finite are taken out of the context, so that they do not spread, and put back at the end.
    6. The term of its positions, which adds the content term where there is a key.
    """
    call, dtype = _resolve_kernel(call), call.query.dtype
    with without_autocast(call.query.device.type):
        if dtype in HALF and not _takes_half(call):
            # Both terms in float32: where they oppose each other, the rounding of each is more than that of the sum.
            call = call.widened()
        call = call.masked()
        if call.has_nothing_to_sum:
            return reference(call).to(dtype)
        call, nan_b1nv = remove_nonfinite(call)
        if call.kernel == REFERENCE:
            out = reference(call)
        elif call.kernel == PORTABLE:
            out = portable(call)
        elif isinstance(call.positions, GridPositions):
            out = grid_terms(call, call.positions)
        elif isinstance(call.positions, DensePositions):
            out = add_content_term(call, dense_positions_term(call, call.positions))
        elif isinstance(call.positions, EdgePositions):
            out = add_content_term(call, edge_positions_term(call, call.positions))
        else:
            out = add_content_term(call)
        if nan_b1nv is not None:
            out = out + nan_b1nv
    return out.to(dtype)


def dispatch_by_graph(
    query: Tensor, key: Tensor, value: Tensor, positions: EdgePositions | None, batch: Tensor, num_graphs: int
) -> Tensor:
    """Compute the nodes of many graphs; see ``lambdanets.functional.lambda_apply_by_graph``."""
    dtype, is_traced = query.dtype, is_jit_tracing()
    _refuse_scripted_onnx()
    content_term = graph_content_term if is_traced else SEGMENTS_OP
    with without_autocast(query.device.type):
        query, key, value = widened((query, key, value))
        out = content_term(query, segment_softmax(key, batch, num_graphs), value, batch, num_graphs)
        if positions is not None:
            call = Call(query, None, value, positions)
            out = out + (portable(call) if is_traced else edge_positions_term(call, positions))
    return out.to(dtype)


def _resolve_kernel(call: Call) -> Call:
    """The call with the kernel that serves it: the one named, "portable" in traces, None for the planner's choice.

    Raises:
        ValueError: if there is no kernel of the name, or it is not for these positions or for tracing.
    """
    kernel = call.kernel
    if kernel is not None:
        if isinstance(call.positions, GridPositions):
            require(kernel)
        else:
            given = "no positions" if call.positions is None else type(call.positions).__name__
            require_without_grid(kernel, given)
    if not is_jit_tracing():
        return call
    if isinstance(call.positions, EdgePositions):
        _refuse_scripted_onnx()
    if kernel in PLAIN:
        return call
    # A tracer records operations with the sizes of one example, which only plain ones survive. ONNX has no kernels.
    if kernel is not None and not is_scripted_onnx_export():
        raise ValueError(
            f"kernel={kernel!r} cannot be traced by torch.jit.trace; leave kernel=None, which traces "
            f"{PORTABLE!r}, or use torch.export or torch.compile"
        )
    return replace(call, kernel=PORTABLE)


def _refuse_scripted_onnx() -> None:
    """Raise a ValueError in an ONNX export by TorchScript, which adds up entries of one index wrongly."""
    if is_scripted_onnx_export():
        raise ValueError(
            "a graph's edges and nodes cannot be exported by torch.onnx.export(..., dynamo=False), which would write a "
            "file with other numbers; use dynamo=True, PyTorch's default"
        )


def _takes_half(call: Call) -> bool:
    """True if half precision should reach the kernels as it is."""
    return isinstance(call.positions, GridPositions) and takes_half(call.kernel, call.query.device.type)
