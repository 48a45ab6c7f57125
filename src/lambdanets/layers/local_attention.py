"""Local self-attention with relative positions: every position attends to a square around it.

Axes: b batch, h heads, d depth, y rows, x columns, s the scope, e the sides of a block of queries, w those of its
window.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.fx import Proxy

from lambdanets.layers.arguments import check_bool, per_axis
from lambdanets.layers.leaves import leaf
from lambdanets.layers.maps import attention_sizes, by_heads, check_map, pooling
from lambdanets.layers.relative import by_position, fused_attention, one_hot

__all__ = ["LocalAttention"]

# Side of the blocks of queries that the fused attention takes at once, on maps that are not smaller.
BLOCK = 8


class LocalAttention(nn.Module):
    """Self-attention over a square of ``scope`` x ``scope`` positions around each position, with relative positions.

    y_i = Σ_j softmax_j( q_i · k_j / √d + q_i · (r_row(j − i) + r_column(j − i)) ) v_j for each head, j over the square
    (Ramachandran et al. 2019, arXiv 1906.05909, equation 3). Positions outside of the map have keys and values of zero
    and take part in the softmax, as in timm's ``HaloAttn``, which with blocks of one position and a halo of
    ``scope // 2`` computes the same. This layer copies no keys and values for each square.

    Args:
        dim: channels of the input.
        dim_out: channels of the output; default ``dim``. Must be divisible by ``num_heads``.
        scope: side of the square, odd. Default 7.
        stride: the output is pooled by a 3-wide average with this stride (padding 1), as after lambda layers.
            Default 1: no pooling.
        num_heads: default 8, as in the paper's comparisons.
        dim_head: depth of a head's queries and keys; default that of its values, dim_out / num_heads.
        fused: True computes blocks of queries with PyTorch's fused attention over their common window, masked to each
            query's square; the same numbers. Default False: a map of n x scope² is stored for the backward pass, as in
            the paper's comparisons.
        device: where the parameters live.
        dtype: their element type.

    Shape:
        input (b, dim, height, width) of any size, output (b, dim_out, height / stride, width / stride), rounded up.

    Raises:
        ValueError: if the arguments do not fit each other, or an input does not fit the layer.
        TypeError: if ``fused`` is no bool, or an input is not a floating-point tensor of the weights' dtype.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int | None = None,
        *,
        scope: int = 7,
        stride: int = 1,
        num_heads: int = 8,
        dim_head: int | None = None,
        fused: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.dim, self.dim_out, self.num_heads, self.dim_head = attention_sizes(dim, dim_out, num_heads, dim_head)
        (self.scope,) = per_axis("scope", scope, 1, odd=True)
        self.fused, self.scale = check_bool("fused", fused), self.dim_head**-0.5
        self.widths = [self.num_heads * self.dim_head, self.num_heads * self.dim_head, self.dim_out]
        self.qkv = nn.Conv2d(self.dim, sum(self.widths), 1, bias=False, device=device, dtype=dtype)
        tables = (torch.empty(self.scope, self.dim_head, device=device, dtype=dtype) for _ in range(2))
        self.height_rel, self.width_rel = (nn.Parameter(table) for table in tables)
        self.pool = pooling(stride)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as timm's attention layers: truncated normal, of fan-in and of √d."""
        trunc_normal_(self.qkv.weight, std=self.dim**-0.5)
        trunc_normal_(self.height_rel, std=self.scale)
        trunc_normal_(self.width_rel, std=self.scale)

    def elementwise_multiply_adds(self, height: int, width: int) -> int:
        """Return the products for one map that are computed element by element, which PyTorch does not count.

        With stored maps these are queries with keys and weights with values, the padding included.
        """
        if self.fused:
            return 0
        return height * width * self.scope**2 * (self.num_heads * self.dim_head + self.dim_out)

    def forward(self, x: Tensor) -> Tensor:
        """(b, dim, height, width) -> (b, dim_out, *strided map)."""
        if isinstance(x, Proxy):  # torch.fx.symbolic_trace
            return leaf(self, x)
        check_map(self, x, self.dim, self.qkv)
        # (b, h · d, y, x) -> (b, h, d, y, x)
        parts = (by_heads(part, self.num_heads) for part in self.qkv(x).split(self.widths, dim=1))
        attend = self._fused if self.fused else self._stored
        # Contiguous: with one head channels are innermost, and batch-norms after the layer would misread one example
        # (docs/pytorch-batchnorm-fault.md).
        return self.pool(attend(*parts).contiguous())

    def _stored(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        (height, width), reach, s = query.shape[3:], self.scope // 2, self.scope
        corners = [(y, x) for y in range(s) for x in range(s)]
        # Keys and values moved by each offset are views of the padded ones, which alone are kept for backward.
        keys, values = (F.pad(part, (reach,) * 4) for part in (key, value))
        scaled = query * self.scale
        products = [(scaled * keys[..., y : y + height, x : x + width]).sum(2) for y, x in corners]
        logits = torch.stack(products, dim=2).reshape(*query.shape[:2], s, s, height, width)
        logits += torch.einsum("bhdyx,sd->bhsyx", query, self.height_rel)[:, :, :, None]
        logits += torch.einsum("bhdyx,sd->bhsyx", query, self.width_rel)[:, :, None]
        weights = logits.flatten(2, 3).softmax(dim=2)
        out = torch.zeros_like(value)
        for weight, (y, x) in zip(weights.unbind(2), corners, strict=True):
            out = out + weight[:, :, None] * values[..., y : y + height, x : x + width]
        return out.flatten(1, 2)

    def _fused(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        b, h, _, height, width = query.shape
        reach, e = self.scope // 2, (_block(height), _block(width))
        w = (e[0] + 2 * reach, e[1] + 2 * reach)
        below, right = -height % e[0], -width % e[1]
        queries = F.pad(query, (0, right, 0, below))
        queries = queries.unfold(3, e[0], e[0]).unfold(4, e[1], e[1])  # (b, h, d, blocks, blocks, *e)
        padding = (reach, reach + right, reach, reach + below)
        keys, values = (F.pad(part, padding).unfold(3, w[0], e[0]).unfold(4, w[1], e[1]) for part in (key, value))
        blocks = queries.shape[3:5]

        # (b, h, d, blocks, blocks, rows, columns) -> (b · blocks, h, rows, columns, d)
        queries, keys, values = (part.permute(0, 3, 4, 1, 5, 6, 2).flatten(0, 2) for part in (queries, keys, values))
        rows = by_position((queries @ self.height_rel.T).transpose(2, 3), w[0], 0).transpose(2, 3)
        columns = by_position(queries @ self.width_rel.T, w[1], 0)
        seen_rows, seen_columns = (self._seen(*sides, query.device) for sides in zip(e, w, strict=True))
        mask = seen_rows[:, None, :, None] & seen_columns[None, :, None, :]
        out = fused_attention(
            queries.flatten(2, 3) * self.scale,
            keys.flatten(2, 3),
            values.flatten(2, 3),
            torch.cat([rows, columns], dim=-1).flatten(2, 3),
            one_hot(*w, keys),
            mask.reshape(e[0] * e[1], w[0] * w[1]),
        )
        out = out.reshape(b, *blocks, h, *e, -1).permute(0, 3, 6, 1, 4, 2, 5)
        return out.reshape(b, self.dim_out, blocks[0] * e[0], blocks[1] * e[1])[..., :height, :width]

    def _seen(self, block: int, window: int, device: torch.device) -> Tensor:
        """(block, window), True where a query of a block sees a position of its window, along one axis."""
        offsets = torch.arange(window, device=device) - torch.arange(block, device=device)[:, None]
        return (offsets >= 0) & (offsets < self.scope)

    def extra_repr(self) -> str:
        """The arguments that the submodules do not show."""
        return f"{self.dim}, {self.dim_out}, scope={self.scope}, num_heads={self.num_heads}, fused={self.fused}"


def _block(size: int) -> int:
    """Side of a block along an axis, no larger than the map; sizes that are being traced are not compared."""
    return min(BLOCK, size) if isinstance(size, int) else BLOCK
