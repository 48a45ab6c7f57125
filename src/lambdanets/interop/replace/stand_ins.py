"""Modules in the place of an attention: called as it was called, with a lambda layer inside."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from lambdanets.kernels.autograd.modes import is_compiling, is_jit_tracing, is_readable
from lambdanets.layers.leaves import leaf
from lambdanets.layers.token_lambda import TokenLambda

__all__ = ["LambdaMultiheadAttention", "LambdaViTAttention"]


class LambdaMultiheadAttention(nn.Module):
    """Stand-in with the calls of ``nn.MultiheadAttention``: a lambda layer and the output projection.

    Differences, all told by an error where they matter: there are no attention weights, so that ``need_weights``
    defaults to False and the second result is None; key and value must be the query itself, except for a layer with
    ``positions="none"``, whose key and value are one other sequence; an ``attn_mask`` must be what the layer computes
    anyway, causal or nothing. A ``key_padding_mask`` works as there.

    Args:
        tokens: the lambda layer.
        out_proj: the output projection of the attention that was there.
        batch_first: inputs are (batch, tokens, dim), not (tokens, batch, dim).
    """

    def __init__(self, tokens: TokenLambda, out_proj: nn.Module, batch_first: bool) -> None:
        super().__init__()
        self.tokens, self.out_proj, self.batch_first = tokens, out_proj, batch_first
        self.embed_dim, self.num_heads = tokens.dim, tokens.num_heads
        # nn.TransformerEncoderLayer asks for these before it takes a fused path around this module's forward: None
        # is its sign of an attention that the fused path cannot compute.
        self.in_proj_weight = self.in_proj_bias = None
        self._qkv_same_embed_dim = True

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """As ``nn.MultiheadAttention``.

        Args:
            query: (b, t, dim), or (t, b, dim) without ``batch_first``, or (t, dim).
            key: the query itself; with ``positions="none"`` any sequence.
            value: the key itself.
            key_padding_mask: (b, m), True or -inf where the token is padding.
            need_weights: must be False; there are no weights.
            attn_mask: None, or what the layer computes anyway.
            average_attn_weights: means nothing here.
            is_causal: says that ``attn_mask`` is causal; needs a causal layer.

        Returns:
            The output, of the query's shape, and None.

        Raises:
            ValueError: for calls that a lambda layer cannot answer.
        """
        if isinstance(query, Proxy):  # torch.fx.symbolic_trace
            masks = (key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal)
            return leaf(self, query, key, value, *masks)
        if need_weights:
            raise ValueError(
                "need_weights=True cannot be answered: a lambda layer has no attention weights; call it with "
                "need_weights=False, or leave this attention in place with where=..."
            )
        if not _same(value, key):
            raise ValueError(
                "value must be the same tensor as key: a lambda layer makes both from one sequence; leave this "
                "attention in place with where=..."
            )
        crossed = not _same(key, query)
        if crossed and self.tokens.ndim:
            raise ValueError(
                "key must be the same tensor as query: positions are relative on one sequence, got query "
                f"{tuple(query.shape)} and another key {tuple(key.shape)}; for cross-attention use "
                'positions="none", or leave it in place with where=...'
            )
        x, context = self._batch_first(query), self._batch_first(key) if crossed else None
        check_attn_mask(attn_mask, is_causal, self.tokens, masked=True)
        padding = None if key_padding_mask is None else _visible(key_padding_mask)
        if padding is not None and padding.ndim == 1:
            padding = padding[None]
        out = self.out_proj(self.tokens(x, context, padding))
        if query.ndim == 2:
            return out[0], None
        return (out if self.batch_first else out.transpose(0, 1)), None

    def _batch_first(self, x: Tensor) -> Tensor:
        if x.ndim == 2:
            return x[None]
        return x if self.batch_first else x.transpose(0, 1)


class LambdaViTAttention(nn.Module):
    """Stand-in with the calls of timm's ``Attention``: a lambda layer, and the projection that was there.

    Args:
        tokens: the lambda layer.
        norm: normalisation in front of the projection; ``nn.Identity`` if there was none.
        proj: the output projection of the attention that was there.
        proj_drop: its dropout.
    """

    def __init__(self, tokens: TokenLambda, norm: nn.Module, proj: nn.Module, proj_drop: nn.Module) -> None:
        super().__init__()
        self.tokens, self.norm, self.proj, self.proj_drop = tokens, norm, proj, proj_drop
        self.num_heads = tokens.num_heads

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Tokens (b, t, dim) to (b, t, dim); ``attn_mask`` must be what the layer computes anyway."""
        if isinstance(x, Proxy):  # torch.fx.symbolic_trace
            return leaf(self, x, attn_mask, is_causal)
        # Here is_causal adds to the mask, and does not say that the mask is causal.
        check_attn_mask(None, is_causal, self.tokens, masked=False)
        check_attn_mask(attn_mask, False, self.tokens, masked=False)
        return self.proj_drop(self.proj(self.norm(self.tokens(x))))


