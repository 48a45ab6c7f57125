"""The content term: y_n = λcᵀ q_n with λc = Σ_mu K̄_mu V_muᵀ, shared by all queries (paper, equation 2).

Kept for backward: K̄ (b·u·m·k) and λc (b·k·v), both no larger than the inputs.
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["content_term"]


def content_term(query: Tensor, key: Tensor, value: Tensor, depth_first: bool = True) -> Tensor:
    """Content term without a causal order.

    Args:
        query: (b, h, n, k).
        key: (b, u, m, k), before its softmax over m; the dtype's minimum where masked.
        value: (b, u, m, v); zero where masked.
        depth_first: whether the output stands in memory as (b, h, v, n), as a layer for images wants it, or as
            (b, n, h, v).

    Returns:
        (b, h, n, v).
    """
    # Keys with depth in front of the positions, as a layer's projection has laid them out: a softmax over contiguous
    # memory.
    keys_bukm = key.transpose(2, 3).softmax(dim=3)
    if depth_first:
        lambda_bvk = (value.transpose(2, 3) @ keys_bukm.transpose(2, 3)).sum(1)
        return (lambda_bvk[:, None] @ query.transpose(2, 3)).transpose(2, 3)
    lambda_bkv = (keys_bukm @ value).sum(1)
    return (query.transpose(1, 2).flatten(1, 2) @ lambda_bkv).unflatten(1, (query.shape[2], -1)).transpose(1, 2)
