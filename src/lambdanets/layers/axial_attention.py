"""Axial self-attention with relative positions: along the columns of a map, then along its rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.fx import Proxy

from lambdanets.layers.arguments import check_bool, per_axis
from lambdanets.layers.leaves import leaf
from lambdanets.layers.maps import attention_sizes, by_heads, check_map, pooling
from lambdanets.layers.relative import by_position, fused_attention

__all__ = ["AxialAttention", "AxisAttention"]


class AxisAttention(nn.Module):
    """Self-attention of each position over the positions of one axis of the map, with relative positions.

    y_i = Σ_j softmax_j( q_i · k_j / √d + q_i · r(j − i) ) v_j for each head, j over the column (or row) of i.

    Args:
        dim: channels of the input.
        dim_out: channels of the output.
        length: positions of the axis.
        vertical: True for columns, False for rows.
        num_heads: must divide ``dim_out``.
        dim_head: depth of a head's queries and keys.
        fused: True computes with PyTorch's fused attention.
        device: where the parameters live.
        dtype: their element type.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        length: int,
        vertical: bool,
        num_heads: int,
        dim_head: int,
        fused: bool,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.length, self.num_heads, self.dim_head = length, num_heads, dim_head
        self.vertical, self.fused = check_bool("vertical", vertical), check_bool("fused", fused)
        self.scale = dim_head**-0.5
        self.widths = [num_heads * dim_head, num_heads * dim_head, dim_out]
        self.qkv = nn.Conv2d(dim, sum(self.widths), 1, bias=False, device=device, dtype=dtype)
        self.relative = nn.Parameter(torch.empty(2 * length - 1, dim_head, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as timm's attention layers: truncated normal, of fan-in and of √d."""
        trunc_normal_(self.qkv.weight, std=self.qkv.weight.shape[1] ** -0.5)
        trunc_normal_(self.relative, std=self.scale)

    def forward(self, x: Tensor) -> Tensor:
        """(b, dim, height, width) -> (b, dim_out, height, width)."""
        lines = x.transpose(2, 3) if self.vertical else x
        # (b, h · depth, lines, length) -> (b · lines, h, length, depth)
        query, key, value = (
            by_heads(part, self.num_heads).permute(0, 3, 1, 4, 2).flatten(0, 1)
            for part in self.qkv(lines).split(self.widths, dim=1)
        )
        positions = by_position(query @ self.relative.T, self.length, self.length - 1)
        query = query * self.scale
        if self.fused:
            which = torch.eye(self.length, dtype=key.dtype, device=key.device)
            out = fused_attention(query, key, value, positions, which)
        else:
            out = (query @ key.transpose(2, 3)).add_(positions).softmax(dim=-1) @ value
        out = out.reshape(x.shape[0], lines.shape[2], *out.shape[1:]).permute(0, 2, 4, 1, 3).flatten(1, 2)
        return out.transpose(2, 3) if self.vertical else out


class AxialAttention(nn.Module):
    """Self-attention along the columns of a map and then along its rows, each with relative positions.

    Each of the two is a self-attention of its own with the logits q_i · k_j / √d + q_i · r(j − i): Ho et al. 2019
    (arXiv 1912.12180); Wang et al. 2020 (arXiv 2003.07853, section 3.2) without its terms for keys and values. Two
    steps connect every two positions of the map, at a cost of b·h·n·(height + width) instead of b·h·n².

    Args:
        dim: channels of the input.
        dim_out: channels of the output; default ``dim``. Must be divisible by ``num_heads``.
        size: (height, width) of the map, or one int for both.
        stride: the output is pooled by a 3-wide average with this stride (padding 1), as after lambda layers.
            Default 1: no pooling.
        num_heads: default 8, as in the paper's comparisons.
        dim_head: depth of a head's queries and keys; default that of its values, dim_out / num_heads.
        fused: True computes with PyTorch's fused attention, which stores no maps; the same numbers. Default False: the
            maps are stored for the backward pass, as in the paper's comparisons.
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
        dim_head: int | None = None,
        fused: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.dim, self.dim_out, num_heads, dim_head = attention_sizes(dim, dim_out, num_heads, dim_head)
        height, width = per_axis("size", size, 2, odd=False)
        self.size = (height, width)
        shared = (num_heads, dim_head, fused, device, dtype)
        self.columns = AxisAttention(self.dim, self.dim_out, height, True, *shared)
        self.rows = AxisAttention(self.dim_out, self.dim_out, width, False, *shared)
        self.pool = pooling(stride)

    def reset_parameters(self) -> None:
        """Initialise both axes as timm's attention layers."""
        self.columns.reset_parameters()
        self.rows.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """(b, dim, *size) -> (b, dim_out, *strided size)."""
        if isinstance(x, Proxy):  # torch.fx.symbolic_trace
            return leaf(self, x)
        check_map(self, x, self.dim, self.columns.qkv, self.size)
        # Contiguous: with one head channels are innermost, and batch-norms after the layer would misread one example
        # (docs/pytorch-batchnorm-fault.md).
        return self.pool(self.rows(self.columns(x)).contiguous())

    def extra_repr(self) -> str:
        """The arguments that the submodules do not show."""
        heads, fused = self.rows.num_heads, self.rows.fused
        return f"{self.dim}, {self.dim_out}, size={self.size}, num_heads={heads}, fused={fused}"
