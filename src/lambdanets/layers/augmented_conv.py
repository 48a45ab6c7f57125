"""Attention-augmented convolution: a 3x3 convolution for most channels, global self-attention for the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from lambdanets.layers.arguments import positive_int
from lambdanets.layers.global_attention import GlobalAttention
from lambdanets.layers.leaves import leaf
from lambdanets.layers.maps import check_map, pooling

__all__ = ["AugmentedConv"]


class AugmentedConv(nn.Module):
    """Attention-augmented convolution, AAConv(X) = Concat[ Conv(X), MHA(X) ].

    Bello et al. 2019, arXiv 1904.09925, section 3.2: the share υ of the output's channels comes from a global
    self-attention with relative positions along both axes, whose logits are all divided by √d and whose heads a 1x1
    convolution mixes; the others come from a 3x3 convolution. Queries and keys have the share κ of the channels.

    Args:
        dim: channels of the input.
        dim_out: channels of the output; default ``dim``.
        size: (height, width) of the map, or one int for both.
        stride: of the convolution; the attention's output is pooled by a 3-wide average with it. Default 1.
        num_heads: default 8, as published.
        key_share: κ, default 0.2; a head's queries and keys have at least 20 channels, as published.
        value_share: υ, default 0.1; rounded to a multiple of the heads, at least one channel a head.
        fused: True computes with PyTorch's fused attention; the same numbers. Default False.
        device: where the parameters live.
        dtype: their element type.

    Shape:
        input (b, dim, *size), output (b, dim_out, height / stride, width / stride), rounded up.

    Raises:
        ValueError: if the arguments do not fit each other, or an input does not fit the layer.
        TypeError: if ``fused`` is no bool, or an input is not a floating-point tensor of the weights' dtype.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int | None = None,
        *,
        size: int | Sequence[int],
        stride: int = 1,
        num_heads: int = 8,
        key_share: float = 0.2,
        value_share: float = 0.1,
        fused: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.dim, self.dim_out = positive_int("dim", dim), positive_int("dim_out", dim if dim_out is None else dim_out)
        positive_int("num_heads", num_heads)
        for name, share in (("key_share", key_share), ("value_share", value_share)):
            if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
                raise ValueError(f"{name} must be a share of the channels between 0 and 1, as 0.1, got {share!r}")
        dim_value = num_heads * max(1, round(value_share * self.dim_out / num_heads))
        if dim_value >= self.dim_out:
            raise ValueError(
                f"num_heads={num_heads} leaves the convolution none of dim_out={self.dim_out} channels; use fewer "
                f"heads or a smaller value_share than {value_share!r}"
            )
        dim_head = max(20, round(key_share * self.dim_out / num_heads))
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.conv = nn.Conv2d(self.dim, self.dim_out - dim_value, 3, stride, 1, bias=False, **factory)
        self.attention = GlobalAttention(
            self.dim,
            dim_value,
            size=size,
            num_heads=num_heads,
            dim_head=dim_head,
            scale_positions=True,
            fused=fused,
            **factory,
        )
        self.mix = nn.Conv2d(dim_value, dim_value, 1, bias=False, **factory)
        self.pool = pooling(stride)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the convolution as timm's ResNets, the attention as timm's, the mix by its fan-in."""
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.mix.weight, std=self.mix.in_channels**-0.5)
        self.attention.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """(b, dim, *size) -> (b, dim_out, *strided size)."""
        if isinstance(x, Proxy):  # torch.fx.symbolic_trace
            return leaf(self, x)
        check_map(self, x, self.dim, self.conv, self.attention.size)
        return torch.cat([self.conv(x), self.pool(self.mix(self.attention(x)))], dim=1)
