"""Convolution with linear attention after it: a global summary without positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from lambdanets.layers.arguments import positive_int
from lambdanets.layers.leaves import leaf
from lambdanets.layers.maps import attention_sizes, by_heads, check_map

__all__ = ["LinearAttentionConv"]


class LinearAttentionConv(nn.Module):
    """3x3 convolution Z = Conv(X), and Z + W · E(Z), where E is linear attention.

    E(Z) = ρ_q(Q) (ρ_k(K)ᵀ V) for each head, with ρ_q the softmax over the channels of a query and ρ_k that over the
    positions (Shen et al. 2018, "Efficient attention", arXiv 1812.01243, equation 3 and section 3.4; the gather and
    distribute of Chen et al. 2018, "A²-Nets", arXiv 1810.11579, equation 5). It has no positions. The published models
    have a few such modules between blocks; this is the layer of one block.

    Args:
        dim: channels of the input.
        dim_out: channels of the output; default ``dim``. Must be divisible by ``num_heads``.
        stride: of the convolution; the attention is over its output. Default 1.
        num_heads: default 8.
        dim_head: depth of a head's queries and keys; default that of its values, dim_out / num_heads.
        device: where the parameters live.
        dtype: their element type.

    Shape:
        input (b, dim, height, width) of any size, output (b, dim_out, height / stride, width / stride), rounded up.

    Raises:
        ValueError: if the arguments do not fit each other, or an input does not fit the layer.
        TypeError: if an input is not a floating-point tensor of the weights' dtype.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int | None = None,
        *,
        stride: int = 1,
        num_heads: int = 8,
        dim_head: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.dim, self.dim_out, self.num_heads, dim_head = attention_sizes(dim, dim_out, num_heads, dim_head)
        self.widths = [self.num_heads * dim_head, self.num_heads * dim_head, self.dim_out]
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        stride = positive_int("stride", stride)
        self.conv = nn.Conv2d(self.dim, self.dim_out, 3, stride, 1, bias=False, **factory)
        self.qkv = nn.Conv2d(self.dim_out, sum(self.widths), 1, bias=False, **factory)
        self.proj = nn.Conv2d(self.dim_out, self.dim_out, 1, bias=False, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the convolution as timm's ResNets do, the projections with the variance of their inputs."""
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.qkv.weight, std=self.dim_out**-0.5)
        nn.init.normal_(self.proj.weight, std=self.dim_out**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(b, dim, height, width) -> (b, dim_out, *strided map)."""
        if isinstance(x, Proxy):  # torch.fx.symbolic_trace
            return leaf(self, x)
        check_map(self, x, self.dim, self.conv)
        z = self.conv(x)
        # (b, h · depth, y, x) -> (b, h, depth, n)
        query, key, value = (
            by_heads(part, self.num_heads).flatten(3) for part in self.qkv(z).split(self.widths, dim=1)
        )
        summary = value @ key.softmax(dim=3).transpose(2, 3)  # (b, h, v, d)
        attended = summary @ query.softmax(dim=2)
        return z + self.proj(attended.reshape(z.shape))

    def extra_repr(self) -> str:
        """The arguments that the submodules do not show."""
        return f"{self.dim}, {self.dim_out}, num_heads={self.num_heads}"
