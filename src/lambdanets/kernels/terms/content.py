"""The content term: y_n = λcᵀ q_n with λc = Σ_mu K̄_mu V_muᵀ, shared by all queries (paper, equation 2).

Kept for backward: K̄ (b·u·m·k) and λc (b·k·v), both no larger than the inputs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lambdanets.kernels.autograd.layout import depth_before_positions
from lambdanets.kernels.autograd.modes import is_compiling, is_eager, is_transformed
from lambdanets.kernels.call import Call
from lambdanets.kernels.precision import HALF
from lambdanets.kernels.terms.causal_content import CAUSAL_CONTENT_OP

__all__ = ["add_content_term", "apply_content", "content_gradients", "content_lambdas", "content_term", "normalise"]


def add_content_term(call: Call, other: Tensor | None = None) -> Tensor:
    """The content term of a call without a mask, causal or not, plus ``other``; ``other`` alone where there is no key.

    Args:
        call: its query, key, value and order; one of ``call.key`` and ``other`` is given.
        other: (b, h, n, v), which may be overwritten; default None.
    """
    if call.key is None:
        return other  # type: ignore[return-value]
    if not call.causal:
        return content_term(call.query, normalise(call.key), call.value, other)
    term = CAUSAL_CONTENT_OP(call.query, call.key, call.value)
    return term if other is None else term + other


def normalise(key: Tensor) -> Tensor:
    """K̄ from keys (b, u, m, k): their softmax over m, (b, u, k, m).

    Depth stands in front of the positions, as a layer's projection lays them out: a softmax over contiguous memory.
    Half precision becomes float32: the sums need more digits of the weights, and weights of many positions, 1/m, are
    below float16's normal numbers from m = 16,384 on.

    A key of -inf has weight 0, also where the keys of all positions are -inf. There a plain softmax is NaN, which one
    position shows where reading it costs little; elsewhere such keys are always looked for.
    """
    key = key.transpose(2, 3)
    dtype = torch.float32 if key.dtype in HALF else None
    if key.device.type == "cpu" and is_eager((key,)):
        keys = key.softmax(dim=3, dtype=dtype)
        if keys.shape[3] == 0 or not math.isnan(keys.detach()[..., 0].sum().item()):
            return keys
    without_weights = (key == -math.inf).all(dim=3, keepdim=True)
    keys = key.masked_fill(without_weights, 0.0).softmax(dim=3, dtype=dtype)
    return keys.masked_fill(without_weights, 0.0)


def content_term(query: Tensor, keys: Tensor, value: Tensor, other: Tensor | None = None) -> Tensor:
    """Content term without a causal order, plus ``other``, in differentiable operations: (b, h, n, v).

    Args:
        query: (b, h, n, k).
        keys: (b, u, k, m), after :func:`normalise`.
        value: (b, u, m, v); zero where masked.
        other: (b, h, n, v), which may be overwritten; default None.
    """
    return apply_content(query, content_lambdas(keys, value), other)


def content_lambdas(keys: Tensor, value: Tensor) -> Tensor:
    """λc, (b, k, v), from keys (b, u, k, m), after :func:`normalise`, and value (b, u, m, v)."""
    wide = value.to(keys.dtype)
    content = torch.bmm(keys[:, 0], wide[:, 0]) if keys.shape[1] == 1 else (keys @ wide).sum(1)
    return content.to(value.dtype)


def apply_content(query: Tensor, content: Tensor, other: Tensor | None = None) -> Tensor:
    """q·λc, plus ``other``.

    Args:
        query: (b, h, n, k).
        content: λc, (b, k, v).
        other: (b, h, n, v), which may be overwritten; default None.

    Returns:
        (b, h, n, v), in memory as the query is: (b, h, v, n) after a projection of images, else (b, n, h, v).
    """
    (b, h, n, _), v = query.shape, content.shape[2]
    if depth_before_positions(query):
        left = content.transpose(1, 2)[:, None].expand(-1, h, -1, -1).flatten(0, 1)
        right, shape, swapped = query.transpose(2, 3).flatten(0, 1), (b, h, v, n), (2, 3)
    else:
        left, right, shape, swapped = query.transpose(1, 2).flatten(1, 2), content, (b, n, h, v), (1, 2)
    if other is None:
        out = torch.bmm(left, right)
    else:
        other = other.transpose(*swapped).reshape(left.shape[0], left.shape[1], right.shape[2])
        out_of_place = is_compiling() or is_transformed()
        out = torch.baddbmm(other, left, right) if out_of_place else other.baddbmm_(left, right)
    return out.view(shape).transpose(*swapped)


def content_gradients(grad: Tensor, query: Tensor, content: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of query and λc in q·λc.

    Args:
        grad: (b, h, n, v).
        query: (b, h, n, k).
        content: λc, (b, k, v).
    """
    grad_content = (query.transpose(2, 3) @ grad).sum(1)
    if depth_before_positions(grad):
        return (content[:, None] @ grad.transpose(2, 3)).transpose(2, 3), grad_content
    return grad @ content[:, None].transpose(2, 3), grad_content
