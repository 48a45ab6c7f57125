"""The content term of many graphs at once: a node sees the nodes of its own graph, whatever their order is.

All sums over a graph are segment sums over ``batch``, which names the graph of each node: nothing is padded to the
largest graph, and no loop runs over graphs. With K̄ the keys' softmax over each graph,

    λ_g = Σ_{m in g, u} K̄_mu V_muᵀ,    y_n = λ_{g(n)}ᵀ q_n.

The products of a node, k·v numbers, are made for a block of nodes at a time; backward makes λ again. Kept for backward:
the inputs and K̄.

Axes in names: b batch, g graphs, m nodes, a heads or intra-depth, k query depth, v value depth.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, einsum

from lambdanets.kernels.autograd.library import Op
from lambdanets.kernels.slices import blocks, summed_at

__all__ = ["SEGMENTS_OP", "segment_softmax"]

# Elements of the products of a block of nodes.
BLOCK_ELEMENTS = 1 << 18


def segment_softmax(key: Tensor, batch: Tensor, num_graphs: int) -> Tensor:
    """K̄: the keys' softmax over the nodes of each graph.

    Args:
        key: (b, u, nodes, k), not in half precision, where the weights of large graphs would lose their digits.
        batch: (nodes,) int64 in [0, num_graphs).
        num_graphs: how many graphs there are.

    Returns:
        (b, u, nodes, k).
    """
    b, u, _, k = key.shape
    fixed = key.detach()
    largest = fixed.new_full((b, u, num_graphs, k), float("-inf"))
    largest = largest.scatter_reduce(2, batch[:, None].expand(key.shape), fixed, "amax")
    largest = largest.masked_fill(largest == -math.inf, 0.0)  # a key of -inf has weight 0, also where all keys are -inf
    weight = torch.exp(key - largest.index_select(2, batch))
    total = summed_at(weight, batch, num_graphs)
    return weight / total.masked_fill(total == 0, 1.0).index_select(2, batch)


def _lambdas(left_bamk: Tensor, right_bamv: Tensor, batch: Tensor, num_graphs: int) -> Tensor:
    """Σ left rightᵀ over a and the nodes of each graph, (b, g, k, v)."""
    b, _, nodes, k = left_bamk.shape
    v = right_bamv.shape[3]
    lambda_bgkv = left_bamk.new_zeros(b, num_graphs, k, v)
    for block in blocks(nodes, b * k * v, BLOCK_ELEMENTS):
        products = einsum("bamk,bamv->bmkv", left_bamk[:, :, block], right_bamv[:, :, block])
        lambda_bgkv.index_add_(1, batch[block], products)
    return lambda_bgkv


def _applied(rows_bamk: Tensor, lambda_bgkv: Tensor, batch: Tensor) -> Tensor:
    """Each row times the lambda of its graph, (b, a, m, v)."""
    b, _, k, v = lambda_bgkv.shape
    out = rows_bamk.new_empty(*rows_bamk.shape[:3], v)
    for block in blocks(rows_bamk.shape[2], b * k * v, BLOCK_ELEMENTS):
        lambda_bmkv = lambda_bgkv.index_select(1, batch[block])
        out[:, :, block] = einsum("bamk,bmkv->bamv", rows_bamk[:, :, block], lambda_bmkv)
    return out


def _forward(query: Tensor, keys: Tensor, value: Tensor, batch: Tensor, num_graphs: int) -> Tensor:
    return _applied(query, _lambdas(keys, value, batch, num_graphs), batch)


def _backward(
    grad: Tensor, query: Tensor, keys: Tensor, value: Tensor, batch: Tensor, num_graphs: int
) -> tuple[Tensor, Tensor, Tensor]:
    lambda_bgkv = _lambdas(keys, value, batch, num_graphs)
    grad_bgkv = _lambdas(query, grad, batch, num_graphs)
    grad_query = _applied(grad, lambda_bgkv.transpose(2, 3), batch)
    grad_keys = _applied(value, grad_bgkv.transpose(2, 3), batch)
    return grad_query, grad_keys, _applied(keys, grad_bgkv, batch)


# y[b,h,n] = Σ over the nodes m of n's graph and u of (q[b,h,n] · K̄[b,u,m]) V[b,u,m], (b, h, nodes, v), contiguous, of
# queries (b, h, nodes, k), K̄ (b, u, nodes, k), values (b, u, nodes, v), and the graph of each node in any order.
SEGMENTS_OP = Op(
    "segment_content_term",
    _forward,
    _backward,
    tensors=("query", "keys", "value", "batch"),
    shared=("batch",),
    constant=("batch",),
    statics="SymInt num_graphs",
)
