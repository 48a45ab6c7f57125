"""The content term: y_n = λcᵀ q_n with λc = Σ_mu K̄_mu V_muᵀ, shared by all queries (paper, equation 2).

Kept for backward: K̄ (b·u·m·k) and λc (b·k·v), both no larger than the inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lambdanets.kernels.derivatives import is_transformed

__all__ = ["content_term"]


def content_term(query: Tensor, key: Tensor, value: Tensor, other: Tensor | None = None) -> Tensor:
    """Content term without a causal order, and the sum with another term.

    Args:
        query: (b, h, n, k).
        key: (b, u, m, k), before its softmax over m; the dtype's minimum where masked.
        value: (b, u, m, v); zero where masked.
        other: (b, h, n, v), which it is added to and which may be overwritten; default None, nothing.

    Returns:
        (b, h, n, v), in memory as the query is: (b, h, v, n) behind a projection of images, else (b, n, h, v).
    """
    b, h, n, _ = query.shape
    # Keys with depth in front of the positions, as a layer's projection has laid them out: a softmax over contiguous
    # memory.
    keys_bukm = key.transpose(2, 3).softmax(dim=3)
    lambda_bkv = (keys_bukm @ value).sum(1)
    if query.stride(3) != 1:
        left = lambda_bkv.transpose(1, 2)[:, None].expand(-1, h, -1, -1).flatten(0, 1)
        right = query.transpose(2, 3).flatten(0, 1)
        total = None if other is None else other.transpose(2, 3).contiguous().flatten(0, 1)
        return _product(left, right, total).unflatten(0, (b, h)).transpose(2, 3)
    left = query.transpose(1, 2).flatten(1, 2)
    total = None if other is None else other.transpose(1, 2).contiguous().flatten(1, 2)
    return _product(left, lambda_bkv, total).unflatten(1, (n, h)).transpose(1, 2)


def _product(left: Tensor, right: Tensor, total: Tensor | None) -> Tensor:
    """``left @ right``, added to ``total`` in its own memory where that may be written."""
    if total is None:
        return torch.bmm(left, right)
    if torch.compiler.is_compiling() or is_transformed():
        return torch.baddbmm(total, left, right)
    return total.baddbmm_(left, right)
