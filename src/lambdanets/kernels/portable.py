"""The op in operations that every exporter and runtime knows, for models that leave Python.

The position lambdas of a grid are a convolution of the values with the table of offsets, zero-padded, whatever the
size of the grid (paper, section 3.2: the lambda convolution); the query is applied to them afterwards. The weights of
that convolution do not depend on the grid, so an exported file serves every batch size and image size. It costs what
lambda first costs, with the offsets that a small grid does not have multiplied by zeros, and all position lambdas are
kept: b · n · k · v. Gradients are PyTorch's own, second derivatives too.

Axes: b batch, h heads, n queries, k query depth, v value depth, u intra-depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from lambdanets.kernels.autograd.modes import is_compiling, is_jit_tracing
from lambdanets.kernels.call import Call
from lambdanets.kernels.reference import reference
from lambdanets.kernels.slices import summed_at
from lambdanets.kernels.terms.content import content_term, normalise
from lambdanets.kernels.terms.finite import remove_nonfinite_entries
from lambdanets.positions import EdgePositions, GridPositions, without_future_edges, without_future_offsets

__all__ = ["CONVOLUTIONS", "edges_term", "graph_content_term", "grid_term_by_convolution", "portable"]

CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}  # by the rank of the grid


def portable(call: Call) -> Tensor:
    """Content and position term of a call whose mask is applied: (b, h, n, v).

    A causal content term and written-out positions take the reference's operations, which are plain too.
    """
    query, key, value, positions = call.query, call.key, call.value, call.positions
    if key is None:
        content = None
    elif call.causal:
        content = reference(replace(call, positions=None))
    else:
        content = content_term(query, normalise(key), value)
    if positions is None:
        return content  # type: ignore[return-value]
    if isinstance(positions, GridPositions):
        term = _grid_term(query, value, positions, call.causal)
    elif isinstance(positions, EdgePositions):
        embedding = positions.embedding.to(query.dtype)
        if call.causal:
            embedding = without_future_edges(embedding, positions.index)
        term = edges_term(query, value, positions.index, embedding)
    else:
        term = reference(replace(call, key=None))
    return term if content is None else content + term


def _grid_term(query: Tensor, value: Tensor, positions: GridPositions, causal: bool) -> Tensor:
    centre = [extent // 2 for extent in positions.extents]
    table = positions.table.to(query.dtype)
    if causal:
        table = without_future_offsets(table, centre)
    sees_bad = None
    if not (is_compiling() or is_jit_tracing()):
        table, sees_bad = remove_nonfinite_entries(table, positions.grid, centre)
    out = grid_term_by_convolution(query, value, table, positions.grid, centre)
    return out if sees_bad is None else out.masked_fill(sees_bad[:, None], float("nan"))


def grid_term_by_convolution(
    query: Tensor, value: Tensor, table: Tensor, grid: Sequence[int], origin: Sequence[int]
) -> Tensor:
    """Position term of a grid: out[n] = q[n] · Σ_o table[o] V[n + o - origin].

    Args:
        query: (b, h, n, k).
        value: (b, u, n, v).
        table: (u, k, *extents).
        grid: sizes of the grid, n their product.
        origin: index of offset 0 in the table.

    Returns:
        (b, h, n, v).
    """
    k, *extents = table.shape[1:]
    b, u, n, v = value.shape
    # The value depth is one more batch axis, the offsets are the filter's taps.
    images_bvu = value.permute(0, 3, 1, 2).reshape(b * v, u, *grid)
    after = [extent - 1 - before for extent, before in zip(extents, origin, strict=True)]
    padding = list(origin)
    # A convolution pads both sides alike. Symbolic sizes are padded first: comparing them would guard a graph.
    is_known = all(isinstance(size, int) for size in padding + after)
    if not is_known or padding != after:
        pads = [pad for pair in zip(reversed(origin), reversed(after), strict=True) for pad in pair]
        images_bvu, padding = F.pad(images_bvu, pads), [0] * len(grid)
    lambda_bvkn = CONVOLUTIONS[len(extents)](images_bvu, table.transpose(0, 1), padding=padding).reshape(b, v, k, n)
    return (query.transpose(1, 2) @ lambda_bvkn.permute(0, 3, 2, 1)).transpose(1, 2)


def edges_term(query: Tensor, value: Tensor, index: Tensor, embedding: Tensor) -> Tensor:
    """Position term of edges, all of them at once: b · e · (h · (k + v) + u · v) numbers.

    Args:
        query: (b, h, n, k).
        value: (b, u, m, v).
        index: (2, e), rows (query, context).
        embedding: (e, k, u).

    Returns:
        (b, h, n, v).
    """
    scores_bhue = torch.einsum("bhek,eku->bhue", query.index_select(2, index[0]), embedding)
    parts_bhev = torch.einsum("bhue,buev->bhev", scores_bhue, value.index_select(2, index[1]))
    return summed_at(parts_bhev, index[0], query.shape[2])


def graph_content_term(query: Tensor, keys: Tensor, value: Tensor, batch: Tensor, num_graphs: int) -> Tensor:
    """Content term of many graphs, all products at once: b · nodes · k · v numbers.

    Args:
        query: (b, h, nodes, k).
        keys: (b, u, nodes, k), after their softmax over each graph.
        value: (b, u, nodes, v).
        batch: (nodes,) int64 in [0, num_graphs), the graph of each node.
        num_graphs: how many graphs there are.

    Returns:
        (b, h, nodes, v).
    """
    products_bmkv = torch.einsum("bumk,bumv->bmkv", keys, value)
    lambda_bgkv = summed_at(products_bmkv.flatten(2), batch, num_graphs).unflatten(2, products_bmkv.shape[2:])
    return torch.einsum("bhmk,bmkv->bhmv", query, lambda_bgkv.index_select(1, batch))
