"""The content term: y_n = λcᵀ q_n with λc = Σ_mu K̄_mu V_muᵀ, shared by all queries (paper, equation 2).

Kept for backward: K̄ (b·u·m·k) and λc (b·k·v), both no larger than the inputs.
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["content_term"]


def content_term(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Content term without a causal order.

    Args:
        query: (b, h, n, k).
        key: (b, u, m, k), before its softmax over m; the dtype's minimum where masked.
        value: (b, u, m, v); zero where masked.

    Returns:
        (b, h, n, v).
    """
    key = key.softmax(dim=2)
    # Sum over u and m in one product.
    content_lambda = key.flatten(1, 2).transpose(1, 2) @ value.flatten(1, 2)
    return query @ content_lambda.to(query.dtype)[:, None]
