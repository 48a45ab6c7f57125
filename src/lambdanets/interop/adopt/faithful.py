"""A lambda layer that reads its values in two orders, as one public implementation does."""

from __future__ import annotations

import math

from torch import Tensor
from torch.fx import Proxy

from lambdanets.functional import lambda_apply
from lambdanets.layers import LambdaLayer
from lambdanets.layers.leaves import leaf
from lambdanets.positions import GridPositions

__all__ = ["TwoOrderLambdaLayer"]


class TwoOrderLambdaLayer(LambdaLayer):
    """leaderj1001's ``LambdaConv`` at u > 1: the content term reads the value channels as (v, u), positions as (u, v).

    Not the paper's layer, where a value has one meaning in both sums; it gives the outputs that weights trained with
    that implementation had. Arguments, parameters and their names are those of :class:`lambdanets.LambdaLayer`, the
    value channels in the order (u, v) of the position term. At u = 1 the two classes are the same function. The two
    terms are two calls of :func:`lambdanets.lambda_apply`.
    """

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Apply the layer.

        Args:
            x: (b, dim, *grid).
            context: not supported, must be None; the original has none.
            mask: bool, (b, *grid) or (b, positions), True where the context position takes part.

        Returns:
            (b, dim_out, *strided grid).

        Raises:
            ValueError: if a context is given.
        """
        if isinstance(x, Proxy):  # torch.fx.symbolic_trace
            return leaf(self, x, context, mask)
        if context is not None:
            raise ValueError("context must be None for TwoOrderLambdaLayer; use LambdaLayer for another context")
        b, grid = x.shape[0], tuple(x.shape[2:])
        n, h, k, u, v = math.prod(grid), self.num_heads, self.dim_key, self.intra_depth, self.dim_value
        query, key, value = self.qkv(x).split([h * k, u * k, u * v], dim=1)
        query = self.norm_query(query).reshape(b, h, k, n).transpose(2, 3)
        key = key.reshape(b, u, k, n).transpose(2, 3)
        value = self.norm_value(value).reshape(b, u * v, n)
        content = value.reshape(b, v, u, n).permute(0, 2, 3, 1)
        position = value.reshape(b, u, v, n).transpose(2, 3)
        mask = mask.flatten(1) if mask is not None and mask.ndim > 2 else mask
        table = GridPositions(self.positions, grid)
        # A kernel chosen by name is one for grids; the content term has one way only.
        out = lambda_apply(query, key, content, mask=mask, causal=self.causal)
        out = out + lambda_apply(query, None, position, table, mask=mask, causal=self.causal, kernel=self.kernel)
        out = out.transpose(2, 3)
        if self.position_bias is not None:
            out = out + (query @ self.position_bias.to(query.dtype))[:, :, None]
        return self.pool(out.reshape(b, self.dim_out, *grid))
