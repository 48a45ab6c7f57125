"""Global self-attention with relative positions: every position attends to all positions of the map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.layers.bottleneck_attn import BottleneckAttn
from torch import Tensor
from torch.fx import Proxy

from lambdanets.layers.arguments import check_bool, per_axis
from lambdanets.layers.leaves import leaf
from lambdanets.layers.maps import attention_sizes, by_heads, check_map, pooling
from lambdanets.layers.relative import by_position, fused_attention, one_hot

__all__ = ["GlobalAttention"]


class GlobalAttention(BottleneckAttn):
    """Self-attention over all positions of a map, with relative positions along its two axes.

    y_i = Σ_j softmax_j( q_i · k_j / √d + q_i · (r_row(j − i) + r_column(j − i)) ) v_j for each head (Bello et al. 2019,
    arXiv 1904.09925, equations 2 to 4; Srinivas et al. 2021, arXiv 2101.11605, figure 4). It is timm's
    ``BottleneckAttn``, whose parameters and start it has, on maps of one size.

    Args:
        dim: channels of the input.
        dim_out: channels of the output; default ``dim``. Must be divisible by ``num_heads``.
        size: (height, width) of the map, or one int for both.
        stride: the output is pooled by a 3-wide average with this stride (padding 1), as after lambda layers.
            Default 1: no pooling.
        num_heads: default 8, as in the paper's comparisons.
        dim_head: depth of a head's queries and keys; default that of its values, dim_out / num_heads.
        scale_positions: True divides the positions' logits by √d, too. Default False.
        fused: True computes with PyTorch's fused attention, which stores no map of n x n; the same numbers. Default
            False: the maps are stored for the backward pass, as in the paper's comparisons.
        device: where the parameters live.
        dtype: their element type.

    Shape:
        input (b, dim, *size), output (b, dim_out, height / stride, width / stride), rounded up.

    Raises:
        ValueError: if the arguments do not fit each other, or an input does not fit the layer.
        TypeError: if ``fused`` or ``scale_positions`` is no bool, or an input is not a floating-point tensor of the
            weights' dtype.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int | None = None,
        *,
        size: int | Sequence[int],
        stride: int = 1,
        num_heads: int = 8,
        dim_head: int | None = None,
        scale_positions: bool = False,
        fused: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        dim, dim_out, num_heads, dim_head = attention_sizes(dim, dim_out, num_heads, dim_head)
        height, width = per_axis("size", size, 2, odd=False)
        super().__init__(
            dim,
            dim_out,
            feat_size=(height, width),
            num_heads=num_heads,
            dim_head=dim_head,
            scale_pos_embed=check_bool("scale_positions", scale_positions),
            device=device,
            dtype=dtype,
        )
        self.dim, self.dim_out, self.size = dim, dim_out, (height, width)
        self.fused = check_bool("fused", fused)
        self.pool = pooling(stride)  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        """(b, dim, *size) -> (b, dim_out, *strided size)."""
        if isinstance(x, Proxy):  # torch.fx.symbolic_trace
            return leaf(self, x)
        check_map(self, x, self.dim, self.qkv, self.size)
        # Contiguous: with one head channels are innermost, and batch-norms after the layer would misread one example
        # (docs/pytorch-batchnorm-fault.md).
        return (self.pool(self._fused(x)) if self.fused else super().forward(x)).contiguous()

    def _fused(self, x: Tensor) -> Tensor:
        height, width = self.size
        widths = [self.dim_out_qk, self.dim_out_qk, self.dim_out_v]
        # (b, h · depth, height, width) -> (b, h, height, width, depth)
        query, key, value = (
            by_heads(part, self.num_heads).permute(0, 1, 3, 4, 2) for part in self.qkv(x).split(widths, dim=1)
        )
        column_logits = query @ self.pos_embed.width_rel.T
        row_logits = query.transpose(2, 3) @ self.pos_embed.height_rel.T
        logits = torch.cat(
            [
                by_position(row_logits, height, height - 1).transpose(2, 3),
                by_position(column_logits, width, width - 1),
            ],
            dim=-1,
        )
        if self.scale_pos_embed:
            logits = logits * self.scale
        query, key, value, logits = (part.flatten(2, 3) for part in (query * self.scale, key, value, logits))
        out = fused_attention(query, key, value, logits, one_hot(height, width, key))
        return out.transpose(2, 3).reshape(x.shape[0], self.dim_out, height, width)

    def extra_repr(self) -> str:
        """The arguments that the submodules do not show."""
        return f"{self.dim}, {self.dim_out}, size={self.size}, num_heads={self.num_heads}, fused={self.fused}"
