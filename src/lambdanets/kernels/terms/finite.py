"""What is not finite in a causal context: seen by the queries from its place on, never by those before it.

A sum over what a query sees is a product with zeros for what it does not see, in every kernel, and zero times NaN is
NaN; a Fourier transform spreads it over the whole sequence. So such numbers are taken out of the context before the
sums, and the outputs from their place on become NaN behind them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lambdanets.kernels.autograd.modes import is_observed, is_transformed

__all__ = ["set_apart"]


def set_apart(key: Tensor | None, value: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """Key and value without what is not finite, and what it does to the outputs of a causal call.

    A key of -inf is none of it: its weight in the softmax is 0.

    Args:
        key: (b, u, n, k), or None.
        value: (b, u, n, v).

    Returns:
        Key, value, and a summand of the output, (b, 1, n, v): NaN from the first position on that holds such a
        number, else 0. It is None where all is finite.
    """
    if _seen_at_once(value) and _is_finite(key, value):
        return key, value, None
    infinite_bumv = ~value.isfinite()
    seen_bmv = infinite_bumv.any(1)
    value = value.masked_fill(infinite_bumv, 0.0)
    if key is not None:
        infinite_bumk = key.isnan() | key.isposinf()
        seen_bmv = seen_bmv | infinite_bumk.any(1).any(2, keepdim=True)
        key = key.masked_fill(infinite_bumk, 0.0)
    seen_bmv = seen_bmv.cumsum(1) > 0
    # Added, not filled in: a gradient that is NaN stays one.
    return key, value, torch.zeros_like(value[:, 0]).masked_fill(seen_bmv, float("nan"))[:, None]


def _seen_at_once(value: Tensor) -> bool:
    """Whether values can be asked for: not where a graph is made of the operations, nor on a GPU, which would wait."""
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing() or is_transformed() or is_observed((value,))
    return value.device.type == "cpu" and value.numel() > 0 and not traced


def _is_finite(key: Tensor | None, value: Tensor) -> bool:
    low, high = value.detach().aminmax()
    finite = low.isfinite() & high.isfinite()
    if key is not None and key.numel():
        top = key.detach().amax()
        finite = finite & ~(top.isnan() | top.isposinf())
    return bool(finite)
