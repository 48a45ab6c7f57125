"""One call of the op: the arguments of ``lambda_apply``, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Tensor

from lambdanets.kernels.precision import widened
from lambdanets.positions import Positions

__all__ = ["Call"]


@dataclass(frozen=True)
class Call:
    """Arguments that fit each other; see ``lambdanets.lambda_apply`` for what they mean.

    Args:
        query: (b, h, n, k).
        key: (b, u, m, k), before its softmax; None for no content term.
        value: (b, u, m, v).
        positions: the embeddings E; None for no position term.
        mask: (b, m) bool, True where the context position takes part; None for all.
        causal: True if query n sees the context positions m <= n only.
        kernel: name of the kernel; None for the planner's choice.
    """

    query: Tensor
    key: Tensor | None
    value: Tensor
    positions: Positions | None
    mask: Tensor | None = None
    causal: bool = False
    kernel: str | None = None

    @property
    def has_nothing_to_sum(self) -> bool:
        """True if an axis other than the batch is empty: the output is empty or zero."""
        return 0 in (*self.query.shape[1:], *self.value.shape[1:])

    def widened(self) -> Call:
        """The call with half precision in float32."""
        query, value = widened((self.query, self.value))
        key = None if self.key is None else widened((self.key,))[0]
        return replace(self, query=query, key=key, value=value)

    def masked(self) -> Call:
        """The call with a context that needs no mask any more: masked positions may hold anything, NaN too.

        Masked keys become -inf, which has no weight in any softmax of this package, also where all keys are so.
        """
        if self.mask is None:
            return self
        hidden = ~self.mask[:, None, :, None]
        key = None if self.key is None else self.key.masked_fill(hidden, -math.inf)
        return replace(self, key=key, value=self.value.masked_fill(hidden, 0.0), mask=None)
