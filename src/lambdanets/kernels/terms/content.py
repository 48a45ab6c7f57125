"""The content term: y_n = λcᵀ q_n with λc = Σ_mu K̄_mu V_muᵀ, shared by all queries (paper, equation 2).

Kept for backward: K̄ (b·u·m·k) and λc (b·k·v), both no larger than the inputs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lambdanets.kernels.autograd.library import HALF
from lambdanets.kernels.autograd.modes import is_compiling, is_eager, is_transformed
from lambdanets.kernels.call import Call
from lambdanets.kernels.terms.causal_content import causal_content_term

__all__ = ["add_content", "any_content_term", "content_gradients", "content_lambdas", "content_term", "normalise"]


def any_content_term(call: Call, other: Tensor | None = None) -> Tensor:
    """Content term of a call without a mask, causal or not, plus ``other``; ``other`` alone where there is no key.

    Args:
        call: its query, key, value and order; one of ``call.key`` and ``other`` is given.
        other: (b, h, n, v), which may be overwritten; default None.
    """
    if call.key is None:
        return other  # type: ignore[return-value]
    if not call.causal:
        return content_term(call.query, normalise(call.key), call.value, other)
    content = causal_content_term(call.query, call.key, call.value)
    return content if other is None else content + other


def normalise(key: Tensor) -> Tensor:
    """K̄ from keys (b, u, m, k): their softmax over m, (b, u, k, m).

    Depth stands in front of the positions, as a layer's projection lays them out: a softmax over contiguous memory.
    Half precision becomes float32: the sums need more digits of the shares, and shares of many positions, 1/m, are
    below float16's normal numbers from m = 16,384 on.

    A key of -inf has no share, also where it is so in all positions. There a plain softmax is NaN, which a look at one
    position shows where looking costs little; elsewhere it costs two passes more.
    """
    key = key.transpose(2, 3)
    if key.device.type == "cpu" and is_eager((key,)):
        keys = _softmax(key)
        if keys.shape[3] == 0 or not math.isnan(keys.detach()[..., 0].sum().item()):
            return keys
    keys = _softmax(key.clamp(min=torch.finfo(key.dtype).min))
    return keys.masked_fill(key == -math.inf, 0.0)


def _softmax(key: Tensor) -> Tensor:
    return key.softmax(dim=3, dtype=torch.float32 if key.dtype in HALF else None)


def content_lambdas(keys: Tensor, value: Tensor) -> Tensor:
    """λc, (b, k, v), from keys (b, u, k, m), behind :func:`normalise`, and value (b, u, m, v)."""
    if keys.shape[1] == 1:
        return torch.bmm(keys[:, 0], value[:, 0])
    return (keys @ value).sum(1)


def content_term(query: Tensor, keys: Tensor, value: Tensor, other: Tensor | None = None) -> Tensor:
    """Content term without a causal order, and the sum with another term, in differentiable operations.

    Args:
        query: (b, h, n, k).
        keys: (b, u, k, m), behind :func:`normalise`.
        value: (b, u, m, v); zero where masked.
        other: (b, h, n, v), added to the term; it may be overwritten. Default None.

    Returns:
        (b, h, n, v), in memory as the query is: (b, h, v, n) behind a projection of images, else (b, n, h, v).
    """
    (b, h, n, _), v = query.shape, value.shape[3]
    lambda_bkv = (keys @ value.to(keys.dtype)).sum(1).to(value.dtype)
    if query.stride(3) != 1:
        left = lambda_bkv.transpose(1, 2)[:, None].expand(-1, h, -1, -1).flatten(0, 1)
        right = query.transpose(2, 3).flatten(0, 1)
        total = None if other is None else other.transpose(2, 3).contiguous().flatten(0, 1)
        return _product(left, right, total).view(b, h, v, n).transpose(2, 3)
    left = query.transpose(1, 2).flatten(1, 2)
    total = None if other is None else other.transpose(1, 2).contiguous().flatten(1, 2)
    return _product(left, lambda_bkv, total).view(b, n, h, v).transpose(1, 2)


def _product(left: Tensor, right: Tensor, total: Tensor | None) -> Tensor:
    """``left @ right + total``, in the memory of ``total`` where that may be overwritten."""
    if total is None:
        return torch.bmm(left, right)
    if is_compiling() or is_transformed():
        return torch.baddbmm(total, left, right)
    return total.baddbmm_(left, right)


def add_content(out: Tensor, query: Tensor, lambdas: Tensor) -> Tensor:
    """``out += q·λc`` without derivatives, in the memory order of ``out`` where that has no gaps.

    Args:
        out: (b, h, n, v), overwritten.
        query: (b, h, n, k).
        lambdas: λc, (b, k, v).

    Returns:
        The sum, (b, h, n, v).
    """
    each = lambdas[:, None].expand(-1, query.shape[1], -1, -1).flatten(0, 1)
    if out.transpose(2, 3).is_contiguous():
        out.transpose(2, 3).flatten(0, 1).baddbmm_(each.transpose(1, 2), query.transpose(2, 3).flatten(0, 1))
        return out
    if out.transpose(1, 2).is_contiguous():
        out.transpose(1, 2).flatten(1, 2).baddbmm_(query.transpose(1, 2).flatten(1, 2), lambdas)
        return out
    out = out.contiguous()
    out.flatten(0, 1).baddbmm_(query.flatten(0, 1), each)
    return out


def content_gradients(grad: Tensor, query: Tensor, lambdas: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of query and λc in q·λc.

    Args:
        grad: (b, h, n, v).
        query: (b, h, n, k).
        lambdas: λc, (b, k, v).
    """
    grad_lambdas = (query.transpose(2, 3) @ grad).sum(1)
    if grad.stride(3) != 1:
        return (lambdas[:, None] @ grad.transpose(2, 3)).transpose(2, 3), grad_lambdas
    return grad @ lambdas[:, None].transpose(2, 3), grad_lambdas
