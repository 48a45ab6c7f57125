"""Lambda layers in place of self-attention, in any model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from lambdanets.console import make_console
from lambdanets.interop.dry_run import try_before
from lambdanets.interop.replace.plan import Change, Kept, Plan, make_plan, none_replaceable
from lambdanets.interop.replace.recognise import choose_attentions, why_not
from lambdanets.interop.replace.stand_ins import LambdaMultiheadAttention, LambdaViTAttention
from lambdanets.interop.tree import Candidate, parameters_of
from lambdanets.layers.arguments import check_bool
from lambdanets.layers.token_lambda import POSITIONS, TokenLambda
from lambdanets.models.patches import Patches, patches_around
from lambdanets.names import did_you_mean

__all__ = ["plan_attention", "replace_attention"]

_OPTIONS = {"num_heads", "dim_key", "intra_depth", "norm_layer", "kernel"}


def replace_attention(
    model: nn.Module,
    *,
    where: Callable[[str, nn.Module], bool] | None = None,
    names: str | Iterable[str] | None = None,
    positions: str | None = None,
    scope: int | Sequence[int] | None = None,
    size: int | Sequence[int] | None = None,
    prefix_tokens: int | None = None,
    causal: bool = False,
    lambda_args: Mapping[str, Any] | None = None,
    example: Any = None,
    verbose: bool = True,
) -> nn.Module:
    """Put lambda layers in place of a model's self-attention: ``nn.MultiheadAttention`` and timm's ViT ``Attention``.

    Projections to queries, keys and values, and the product of queries and keys, give way to a
    :class:`lambdanets.interop.TokenLambda`; the output projection stays, the same object with the same weights, and so
    does all else in the model. The stand-in is called as the attention was (batch first or not, padding masks,
    inside ``nn.TransformerEncoderLayer`` and torchvision's ``VisionTransformer``); what a lambda layer cannot answer
    is an error when it is asked: attention weights, masks of pairs, another sequence as the context.

    Attention that has positions of its own (relative, rotary), attends over channels or inside of windows, or computes
    something else is left alone, and listed in the table with the reason.

    A class token and registers have no place on the grid of patches: towards them, from them and among them E is a
    learnt vector each, see :class:`lambdanets.interop.TokenLambda`. Dropout of attention weights has no counterpart.

    Args:
        model: any module. Changed in place.
        where: ``where(name, module)``, true for the attentions to replace.
        names: glob or globs over module names, as "blocks.*.attn". Default: all that can be replaced.
        positions: "1d" a sequence, "2d" a grid of patches in row-major order, "none" content alone. Default "2d" in
            timm's and torchvision's vision transformers, "1d" elsewhere.
        scope: local context, an odd number of positions along each axis; any length then.
        size: global context, the longest sequence or the largest grid. Default the grid of the vision transformer
            that the attention is in; elsewhere one of ``scope`` and ``size`` is needed, except with "none".
        prefix_tokens: how many tokens in front have no place on the grid; default what the vision transformer says,
            else 0.
        causal: each token sees itself and those before it. Default False.
        lambda_args: further arguments of the layer: num_heads (default: the attention's), dim_key, intra_depth,
            norm_layer, kernel.
        example: a tensor or a tuple of arguments for the model, to run it without numbers before and after; default
            two images of the size that timm says the model is for, where it starts with a convolution.
        verbose: print what was replaced, with parameters before and after. Default True.

    Returns:
        The model; another object only where the model itself is the attention. :func:`plan_attention` tells what would
        change, as data.

    Raises:
        TypeError: if ``model`` is not a module, or a switch no bool.
        ValueError: if nothing was chosen or can be replaced (with the reasons), an argument does not fit, or the model
            does not run with the new layers (with the module and the reason; all is put back then).

    Example:
        >>> vit = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2)
        >>> vit = lambdanets.replace_attention(vit, verbose=False)
        >>> vit(torch.randn(1, 3, 64, 64)).shape
        torch.Size([1, 1000])
    """
    check_bool("verbose", verbose)
    plan = plan_attention(
        model,
        where=where,
        names=names,
        positions=positions,
        scope=scope,
        size=size,
        prefix_tokens=prefix_tokens,
        causal=causal,
        lambda_args=lambda_args,
        example=example,
    )
    changed = plan.apply()
    if verbose:
        make_console().print(plan)
    return changed


def plan_attention(
    model: nn.Module,
    *,
    where: Callable[[str, nn.Module], bool] | None = None,
    names: str | Iterable[str] | None = None,
    positions: str | None = None,
    scope: int | Sequence[int] | None = None,
    size: int | Sequence[int] | None = None,
    prefix_tokens: int | None = None,
    causal: bool = False,
    lambda_args: Mapping[str, Any] | None = None,
    example: Any = None,
) -> Plan:
    """Plan the changes of :func:`replace_attention` without making them; arguments and errors are the same.

    Returns:
        The plan: ``plan.changes`` and ``plan.kept`` are data, ``print(plan)`` is the table, ``plan.apply()`` carries
        it out and returns the model.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    check_bool("causal", causal)
    if positions is not None and not (isinstance(positions, str) and positions in POSITIONS):
        raise ValueError(f"positions must be one of {', '.join(map(repr, POSITIONS))}, got {positions!r}")
    request = _Request(positions, scope, size, prefix_tokens, causal, _check_lambda_args(lambda_args))
    chosen, similar = choose_attentions(model, where, names)
    trial = try_before(model, example, None, "attentions")

    changes: dict[nn.Module, Change] = {}
    builders: dict[nn.Module, Callable[[], nn.Module]] = {}
    kept: list[Kept] = []
    for candidate in chosen:
        attention, old = candidate.module, _describe(candidate.module)
        reason = why_not(model, candidate, request.positions)
        if reason is not None:
            kept.append(Kept(candidate.name, old, reason))
            continue
        patches = patches_around(model, candidate.name)
        arguments = _arguments(attention, request, patches)
        builders[attention] = partial(_stand_in, attention, arguments)
        changes[attention] = _change(candidate, arguments, patches is not None and patches.any_size)
    if not changes:
        raise none_replaceable(kept, "attentions")
    settings = _nested_tensors(model, builders)
    return make_plan(model, changes, (*kept, *similar), builders, trial, settings)


@dataclass(frozen=True, eq=False)
class _Request:
    """The caller's choices for the layers."""

    positions: str | None
    scope: int | Sequence[int] | None
    size: int | Sequence[int] | None
    prefix_tokens: int | None
    causal: bool
    options: dict[str, Any]


def _check_lambda_args(given: Mapping[str, Any] | None) -> dict[str, Any]:
    if given is not None and not isinstance(given, Mapping):
        raise TypeError(f"lambda_args must be a mapping of names to values, got {given!r}")
    for name in given or {}:
        if name not in _OPTIONS:
            raise ValueError(f"lambda_args has {name!r}; {did_you_mean(name, _OPTIONS)}")
    return dict(given or {})


def _arguments(attention: Any, request: _Request, patches: Patches | None) -> dict[str, Any]:
    """Arguments of the layer for one attention: the caller's, else those of the vision transformer it is in."""
    grid, prefix = (patches.grid, patches.prefix_tokens) if patches else (None, 0)
    positions = request.positions or ("2d" if patches else "1d")
    size = request.size
    if positions == "2d" and size is None:
        size = grid
    if positions == "1d" and request.scope is None and size is None and grid:
        size = grid[0] * grid[1]
    if request.prefix_tokens is not None:
        prefix = request.prefix_tokens
    weight = (attention.out_proj if isinstance(attention, nn.MultiheadAttention) else attention.qkv).weight
    return {
        "num_heads": attention.num_heads,
        "positions": positions,
        "scope": request.scope,
        "size": size,
        "prefix_tokens": 0 if positions == "none" else prefix,
        "causal": request.causal,
        "device": weight.device,
        "dtype": weight.dtype,
        **request.options,
    }


def _tokens(attention: Any, arguments: dict[str, Any]) -> TokenLambda:
    if isinstance(attention, nn.MultiheadAttention):
        return TokenLambda(attention.embed_dim, **arguments)
    return TokenLambda(attention.qkv.in_features, attention.proj.in_features, **arguments)


def _stand_in(attention: Any, arguments: dict[str, Any]) -> nn.Module:
    tokens = _tokens(attention, arguments)
    if isinstance(attention, nn.MultiheadAttention):
        made: nn.Module = LambdaMultiheadAttention(tokens, attention.out_proj, attention.batch_first)
    else:
        norm, drop = getattr(attention, "norm", nn.Identity()), getattr(attention, "proj_drop", nn.Identity())
        made = LambdaViTAttention(tokens, norm, attention.proj, drop)
    # Not made.train(): what is kept has a mode of its own.
    made.training = attention.training
    tokens.train(attention.training)
    return made


def _change(candidate: Candidate, arguments: dict[str, Any], any_size: bool) -> Change:
    attention: Any = candidate.module
    try:
        tokens = _tokens(attention, {**arguments, "device": "meta"})
    except ValueError as error:
        raise ValueError(f"a lambda layer for {candidate.name or 'the model'} cannot be made: {error}") from error
    multihead = isinstance(attention, nn.MultiheadAttention)
    kept = [getattr(attention, name, None) for name in (("out_proj",) if multihead else ("norm", "proj"))]
    stays = sum(parameters_of(module) for module in kept if module is not None)
    dropout = attention.dropout if multihead else getattr(getattr(attention, "attn_drop", None), "p", 0.0)
    bias = attention.in_proj_bias if multihead else attention.qkv.bias
    norms = [name for name in ("q_norm", "k_norm") if parameters_of(getattr(attention, name, None) or nn.Identity())]
    notes = [f"prefix tokens {tokens.prefix_tokens}"] if tokens.prefix_tokens else []
    notes += ["causal"] if tokens.causal else []
    notes += ["resize_positions before images that are no square"] if any_size and tokens.ndim == 2 else []
    notes += ["bias of queries, keys and values dropped"] if bias is not None else []
    notes += [f"{' and '.join(norms)} dropped"] if norms else []
    notes += [f"dropout {dropout} of weights dropped"] if dropout else []
    notes += [f"also {', '.join(candidate.names[1:])}"] if len(candidate.names) > 1 else []
    return Change(
        candidate.name,
        _describe(attention),
        f"lambda h {tokens.num_heads}, k {tokens.dim_key}, {_context(tokens)}",
        parameters_of(attention),
        parameters_of(tokens) + stays,
        tuple(notes),
    )


def _context(tokens: TokenLambda) -> str:
    if not tokens.ndim:
        return "content only"
    kind, sizes = ("scope", tokens.scope) if tokens.scope else ("global", tokens.size or ())
    return f"{kind} {'x'.join(map(str, sizes))}"


def _describe(attention: Any) -> str:
    dim = attention.embed_dim if isinstance(attention, nn.MultiheadAttention) else attention.qkv.in_features
    return f"{type(attention).__name__} {dim}, {attention.num_heads} heads"


def _nested_tensors(model: nn.Module, replaced: Mapping[nn.Module, Any]) -> list[tuple[nn.Module, str, Any]]:
    """Settings to change: an encoder that makes nested tensors of padded ones reads its attention's weights for it."""
    encoders = [module for module in model.modules() if isinstance(module, nn.TransformerEncoder)]
    return [
        (encoder, "use_nested_tensor", False)
        for encoder in encoders
        if any(module in replaced for module in encoder.modules())
    ]
