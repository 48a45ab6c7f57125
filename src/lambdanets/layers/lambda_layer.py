"""The lambda layer for sequences, images and volumes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.fx import Proxy

from lambdanets.functional import lambda_apply
from lambdanets.kernels.autograd.modes import (
    is_autocast,
    is_compiling,
    is_eager,
    is_hooked,
    is_jit_tracing,
    is_observed,
)
from lambdanets.kernels.names import PLAIN
from lambdanets.kernels.precision import HALF
from lambdanets.layers.arguments import check_bool, check_dtype, per_axis, positive_int
from lambdanets.layers.base import LambdaModule
from lambdanets.layers.leaves import leaf
from lambdanets.layers.norms import (
    NormLayer,
    PositionNorm,
    check_enough_values,
    check_keeps_order,
    check_order,
    make_norm,
)
from lambdanets.layers.projection import FromInput, projected, tensors_of
from lambdanets.positions import GridPositions, pairs_in_reach, require_floating

__all__ = ["LambdaLayer"]

_CONV_MODULE = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class _AvgPool3d(nn.AvgPool3d):
    """PyTorch's 3-D average pooling padded beforehand, since it refuses axes that are shorter than the window."""

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, *grid) -> (b, c, *strided grid)."""
        return F.avg_pool3d(F.pad(x, (1,) * 6), self.kernel_size, self.stride)


_POOL = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: _AvgPool3d}


class LambdaLayer(LambdaModule):
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
            Default 1: no pooling. Not with ``causal``: the average takes in the position that follows.
        causal: each position sees itself and the positions before it in row-major order; the outputs at the others
            do not depend on what follows, in training as in evaluation. Default False.
        qkv_bias: the projection has a bias, as some published layers have. Default False, as in the paper.
        position_bias: one bias for each of the k channels, added to every entry of the position lambda, as a
            position convolution with a bias does; for weights that carry it. Default False, as in the paper.
        norm_layer: normalisation of queries and values: "batch" batch-norm over examples and positions, "layer"
            layer-norm over the channels of each position, "none", or a class or function that makes a norm of inputs
            (b, channels, *grid) from a number of channels; ``nn.LayerNorm`` stands for "layer". Default "batch", as
            in the paper; with ``causal`` "layer", since batch-norm mixes positions in training. A causal layer
            refuses norms that mix positions, and takes "batch" for evaluation only, for weights trained with it.
        kernel: kernel of the op, see :func:`lambdanets.lambda_apply`; default None, the fastest. It changes
            no parameter and no name of one.
        recompute: in training save only the input for the backward pass, as a convolution does, and project it again
            there: less memory for more time (docs/models.md, "What training keeps", has both). Without effect in half
            precision and autocast, under compilers, transforms and dispatch modes, for an empty batch, with a mask,
            another context, causal order, a position bias, the kernels "reference" and "portable", other norms than
            batch-norm, a projection that is frozen or another than the layer's own, methods of a subclass in place of
            ``project`` or ``apply_lambdas``, and hooks on the projection or the norms. Default False; LambdaResNets but
            for the tiny one have True.
        device: where the parameters live.
        dtype: their element type.

    Shape:
        input (b, dim, *grid), output (b, dim_out, *strided grid).

    Raises:
        ValueError: if the arguments do not fit each other, or an input does not fit the layer.
        TypeError: if a switch is no bool, ``norm_layer`` makes no norm, or an input is not a floating-point tensor, or
            of another dtype than the weights without autocast.

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
        norm_layer: NormLayer | None = None,
        kernel: str | None = None,
        recompute: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim, dim_out, num_heads, dim_key, intra_depth)
        if isinstance(ndim, bool) or ndim not in tuple(_CONV_MODULE):  # which need not be hashable
            raise ValueError(f"ndim must be 1 (sequences), 2 (images) or 3 (volumes), got {ndim!r}")
        if (scope is None) == (size is None):
            raise ValueError(
                f"exactly one of scope (local context) and size (global context) must be given, got scope={scope!r} "
                f"and size={size!r}"
            )
        self.ndim, self.stride = ndim, positive_int("stride", stride)
        self.scope = None if scope is None else per_axis("scope", scope, ndim, odd=True)
        self.size = None if size is None else per_axis("size", size, ndim, odd=False)
        for name, given in (
            ("causal", causal),
            ("qkv_bias", qkv_bias),
            ("position_bias", position_bias),
            ("recompute", recompute),
        ):
            check_bool(name, given)
        if kernel is not None:
            self._check_kernel(kernel, self.scope, self.size, causal)
        if causal and self.stride > 1:
            raise ValueError(
                f"causal=True excludes stride={self.stride}: the 3-wide average after the layer would take in the "
                "position that follows; use stride=1 and keep every stride-th output"
            )
        self.causal, self.kernel, self.recompute = causal, kernel, recompute

        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        widths = self._widths()
        self.qkv = _CONV_MODULE[ndim](self.dim, sum(widths), kernel_size=1, bias=qkv_bias, **factory)
        if norm_layer is None:
            norm_layer = "layer" if causal else "batch"
        elif norm_layer is nn.LayerNorm:
            norm_layer = "layer"
        self.norm_query, self.norm_value = (self._norm(norm_layer, width, factory) for width in (widths[0], widths[2]))
        extents = self.scope or tuple(2 * s - 1 for s in self.size or ())
        self.positions = nn.Parameter(torch.empty(self.intra_depth, self.dim_key, *extents, **factory))
        self.position_bias = nn.Parameter(torch.empty(self.dim_key, **factory)) if position_bias else None
        self.pool: nn.Module = nn.Identity() if self.stride == 1 else _POOL[ndim](3, self.stride, padding=1)
        self.reset_parameters()

    def _norm(self, norm_layer: NormLayer, width: int, factory: dict[str, Any]) -> nn.Module:
        named = {"batch": _NORM[self.ndim], "layer": PositionNorm, "none": nn.Identity}
        norm = make_norm(norm_layer, named, width, **factory)
        if self.causal and not isinstance(norm_layer, str):
            check_keeps_order(norm, width, self.ndim, channels_axis=1)
        return norm

    @property
    def num_context(self) -> int:
        """Context positions of a query at the largest (global) or away from the border (local)."""
        return math.prod(self.scope or self.size or ())

    def padding_multiply_adds(self, *grid: int) -> int:
        """Return the products with the padding of a local context that reaches over the border, for one map.

        No kernel computes them; counters of a position convolution over a padded map include them.
        """
        if self.scope is None:
            return 0
        inside = pairs_in_reach(grid, self.scope, [scope // 2 for scope in self.scope])
        outside = math.prod(grid) * math.prod(self.scope) - inside
        return self.intra_depth * self.dim_key * self.dim_value * outside

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise: projections as in the paper, positions so that a full context's position term has variance 1.

        Keys and values N(0, dim^-1/2), queries N(0, (k · dim)^-1/2); positions have variance
        1 / (k · u · context positions): each output sums k · u · m products of a unit-variance query and value with a
        position entry. A local context that reaches over the border sums fewer, and its position term starts smaller.

        The content term adds a variance of k · u · Σ_m K̄_m², about k · u · e / m, which nothing scales down: small on
        large maps, but above the position term's below 7x7, and four times as much at u = 4. With k 16 and a global
        context outputs start with variance 17 at 1x1, 4.2 at 3x3, 1.8 at 7x7, 1.3 at 14x14 for u = 1, and with 69 at
        1x1, 9.1 at 4x4, 4.2 at 7x7, 2.1 at 14x14 for u = 4 (results/start.csv).
        """
        self._reset_projection(self.qkv.weight, (self.norm_query, self.norm_value))
        nn.init.normal_(self.positions, std=(self.dim_key * self.intra_depth * self.num_context) ** -0.5)
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
        if context is not None:
            self._check_context(x, context)
        if self.causal:
            check_order(self.norm_query, self.norm_value)
        if not (is_compiling() or is_jit_tracing()) and x.numel() == self.dim:
            check_enough_values(f"x of shape {tuple(x.shape)}", self.norm_query, self.norm_value)
        grid = tuple(x.shape[2:])
        if self._saves_only_input(x, context, mask):
            out = FromInput.apply(self, x, *tensors_of(self))
        else:
            query, key, value = self.project(x, context)
            flat_mask = None if mask is None else self._flat_mask(mask, grid)
            out = self.apply_lambdas(query, key, value, GridPositions(self.positions, grid), flat_mask)
            if self.position_bias is not None:
                out = out + (query @ self.position_bias.to(query.dtype))[..., None]
        # Contiguous before the grid's axes come back: with one head this is a view whose channels are innermost, and
        # batch-norms after the layer would misread one example of it (docs/pytorch-batchnorm-fault.md).
        out = out.transpose(2, 3).flatten(1, 2).contiguous()
        out = out.reshape(*out.shape[:2], *grid)
        keeps = torch.is_grad_enabled() and is_eager((out,))
        if keeps and type(self.pool) is _POOL[self.ndim] and not is_hooked([self.pool]):
            return _averaged(self.pool, out)
        return self.pool(out)

    def project(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return the arguments of :func:`lambdanets.lambda_apply`, norms applied; the input is not checked.

        Args:
            x: (b, dim, *grid), for the queries.
            context: for keys and values, of the same shape; default ``x``.

        Returns:
            Queries (b, h, n, k), keys (b, u, m, k) before their softmax, and values (b, u, m, v).
        """
        return projected(x, context, self.qkv, self.norm_query, self.norm_value, self)

    def apply_lambdas(
        self, query: Tensor, key: Tensor, value: Tensor, positions: GridPositions, mask: Tensor | None
    ) -> Tensor:
        """Apply the lambdas of the context to the queries; subclasses may compute another sum.

        Args:
            query: (b, h, n, k), as are ``key`` and ``value`` of :meth:`project`.
            key: (b, u, m, k).
            value: (b, u, m, v).
            positions: the layer's table on the grid of the input.
            mask: bool (b, m), True where the context position takes part; None for all.

        Returns:
            (b, h, n, v).
        """
        return lambda_apply(query, key, value, positions, mask=mask, causal=self.causal, kernel=self.kernel)

    def _saves_only_input(self, x: Tensor, context: Tensor | None, mask: Tensor | None) -> bool:
        """True if a call goes through :class:`FromInput`, which projects again in the backward pass.

        It does if ``recompute`` asks for it, where that saves memory and gives the same gradients:

        - gradients are recorded, the projection weight's among them, which needs the input in any case;
        - it runs now, on plain tensors: a compiler chooses by itself what is kept, other observers want all operations;
        - there are examples: no kernel runs on none;
        - neither half precision nor autocast: such a call is several operations with copies of their own;
        - the class's own methods; no context beside ``x``, mask, causal order or bias; a kernel with written gradients;
        - PyTorch's 1x1 convolution and batch-norms, which are functions of their tensors, without hooks, which would
          miss the second call.
        """
        if not (self.recompute and torch.is_grad_enabled() and is_eager((x,))) or x.shape[0] == 0:
            return False
        if x.dtype in HALF or is_autocast(x.device.type):
            return False
        if context is not None or mask is not None or self.causal or self.position_bias is not None:
            return False
        for method, own in (self.project, LambdaLayer.project), (self.apply_lambdas, LambdaLayer.apply_lambdas):
            if getattr(method, "__func__", None) is not own:
                return False
        qkv, norms = self.qkv, (self.norm_query, self.norm_value)
        if type(qkv) is not _CONV_MODULE[self.ndim] or any(type(norm) is not _NORM[self.ndim] for norm in norms):
            return False
        if not qkv.weight.requires_grad or qkv.groups != 1 or set(qkv.kernel_size) != {1} or is_hooked((qkv, *norms)):
            return False
        return self.kernel not in PLAIN and not is_observed(tensors_of(self))

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
        require_floating(name, x)
        if x.ndim != self.ndim + 2 or x.shape[1] != self.dim:
            axes = ", ".join(["length"] if self.ndim == 1 else ["depth", "height", "width"][-self.ndim :])
            raise ValueError(
                f"{name} must have shape (batch, {self.dim}, {axes}) for LambdaLayer(dim={self.dim}, "
                f"ndim={self.ndim}), got {tuple(x.shape)}"
            )
        if 0 in x.shape[2:]:
            raise ValueError(
                f"{name} must have at least one position along each axis of its grid, got shape {tuple(x.shape)}; a "
                "batch may be empty"
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
        if self.recompute:
            parts.append("recompute=True")
        if self.kernel:
            parts.append(f"kernel={self.kernel!r}")
        return ", ".join(parts)


def _averaged(pool: Any, x: Tensor) -> Tensor:
    """``pool(x)`` of an average without keeping ``x``, of which its gradient needs the shape but autograd keeps all."""
    with saved_tensors_hooks(lambda tensor: tensor.new_empty(1).expand(tensor.shape), lambda shape: shape):
        return pool(x)
