"""The position term for the edges of a graph: cost and memory in the number of edges, whatever n and m are.

For each edge e = (n, m) the score q_n · E_e weighs V_m in the sum of y_n. Edges are processed in blocks, so that what
is gathered for them stays small; backward gathers it again.

Axes in names: b batch, h heads, e edges of a block, k query depth, v value depth, u intra-depth.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lambdanets.kernels.autograd.library import Op
from lambdanets.kernels.call import Call
from lambdanets.kernels.precision import to_query_dtype
from lambdanets.kernels.slices import blocks
from lambdanets.positions import EdgePositions, without_future_edges

__all__ = ["EDGES_OP", "edge_positions_term"]

# Elements gathered for a block of edges.
BLOCK_ELEMENTS = 1 << 20


def _blocks(query: Tensor, value: Tensor, index: Tensor) -> Iterator[slice]:
    b, h, _, k = query.shape
    each = b * (h * (k + value.shape[3]) + value.shape[1] * value.shape[3])
    return blocks(index.shape[1], each, BLOCK_ELEMENTS)


def _gather(query: Tensor, value: Tensor, index: Tensor, block: slice) -> tuple[Tensor, Tensor]:
    """Queries (b, h, e, k) and values (b, u, e, v) at the ends of a block's edges."""
    return query.index_select(2, index[0, block]), value.index_select(2, index[1, block])


def _forward(query: Tensor, value: Tensor, index: Tensor, embedding: Tensor) -> Tensor:
    out = query.new_zeros(*query.shape[:3], value.shape[3])
    for block in _blocks(query, value, index):
        query_bhek, value_buev = _gather(query, value, index, block)
        scores = torch.einsum("bhek,eku->bhue", query_bhek, embedding[block])
        out.index_add_(2, index[0, block], torch.einsum("bhue,buev->bhev", scores, value_buev))
    return out


def _backward(
    grad: Tensor, query: Tensor, value: Tensor, index: Tensor, embedding: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    grad_query, grad_value = torch.zeros_like(query), torch.zeros_like(value)
    grad_embedding = torch.empty_like(embedding)
    for block in _blocks(query, value, index):
        query_bhek, value_buev = _gather(query, value, index, block)
        grad_bhev = grad.index_select(2, index[0, block])
        scores = torch.einsum("bhek,eku->bhue", query_bhek, embedding[block])
        grad_value.index_add_(2, index[1, block], torch.einsum("bhue,bhev->buev", scores, grad_bhev))
        grad_scores = torch.einsum("bhev,buev->bhue", grad_bhev, value_buev)
        grad_query.index_add_(2, index[0, block], torch.einsum("bhue,eku->bhek", grad_scores, embedding[block]))
        grad_embedding[block] = torch.einsum("bhek,bhue->eku", query_bhek, grad_scores)
    return grad_query, grad_value, grad_embedding


EDGES_OP = Op(
    "edges_term",
    _forward,
    _backward,
    tensors=("query", "value", "index", "embedding"),
    shared=("index", "embedding"),
    constant=("index",),
)


def edge_positions_term(call: Call, positions: EdgePositions) -> Tensor:
    """y[b,h,n] = Σ over the edges e = (n, m) and u of (q[b,h,n] · E[e,:,u]) V[b,u,m]: (b, h, n, v)."""
    embedding = to_query_dtype(positions.embedding, call.query.dtype)
    if call.causal:
        embedding = without_future_edges(embedding, positions.index)
    return EDGES_OP(call.query, call.value, positions.index, embedding)
