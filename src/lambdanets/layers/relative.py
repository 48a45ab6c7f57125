"""Self-attention with relative positions along the axes of a map: logits by offset, and PyTorch's fused attention.

Axes: b batch, h heads, n queries, m context positions, d query depth, v value depth, c positions of one axis.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["by_position", "fused_attention", "one_hot"]


def by_position(logits: Tensor, context: int, first: int) -> Tensor:
    """Return the logits of context positions from those of offsets: entry (i, j) is the offset j - i + ``first``.

    It pads, cuts and reshapes, which keeps nothing for the backward pass; a gather would keep the logits.

    Args:
        logits: (..., n, offsets), of queries along the last axis but one.
        context: positions of the context along the axis.
        first: entry of the offset from the first query to the first context position, at most n.

    Returns:
        (..., n, context); where an offset is not in the table the number has no meaning.
    """
    n, width = logits.shape[-2], max(logits.shape[-1], context + 1)
    flat = F.pad(logits, (0, width - logits.shape[-1])).flatten(-2)
    # Rows that are shorter by one begin one entry later each.
    rows = flat[..., first : first + n * (width - 1)]
    # Not unflatten, which the TorchScript exporter of torch.onnx writes with the sizes of the example.
    rows = rows.reshape(*flat.shape[:-1], n, width - 1)
    return rows[..., :context]


def one_hot(height: int, width: int, like: Tensor) -> Tensor:
    """Return (m, height + width): 1 for the row and for the column of each position of a map in row-major order."""
    rows = torch.eye(height, dtype=like.dtype, device=like.device)
    columns = torch.eye(width, dtype=like.dtype, device=like.device)
    return torch.cat([rows.repeat_interleave(width, 0), columns.repeat(height, 1)], dim=1)


def fused_attention(
    query: Tensor, key: Tensor, value: Tensor, logits: Tensor, which: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Return softmax(q kᵀ + logits whichᵀ) v by ``F.scaled_dot_product_attention``, which stores no n x m map.

    The position logits of a query are a sum of one number for the row and one for the column of the context position:
    as further channels of the queries, with one-hot channels of the keys beside them, they are part of the product
    that the fused attention computes. It takes one depth for queries, keys and values: the shorter are padded with
    zeros, which changes nothing.

    Args:
        query: (b, h, n, d), scaled.
        key: (b, h, m, d).
        value: (b, h, m, v).
        logits: (b, h, n, c), for each row and each column of the context.
        which: (m, c), 1 where the context position is in that row or column, else 0.
        mask: bool, broadcast to (b, h, n, m), True where the context position takes part; None for all.

    Returns:
        (b, h, n, v).
    """
    query = torch.cat([query, logits.to(query.dtype)], dim=-1)
    key = torch.cat([key, which.to(key.dtype).expand(*key.shape[:-1], which.shape[1])], dim=-1)
    depth = max(query.shape[-1], value.shape[-1])
    query, key, padded = (F.pad(part, (0, depth - part.shape[-1])) for part in (query, key, value))
    out = F.scaled_dot_product_attention(query, key, padded, attn_mask=mask, scale=1.0)
    return out[..., : value.shape[-1]]
