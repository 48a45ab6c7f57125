"""A lambda layer that reads its values in two orders, as one public implementation does."""

from __future__ import annotations

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
        return super().forward(x, mask=mask)

    def apply_lambdas(
        self, query: Tensor, key: Tensor, value: Tensor, positions: GridPositions, mask: Tensor | None
    ) -> Tensor:
        """As :meth:`lambdanets.LambdaLayer.apply_lambdas`, the content term on value channels read as (v, u)."""
        # A kernel named for the grid does not apply to the content term.
        content = value.transpose(1, 2).flatten(2).unflatten(2, (self.dim_value, self.intra_depth)).permute(0, 3, 1, 2)
        out = lambda_apply(query, key, content, mask=mask, causal=self.causal)
        return out + lambda_apply(query, None, value, positions, mask=mask, causal=self.causal, kernel=self.kernel)
