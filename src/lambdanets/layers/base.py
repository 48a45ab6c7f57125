"""What the lambda layers share: sizes, their checks, and the start of the projection."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lambdanets.layers.arguments import check_heads, positive_int

__all__ = ["LambdaModule"]


class LambdaModule(nn.Module):
    """Base of the layers that project an input to queries, keys and values with one module ``qkv``.

    Args:
        dim: channels of the input.
        dim_out: channels of the output; None for ``dim``.
        num_heads: the paper's h.
        dim_key: the paper's k.
        intra_depth: the paper's u.

    Raises:
        ValueError: if one is not a positive int, or the heads do not divide ``dim_out``.
    """

    def __init__(self, dim: int, dim_out: int | None, num_heads: int, dim_key: int, intra_depth: int) -> None:
        super().__init__()
        self.dim = positive_int("dim", dim)
        self.dim_out = positive_int("dim_out", dim if dim_out is None else dim_out)
        self.num_heads, self.dim_key = positive_int("num_heads", num_heads), positive_int("dim_key", dim_key)
        self.intra_depth = positive_int("intra_depth", intra_depth)
        check_heads(self.num_heads, self.dim_out)
        self.dim_value = self.dim_out // self.num_heads

    def _widths(self) -> list[int]:
        """Channels of queries (h, k), keys (u, k) and values (u, v), in the projection's order."""
        return [
            self.num_heads * self.dim_key,
            self.intra_depth * self.dim_key,
            self.intra_depth * self.dim_value,
        ]

    @torch.no_grad()
    def _reset_projection(self) -> None:
        """Keys and values N(0, dim^-1/2), queries N(0, (k · dim)^-1/2), as in the paper; norms as they reset."""
        qkv: Any = self.qkv
        width = self._widths()[0]
        nn.init.normal_(qkv.weight[:width], std=(self.dim_key * self.dim) ** -0.5)
        nn.init.normal_(qkv.weight[width:], std=self.dim**-0.5)
        for norm in (self.norm_query, self.norm_value):
            reset = getattr(norm, "reset_parameters", None)
            if callable(reset):
                reset()