def check_attn_mask(attn_mask: Tensor | None, is_causal: bool, tokens: TokenLambda, masked: bool) -> None:
    """Refuse masks between pairs of tokens: a lambda layer sums its context before it meets the queries.

    Args:
        attn_mask: (..., t, t); float, added to the scores, or bool.
        is_causal: the caller says that it is causal.
        tokens: the lambda layer.
        masked: what True means in a bool mask, left out (``nn.MultiheadAttention``) or takes part (timm).

    Raises:
        ValueError: if the mask is another than the layer's own order.
    """
    if is_causal and not tokens.causal:
        raise ValueError("is_causal=True needs a causal layer; replace this attention with causal=True")
    if attn_mask is None or is_causal:
        return
    if is_compiling():
        raise ValueError(
            "attn_mask cannot be checked in a compiled graph; leave it out, or give nn.MultiheadAttention's "
            "is_causal=True too"
        )
    if not _has_numbers(attn_mask):
        return
    visible = attn_mask if attn_mask.dtype == torch.bool and not masked else _visible(attn_mask)
    expected = torch.ones(visible.shape[-2:], dtype=torch.bool, device=visible.device)
    if tokens.causal:
        expected = expected.tril()
    if visible.ndim < 2 or not torch.equal(visible, expected.expand_as(visible)):
        order = "causal" if tokens.causal else "without any"
        padding = "padding goes into key_padding_mask, and other masks need" if masked else "other masks need"
        raise ValueError(
            f"attn_mask of shape {tuple(attn_mask.shape)} is not what this layer computes, which is {order} order: a "
            f"lambda layer cannot mask pairs of tokens. A causal mask needs causal=True at the replacement, {padding} "
            "attention: leave it in place with where=..."
        )


def _has_numbers(tensor: Tensor) -> bool:
    """True if the entries can be looked at: ``torch.jit.trace`` runs on some."""
    return is_readable(tensor) or is_jit_tracing()


def _same(a: Tensor, b: Tensor) -> bool:
    """True if two arguments are one tensor, or two views of one."""
    if a is b:
        return True
    # A graph that torch.compile traces does not tell of what a tensor is a view.
    if torch.compiler.is_dynamo_compiling() or a.shape != b.shape or a.stride() != b.stride():
        return False
    if _has_numbers(a) and _has_numbers(b):
        return a.data_ptr() == b.data_ptr()
    bases = (one if one._base is None else one._base for one in (a, b))
    return next(bases) is next(bases) and bool(a.storage_offset() == b.storage_offset())


def _visible(mask: Tensor) -> Tensor:
    """True where a token takes part, of a mask that is True or -inf where it does not."""
    if mask.dtype == torch.bool:
        return ~mask
    if not mask.is_floating_point():
        raise ValueError(f"masks must be bool or float, got {mask.dtype}")
    visible = mask > -torch.inf
    if _has_numbers(mask) and bool((mask.masked_fill(~visible, 0.0) != 0).any()):
        raise ValueError("float masks must hold 0 and -inf alone: a lambda layer has no scores to add other numbers to")
    return visible
