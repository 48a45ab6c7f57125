"""A lambda layer for tokens: a sequence, or a grid of patches after tokens that have no place on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from lambdanets.functional import lambda_apply
from lambdanets.kernels.autograd.modes import without_autocast
from lambdanets.layers.arguments import check_bool, check_dtype, per_axis, positive_int
from lambdanets.layers.base import LambdaModule
from lambdanets.layers.leaves import leaf
from lambdanets.layers.norms import NormLayer, check_keeps_order, check_order, make_norm
from lambdanets.positions import GridPositions, require_floating

__all__ = ["POSITIONS", "TokenLambda"]

POSITIONS = {"none": 0, "1d": 1, "2d": 2}

_NORMS = {"layer": nn.LayerNorm, "none": nn.Identity}


class TokenLambda(LambdaModule):
    """Lambda layer over tokens (b, t, dim), as attention has them; the first ones may stand outside of the grid.

    A query of token n sees all tokens m through y_n = (Σ_m K̄_m V_mᵀ + Σ_m E_nm V_mᵀ)ᵀ q_n (LambdaNetworks, equations
    1 to 3), with keys normalised over all tokens. With p = ``prefix_tokens`` (a class token, registers), E is

    ============  ======================  ===============================================
    query n       context m               E_nm
    ============  ======================  ===============================================
    grid          grid                    ``positions[m − n]``: the table of offsets
    grid          prefix token j          ``prefix_keys[j]``, the same from everywhere
    prefix i      grid                    ``prefix_queries[i]``, the same to everywhere
    prefix i      prefix j                ``prefix_pairs[i, j]``
    ============  ======================  ===============================================

    so that the grid stays translation-equivariant, and a class token reads the grid by content and by a learnt sum.
    Queries and values pass a layer-norm: batch-norm, which the paper uses in images, would mix tokens with padding
    and with those that follow.

    Args:
        dim: channels of the tokens.
        dim_out: channels of the output; default ``dim``. Must be divisible by ``num_heads``.
        positions: "1d" a sequence, "2d" an image's patches in row-major order, "none" the content term alone.
        scope: local context of ``scope`` positions along each axis; odd.
        size: global context; the longest sequence, or height and width of the largest grid. Exactly one of ``scope``
            and ``size``, or with "2d" both: a local context whose usual grid is known. None with "none".
        prefix_tokens: how many tokens in front have no place on the grid. Default 0.
        num_heads: the paper's h. Default 4.
        dim_key: the paper's k. Default 16.
        intra_depth: the paper's u. Default 1.
        causal: a token sees itself and those before it. Not with prefix tokens. Default False.
        norm_layer: normalisation of queries and values: "layer" (default) layer-norm over the channels of each token,
            "none", or a class or function that makes a norm of (b, t, channels) from a number of channels. A causal
            layer refuses norms that mix tokens.
        kernel: kernel of the position term, see :func:`lambdanets.lambda_apply`.
        device: where the parameters live.
        dtype: their element type.

    Attributes:
        grid: height and width of the tokens with "2d", default ``size``. Set it for inputs of another shape; a square
            number of tokens needs nothing.

    Shape:
        input (b, t, dim), output (b, t, dim_out).

    Raises:
        ValueError: if arguments or inputs do not fit each other; the message says what would do.
        TypeError: if a switch is no bool, ``norm_layer`` makes no norm, or an input is not a floating-point tensor, or
            of another dtype than the weights without autocast.

    Example:
        >>> mix = TokenLambda(192, positions="2d", size=14, prefix_tokens=1)
        >>> mix(torch.randn(2, 197, 192)).shape
        torch.Size([2, 197, 192])
    """

    def __init__(
        self,
        dim: int,
        dim_out: int | None = None,
        *,
        positions: str = "1d",
        scope: int | Sequence[int] | None = None,
        size: int | Sequence[int] | None = None,
        prefix_tokens: int = 0,
        num_heads: int = 4,
        dim_key: int = 16,
        intra_depth: int = 1,
        causal: bool = False,
        norm_layer: NormLayer | None = None,
        kernel: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim, dim_out, num_heads, dim_key, intra_depth)
        if not isinstance(positions, str) or positions not in POSITIONS:
            raise ValueError(f"positions must be one of {', '.join(map(repr, POSITIONS))}, got {positions!r}")
        prefix_tokens = positive_int("prefix_tokens", prefix_tokens, or_zero=True)
        check_bool("causal", causal)
        if causal and prefix_tokens:
            raise ValueError(f"causal=True excludes prefix_tokens={prefix_tokens}: a prefix token sees all tokens")
        self.ndim = POSITIONS[positions]
        self.prefix_tokens, self.causal, self.kernel = prefix_tokens, causal, kernel
        self.scope = _per_axis("scope", scope, self.ndim, odd=True)
        self.size = _per_axis("size", size, self.ndim, odd=False)
        self._check_scope_and_size(positions)
        if kernel is not None:
            self._check_kernel(kernel, self.scope, self.size, causal)
        self.grid = self.size if self.ndim == 2 else None

        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        widths = self._widths()
        self.qkv = nn.Linear(self.dim, sum(widths), bias=False, **factory)
        norm_layer = "layer" if norm_layer is None else norm_layer
        self.norm_query = make_norm(norm_layer, _NORMS, widths[0], **factory)
        self.norm_value = make_norm(norm_layer, _NORMS, widths[2], **factory)
        if causal and not isinstance(norm_layer, str):
            check_keeps_order(self.norm_query, widths[0], ndim=1, channels_axis=-1)
            check_keeps_order(self.norm_value, widths[2], ndim=1, channels_axis=-1)
        shape, p = (self.intra_depth, self.dim_key), prefix_tokens if self.ndim else 0
        extents = self.scope or tuple(2 * s - 1 for s in self.size or ())
        self.positions = nn.Parameter(torch.empty(*shape, *extents, **factory)) if self.ndim else None
        self.prefix_keys = nn.Parameter(torch.empty(*shape, p, **factory)) if p else None
        self.prefix_queries = nn.Parameter(torch.empty(*shape, p, **factory)) if p else None
        self.prefix_pairs = nn.Parameter(torch.empty(*shape, p, p, **factory)) if p else None
        self.reset_parameters()

    def _check_scope_and_size(self, positions: str) -> None:
        given = f"scope={self.scope} and size={self.size}"
        if self.ndim == 0 and (self.scope or self.size):
            raise ValueError(f'positions="none" has neither scope nor size, got {given}')
        if self.ndim and not self.scope and not self.size:
            what = "the longest sequence" if self.ndim == 1 else "height and width of the largest grid"
            raise ValueError(f'positions="{positions}" needs size={what} (global) or an odd scope (local), got {given}')
        if self.ndim == 1 and self.scope and self.size:
            raise ValueError(f'exactly one of scope and size must be given with positions="1d", got {given}')

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise as :class:`lambdanets.LambdaLayer` does; the grid's position term starts with variance about 1.

        A prefix token's learnt sum over the grid starts smaller, by the root of the context's size: its entries are
        all equal, so that what tokens have in common adds up.
        """
        self._reset_projection(self.qkv.weight, (self.norm_query, self.norm_value))
        context = math.prod(self.scope or self.size or ())
        std = (self.dim_key * self.intra_depth * context) ** -0.5
        for table in (self.positions, self.prefix_keys, self.prefix_pairs):
            if table is not None:
                nn.init.normal_(table, std=std)
        if self.prefix_queries is not None:
            nn.init.normal_(self.prefix_queries, std=std * context**-0.5)

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Apply the layer.

        Args:
            x: (b, t, dim), prefix tokens first.
            context: another sequence (b, m, dim) to take keys and values from, with ``positions="none"`` only.
            mask: bool (b, m), True where the context token takes part.

        Returns:
            (b, t, dim_out).
        """
        if isinstance(x, Proxy):  # torch.fx.symbolic_trace
            return leaf(self, x, context, mask)
        query, key, value = self.project(x, context)
        if self.positions is None:
            out = lambda_apply(query, key, value, mask=mask, causal=self.causal, kernel=self.kernel)
        elif self.prefix_tokens:
            out = self._with_prefix(query, key, value, mask)
        else:
            positions = GridPositions(self.positions, self._grid(x.shape[1]))
            out = lambda_apply(query, key, value, positions, mask=mask, causal=self.causal, kernel=self.kernel)
        return out.transpose(1, 2).flatten(2)

    def project(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return the arguments of :func:`lambdanets.lambda_apply`, norms applied.

        Args:
            x: (b, t, dim), for the queries.
            context: (b, m, dim), for keys and values; default ``x``.

        Returns:
            Queries (b, h, t, k), keys (b, u, m, k) before their softmax, and values (b, u, m, v).

        Raises:
            ValueError: if an input does not fit the layer.
            TypeError: if an input is not a floating-point tensor, or of another dtype than the weights without
                autocast.
        """
        self._check_inputs(x, context)
        if self.causal:
            check_order(self.norm_query, self.norm_value)
        query, key, value = self.qkv(x).split(self._widths(), dim=2)
        if context is not None:
            _, key, value = self.qkv(context).split(self._widths(), dim=2)
        query, value = self.norm_query(query), self.norm_value(value)
        return (
            _parts(query, self.num_heads, self.dim_key),
            _parts(key, self.intra_depth, self.dim_key),
            _parts(value, self.intra_depth, self.dim_value),
        )

    def _check_inputs(self, x: Tensor, context: Tensor | None) -> None:
        self._check_tokens("x", x)
        if x.shape[1] < self.prefix_tokens:
            raise ValueError(
                f"x must have the {self.prefix_tokens} prefix tokens of this layer in front, got shape {tuple(x.shape)}"
            )
        if context is None:
            return
        if self.ndim:
            raise ValueError(
                "context is another sequence, in which the tokens of x have no positions; it needs a layer with "
                'positions="none"'
            )
        self._check_tokens("context", context)
        if context.shape[0] != x.shape[0]:
            raise ValueError(
                f"context must have the batch size of x, got context {tuple(context.shape)} and x {tuple(x.shape)}"
            )
        if self.causal and context.shape[1] != x.shape[1]:
            raise ValueError(
                f"context must have as many tokens as x in a causal layer, got context {tuple(context.shape)} and x "
                f"{tuple(x.shape)}; leave causal off for a context of its own"
            )

    def _check_tokens(self, name: str, x: Tensor) -> None:
        require_floating(name, x)
        if x.ndim != 3 or x.shape[2] != self.dim:
            raise ValueError(f"{name} must have shape (batch, tokens, {self.dim}), got {tuple(x.shape)}")
        check_dtype(name, x, self.qkv)

    def _with_prefix(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """All tokens share the content term; the position term is put together from E's four blocks."""
        p = self.prefix_tokens
        content = lambda_apply(query, key, value, mask=mask)
        query, value = query.to(content.dtype), value.to(content.dtype)
        if mask is not None:
            value = value.masked_fill(~mask[:, None, :, None], 0.0)
        positions = GridPositions(self.positions, self._grid(query.shape[2] - p))  # type: ignore[arg-type]
        of_grid = lambda_apply(query[:, :, p:], None, value[:, :, p:], positions, kernel=self.kernel)
        # Lambdas of and for prefix tokens in float32, under autocast too: a sum over a grid leaves float16's range.
        wide = torch.promote_types(value.dtype, torch.float32)
        with without_autocast(value.device.type):
            tables = (self.prefix_keys, self.prefix_queries, self.prefix_pairs)
            keys, queries, pairs = (table.to(wide) for table in tables if table is not None)
            to_prefix = value[:, :, :p].to(wide)
            lambda_bkv = torch.einsum("ukj,bujv->bkv", keys, to_prefix)
            lambda_bikv = torch.einsum("uki,buv->bikv", queries, value[:, :, p:].sum(2, dtype=wide))
            lambda_bikv = lambda_bikv + torch.einsum("ukij,bujv->bikv", pairs, to_prefix)
            of_prefix = torch.einsum("bhik,bikv->bhiv", query[:, :, :p].to(wide), lambda_bikv)
            of_grid = of_grid + query[:, :, p:] @ lambda_bkv.to(query.dtype)[:, None]
        return content + torch.cat([of_prefix.to(content.dtype), of_grid], dim=2)

    def _grid(self, tokens: int) -> tuple[int, ...]:
        """The grid that so many tokens form."""
        if self.ndim == 1:
            grid: tuple[int, ...] = (tokens,)
        elif self.grid is not None and math.prod(self.grid) == tokens:
            grid = self.grid
        else:
            side = int(max(tokens, 0) ** 0.5)  # not math.isqrt, which torch.compile does not know
            if side * side != tokens or tokens == 0:
                raise ValueError(
                    f"{tokens} tokens after {self.prefix_tokens} prefix tokens are not the grid {self.grid} of this "
                    "layer, nor a square one; call lambdanets.resize_positions(model, image size) before, set "
                    "layer.grid = (height, width), or make it with other prefix_tokens"
                )
            grid = (side, side)
        if self.scope is None and any(g > s for g, s in zip(grid, self.size or (), strict=True)):
            raise ValueError(
                f"the tokens form a grid of {grid}, larger than size={self.size} of this global layer; call "
                "lambdanets.resize_positions(model, size) before, make it with a larger size, or a local one with "
                "scope=..."
            )
        return grid

    def extra_repr(self) -> str:
        """The arguments that the submodules do not show."""
        named = {"scope": self.scope, "size": self.size, "prefix_tokens": self.prefix_tokens, "causal": self.causal}
        parts = [f"{self.dim}, {self.dim_out}, num_heads={self.num_heads}, dim_key={self.dim_key}"]
        parts += [f"intra_depth={self.intra_depth}"] if self.intra_depth > 1 else []
        parts += [f"{name}={value}" for name, value in named.items() if value]
        parts += [f"kernel={self.kernel!r}"] if self.kernel else []
        return ", ".join(parts)


def _parts(x: Tensor, count: int, depth: int) -> Tensor:
    """(b, t, count · depth) -> (b, count, t, depth)."""
    # Not unflatten, which the TorchScript exporter of torch.onnx writes with the sizes of the example.
    return x.reshape(*x.shape[:2], count, depth).transpose(1, 2)


def _per_axis(name: str, given: int | Sequence[int] | None, ndim: int, odd: bool) -> tuple[int, ...] | None:
    if given is None:
        return None
    if ndim == 0:
        # positions="none": whatever was given is kept, for the message that refuses it.
        return tuple(given) if isinstance(given, Sequence) else (given,)
    return per_axis(name, given, ndim, odd)
