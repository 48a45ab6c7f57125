"""The position term for positions that are written out: query first, a block of queries at a time.

S_n = q_n · E_n is a product for each query with its own (k, m·u) matrix, for all examples and heads; y = S V one for
each example. S is made again in backward.

Axes in names: b batch, h heads, n queries of a block, m context positions, k query depth, v value depth, u intra-depth.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lambdanets.kernels.autograd.library import Op
from lambdanets.kernels.call import Call
from lambdanets.kernels.precision import to_query_dtype
from lambdanets.kernels.slices import blocks
from lambdanets.positions import DensePositions

__all__ = ["DENSE_OP", "dense_positions_term"]

# Elements of S and of a block of E.
BLOCK_ELEMENTS = 1 << 20


def _blocks(query: Tensor, embedding: Tensor) -> Iterator[slice]:
    n, m, k, u = embedding.shape
    return blocks(n, m * u * max(k, query.shape[0] * query.shape[1]), BLOCK_ELEMENTS)


def _operands(query: Tensor, embedding: Tensor, block: slice) -> tuple[Tensor, Tensor]:
    """Queries (n, b h, k) and E (n, k, u m) of a block."""
    query_nbhk = query[:, :, block].permute(2, 0, 1, 3)
    return query_nbhk.flatten(1, 2), embedding[block].permute(0, 2, 3, 1).flatten(2)


def _scores(query: Tensor, embedding: Tensor, block: slice) -> Tensor:
    """S of a block, (b, h n, u m)."""
    b, h = query.shape[:2]
    scores = torch.bmm(*_operands(query, embedding, block))
    return scores.unflatten(1, (b, h)).permute(1, 2, 0, 3).flatten(1, 2)


def _forward(query: Tensor, value: Tensor, embedding: Tensor) -> Tensor:
    value_bcv = value.flatten(1, 2)
    out = query.new_empty(*query.shape[:3], value.shape[3])
    for block in _blocks(query, embedding):
        result = torch.bmm(_scores(query, embedding, block), value_bcv)
        out[:, :, block] = result.unflatten(1, (query.shape[1], -1))
    return out


def _backward(grad: Tensor, query: Tensor, value: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    b, h = query.shape[:2]
    m, k, u = embedding.shape[1:]
    value_bcv = value.flatten(1, 2)
    grad_query, grad_embedding = torch.empty_like(query), torch.empty_like(embedding)
    grad_value = torch.zeros_like(value_bcv)
    for block in _blocks(query, embedding):
        grad_bnv = grad[:, :, block].flatten(1, 2)
        grad_value.baddbmm_(_scores(query, embedding, block).transpose(1, 2), grad_bnv)
        grad_scores = torch.bmm(grad_bnv, value_bcv.transpose(1, 2)).unflatten(1, (h, -1))
        grad_scores = grad_scores.permute(2, 0, 1, 3).flatten(1, 2)  # (n, b h, u m)
        query_nak, embedding_nkc = _operands(query, embedding, block)
        grad_nak = torch.bmm(grad_scores, embedding_nkc.transpose(1, 2))
        grad_query[:, :, block] = grad_nak.unflatten(1, (b, h)).permute(1, 2, 0, 3)
        grad_nkc = torch.bmm(query_nak.transpose(1, 2), grad_scores)
        grad_embedding[block] = grad_nkc.view(-1, k, u, m).permute(0, 3, 1, 2)
    return grad_query, grad_value.view(value.shape), grad_embedding


DENSE_OP = Op(
    "dense_term",
    _forward,
    _backward,
    tensors=("query", "value", "embedding"),
    shared=("embedding",),
)


def dense_positions_term(call: Call, positions: DensePositions) -> Tensor:
    """y[b,h,n] = Σ_mu (q[b,h,n] · E[n,m,:,u]) V[b,u,m]: (b, h, n, v)."""
    embedding = to_query_dtype(positions.embedding, call.query.dtype)
    if call.causal:
        n = embedding.shape[0]
        past = torch.ones(n, n, dtype=torch.bool, device=embedding.device).tril()
        embedding = embedding.masked_fill(~past[..., None, None], 0.0)
    return DENSE_OP(call.query, call.value, embedding)
