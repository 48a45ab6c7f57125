"""The lambda layer for sequences, images and volumes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy

from lambdanets.functional import check_kernel, is_readable, lambda_apply
from lambdanets.layers.arguments import check_dtype, check_heads, per_axis, positive_int
from lambdanets.layers.leaves import leaf
from lambdanets.layers.projection import project
from lambdanets.positions import GridPositions

__all__ = ["LambdaLayer"]

_CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class _AvgPool3d(nn.AvgPool3d):
    """PyTorch's refuses axes shorter than the window, which its others pad first: padded before, it takes them."""

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, *grid) -> (b, c, *strided grid)."""
        return F.avg_pool3d(F.pad(x, (1,) * 6), self.kernel_size, self.stride)


_POOL = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: _AvgPool3d}


class LambdaLayer(nn.Module):
    """Lambda layer: queries applied to a summary (a lambda) of their context, instead of attention.

    One 1x1 projection gives queries, keys and values; queries and values are batch-normalised, keys pass a
    softmax over the context positions; :func:`lambdanets.lambda_apply` does the rest (LambdaNetworks,
    section 3 and figure 3). The context is *local* (``scope``) or *global* (``size``); both are one table of
    offsets, ``positions`` of shape (u, k, *extents), whose centre is offset 0.

    Args:
        dim: channels of the input.
        dim_out: channels of the output; default ``dim``. Must be divisible by ``num_heads``.
        num_heads: the paper's h, queries a position. Default 4.
        dim_key: the paper's k, depth of queries, keys and position embeddings. Default 16.
        intra_depth: the paper's u, keys and values a context position. Default 1.
        scope: local context of ``scope`` positions along each axis around the query; an odd int, or one for
            each axis. Takes inputs of any size.
        size: global context; an int or one size for each axis, the largest grid that the layer takes.
            Smaller ones use the centre of its table. Exactly one of ``scope`` and ``size`` must be given.
        ndim: rank of the grid: 1 sequences, 2 images (default), 3 volumes.
        stride: the output is pooled by a 3-wide average with this stride (padding 1), as in the paper.
            Default 1: no pooling.
        causal: each position sees itself and the positions before it in row-major order. Batch-norm mixes
            positions during training; pass another ``norm_layer`` where that matters. Default False.
        qkv_bias: the projection has a bias, as some published layers have. Default False, as in the paper.
        position_bias: one bias for each of the k channels, added to every entry of the position lambda, as a
            position convolution with a bias does; for weights that carry it. Default False, as in the paper.
        norm_layer: makes the normalisation of queries and values from a number of channels; default
            batch-norm of the grid's rank. ``nn.Identity`` for none.
        kernel: kernel of the op, see :func:`lambdanets.lambda_apply`; default None, the fastest. It changes
            no parameter and no name of one.
        device: where the parameters live.
        dtype: their element type.

    Shape:
        input (b, dim, *grid), output (b, dim_out, *strided grid).

    Raises:
        ValueError: if the arguments do not fit each other, or an input does not fit the layer.
        TypeError: if an input is not a floating-point tensor, or of another dtype than the weights without autocast.

    Example:
        >>> layer = LambdaLayer(64, scope=7)
        >>> layer(torch.randn(2, 64, 14, 10)).shape
        torch.Size([2, 64, 14, 10])
    """

    def __init__(
        self,
        dim: int,
        dim_out: int | None = None,
        *,
        num_heads: int = 4,
        dim_key: int = 16,
        intra_depth: int = 1,
        scope: int | Sequence[int] | None = None,
        size: int | Sequence[int] | None = None,
        ndim: int = 2,
        stride: int = 1,
        causal: bool = False,
        qkv_bias: bool = False,
        position_bias: bool = False,
        norm_layer: Callable[[int], nn.Module] | None = None,
        kernel: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dim, num_heads = positive_int("dim", dim), positive_int("num_heads", num_heads)
        dim_key, intra_depth = positive_int("dim_key", dim_key), positive_int("intra_depth", intra_depth)
        dim_out, stride = positive_int("dim_out", dim if dim_out is None else dim_out), positive_int("stride", stride)
        check_heads(num_heads, dim_out)
        if isinstance(ndim, bool) or ndim not in _CONV:
            raise ValueError(f"ndim must be 1 (sequences), 2 (images) or 3 (volumes), got {ndim!r}")
        if (scope is None) == (size is None):
            raise ValueError(
                f"exactly one of scope (local context) and size (global context) must be given, got scope={scope!r} "
                f"and size={size!r}"
            )
        self.dim, self.dim_out, self.ndim, self.stride = dim, dim_out, ndim, stride
        self.num_heads, self.dim_key, self.intra_depth = num_heads, dim_key, intra_depth
        self.dim_value = dim_out // num_heads
        self.scope = None if scope is None else per_axis("scope", scope, ndim, odd=True)
        self.size = None if size is None else per_axis("size", size, ndim, odd=False)
        if not isinstance(causal, bool):
            raise TypeError(f"causal must be True or False, got {causal!r}")
        if kernel is not None:
            check_kernel(kernel)
        self.causal, self.kernel = causal, kernel

        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        widths = self._widths()
        self.qkv = _CONV[ndim](dim, sum(widths), kernel_size=1, bias=qkv_bias, **factory)
        self.norm_query = self._norm(norm_layer, widths[0], factory)
        self.norm_value = self._norm(norm_layer, widths[2], factory)
        extents = self.scope or tuple(2 * s - 1 for s in self.size or ())
        self.positions = nn.Parameter(torch.empty(intra_depth, dim_key, *extents, **factory))
        self.position_bias = nn.Parameter(torch.empty(dim_key, **factory)) if position_bias else None
        self.pool = nn.Identity() if stride == 1 else _POOL[ndim](3, stride, padding=1)
        self.reset_parameters()

    def _widths(self) -> list[int]:
        """Channels of queries (h, k), keys (u, k) and values (u, v), in the projection's order."""
        return [
            self.num_heads * self.dim_key,
            self.intra_depth * self.dim_key,
            self.intra_depth * self.dim_value,
        ]

    def _norm(self, norm_layer: Callable[[int], nn.Module] | None, width: int, factory: dict[str, Any]) -> nn.Module:
        if norm_layer is None:
            return _NORM[self.ndim](width, **factory)
        return norm_layer(width).to(device=factory["device"], dtype=factory["dtype"])

    @property
    def num_context(self) -> int:
        """Context positions of a query at the largest (global) or away from the border (local)."""
        return math.prod(self.scope or self.size or ())

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise: projections as in the paper, positions so that the output has variance about 1.

        Keys and values N(0, dim^-1/2), queries N(0, (k · dim)^-1/2); positions have variance
        1 / (k · u · context positions): each output sums k · u · m products of a unit-variance query and value
        with a position entry. The content term adds about k · u · (e / m + 1 / dim) to the variance.
        """
        query, key_value = self.qkv.weight.split([self._widths()[0], sum(self._widths()[1:])])
        nn.init.normal_(query, std=(self.dim_key * self.dim) ** -0.5)
        nn.init.normal_(key_value, std=self.dim**-0.5)
        nn.init.normal_(self.positions, std=(self.dim_key * self.intra_depth * self.num_context) ** -0.5)
        for norm in (self.norm_query, self.norm_value):
            reset = getattr(norm, "reset_parameters", None)
            if callable(reset):
                reset()
        for bias in (self.qkv.bias, self.position_bias):
            if bias is not None:
                nn.init.zeros_(bias)

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Apply the layer.

        Args:
            x: (b, dim, *grid).
            context: another input to take keys and values from, of the same shape as ``x``; default ``x``.
            mask: bool, (b, *grid) or (b, positions), True where the context position takes part.

        Returns:
            (b, dim_out, *strided grid).
        """
        if isinstance(x, Proxy):  # torch.fx.symbolic_trace
            return leaf(self, x, context, mask)
        self._check_input("x", x)
        b, grid = x.shape[0], x.shape[2:]
        n = math.prod(grid)
        if context is not None:
            self._check_context(x, context)
        query, key, value = project(self.qkv, self.norm_query, self.norm_value, self._widths(), x, context)
        query = query.reshape(b, self.num_heads, self.dim_key, n)
        key = key.reshape(b, self.intra_depth, self.dim_key, n)
        value = value.reshape(b, self.intra_depth, self.dim_value, n)
        out = lambda_apply(
            query.transpose(2, 3),
            key.transpose(2, 3),
            value.transpose(2, 3),
            GridPositions(self.positions, tuple(grid)),
            mask=None if mask is None else self._flat_mask(mask, tuple(grid)),
            causal=self.causal,
            kernel=self.kernel,
        )
        out = out.transpose(2, 3)  # (b, h, v, n)
        if self.position_bias is not None:
            out = out + torch.einsum("bhkn,k->bhn", query, self.position_bias.to(query.dtype))[:, :, None]
        out = out.reshape(b, self.dim_out, *grid)
        # A batch-norm behind the layer would misread a single example too: see single_example.py.
        return self.pool(out.contiguous() if is_readable(out) and b == 1 else out)

    def _flat_mask(self, mask: Tensor, grid: tuple[int, ...]) -> Tensor:
        if not isinstance(mask, Tensor):
            raise TypeError(f"mask must be a bool tensor of shape (b, *grid), got {type(mask).__name__}")
        if mask.ndim == 2:
            return mask
        if tuple(mask.shape[1:]) != grid:
            raise ValueError(
                f"mask must have shape (b, {', '.join(map(str, grid))}) or (b, {math.prod(grid)}), "
                f"got {tuple(mask.shape)}"
            )
        return mask.flatten(1)

    def _check_context(self, x: Tensor, context: Tensor) -> None:
        self._check_input("context", context)
        if context.shape != x.shape:
            raise ValueError(
                "context must have the shape of x, since positions are relative on one grid, got context "
                f"{tuple(context.shape)} and x {tuple(x.shape)}; use lambda_apply with DensePositions or none "
                "for a context of another size"
            )

    def _check_input(self, name: str, x: Tensor) -> None:
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
        if not x.is_floating_point():
            raise TypeError(f"{name} must be a floating-point tensor, got {x.dtype}; convert it with .float()")
        if x.ndim != self.ndim + 2 or x.shape[1] != self.dim:
            axes = ", ".join(["length"] if self.ndim == 1 else ["depth", "height", "width"][-self.ndim :])
            raise ValueError(
                f"{name} must have shape (batch, {self.dim}, {axes}) for LambdaLayer(dim={self.dim}, "
                f"ndim={self.ndim}), got {tuple(x.shape)}"
            )
        check_dtype(name, x, self.qkv)
        if self.size is not None and any(g > s for g, s in zip(x.shape[2:], self.size, strict=True)):
            raise ValueError(
                f"{name} has a grid of {tuple(x.shape[2:])}, larger than size={self.size} of this global layer; "
                "build it with a larger size, or use a local layer (scope=...), which takes any grid"
            )

    def _switches(self) -> dict[str, bool]:
        return {
            "causal": self.causal,
            "qkv_bias": getattr(self.qkv, "bias", None) is not None,
            "position_bias": self.position_bias is not None,
        }

    def extra_repr(self) -> str:
        """The arguments that the submodules do not show."""
        context = f"scope={self.scope}" if self.scope else f"size={self.size}"
        parts = [
            f"{self.dim}, {self.dim_out}, num_heads={self.num_heads}, dim_key={self.dim_key}",
            f"intra_depth={self.intra_depth}, {context}",
        ]
        parts += [f"{name}=True" for name, given in self._switches().items() if given]
        if self.kernel:
            parts.append(f"kernel={self.kernel!r}")
        return ", ".join(parts)
