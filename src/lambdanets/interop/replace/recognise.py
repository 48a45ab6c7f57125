"""Search for attention that a lambda layer can take the place of, with the reasons against other modules."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from lambdanets.interop.replace.plan import Kept
from lambdanets.interop.replace.stand_ins import LambdaMultiheadAttention, LambdaViTAttention
from lambdanets.interop.tree import Candidate, choose, find, hooks_of, matches
from lambdanets.layers.token_lambda import TokenLambda
from lambdanets.models.patches import patches_around
from lambdanets.names import first_of

__all__ = ["choose_attentions", "why_not"]

_KIND = "self-attention"
_VIT_PARTS = {"qkv", "proj", "q_norm", "k_norm", "norm", "attn_drop", "proj_drop"}
_RELATIVE = re.compile(r"rel_|relative|attention_bias|pos_proj")
_ROTARY = re.compile(r"rope|rotary")
# What neither parts nor arguments tell, by words in the class's name.
_BY_NAME = {
    "window": "it is windowed attention: its positions are inside of windows, where a lambda layer has one grid or "
    "sequence. Take a vision transformer with one grid (vit_*, deit_*), or write lambdanets.interop.TokenLambda("
    'dim, positions="2d", scope=..., size=grid) over the whole map into the blocks by hand',
    "channelatt": "it attends over channels, not over tokens",
    "covariance": "it attends over channels, not over tokens",
    "xca": "it attends over channels, not over tokens",
}


def choose_attentions(
    model: nn.Module, where: Callable[[str, nn.Module], bool] | None, names: str | Iterable[str] | None
) -> tuple[list[Candidate], list[Kept]]:
    """The attentions to replace, and modules like them that were asked for and cannot be, with the reasons.

    Args:
        model: the model.
        where: chooses among the attentions by a function of (name, module).
        names: chooses by glob or globs, among the modules like them too. All are asked for where both are None.

    Raises:
        ValueError: if there is no attention, or none was chosen; the message tells why modules like it are none.
    """
    if where is not None and names is not None:
        raise ValueError("where and names must not both be given")
    candidates = find(model, _is_attention)
    similar = _lookalikes(model, candidates)
    if not candidates:
        raise ValueError(
            f"{type(model).__name__} has no attention that can be replaced: nn.MultiheadAttention, or modules like "
            f"timm's ViT Attention (qkv, proj, forward(x, attn_mask)){_list(similar)}"
        )
    if where is not None:
        return choose(model, candidates, _KIND, names, where), []
    if names is not None:
        globs = [names] if isinstance(names, str) else list(names)
        candidates = choose(model, candidates, _KIND, globs, None, {c.name: why for c, why in similar.items()})
        similar = {c: why for c, why in similar.items() if any(matches(c, glob) for glob in globs)}
    return candidates, [Kept(c.name, type(c.module).__name__, why) for c, why in similar.items()]


def _is_attention(module: nn.Module) -> bool:
    return isinstance(module, nn.MultiheadAttention) or (hasattr(module, "qkv") and _why_not_vit(module) is None)


def _lookalikes(model: nn.Module, candidates: list[Candidate]) -> dict[Candidate, str]:
    """Modules that are attention by name or by structure, with the reason why they are none to replace.

    The innermost ones alone, and none in or around an attention that can be replaced.
    """
    inside = {module for c in candidates for module in c.module.modules()}
    found = {c: _why_none(c.module) for c in find(model, _resembles) if c.module not in inside}
    attentions = {c.module for c in [*candidates, *found]}
    return {
        c: why
        for c, why in found.items()
        if why is not None and not any(module in attentions for module in c.module.modules() if module is not c.module)
    }


def _resembles(module: nn.Module) -> bool:
    if isinstance(module, TokenLambda):
        return False
    name = type(module).__name__.lower()
    parts = {part for part, _ in module.named_children()}
    built = isinstance(getattr(module, "num_heads", None), int) and parts & {"qkv", "qk", "q", "in_proj"}
    return "attention" in name or "attn" in name or bool(built)


def _why_none(module: nn.Module) -> str | None:
    if isinstance(module, LambdaMultiheadAttention | LambdaViTAttention):
        return "it is a lambda layer already"
    return _why_not_vit(module)


def _why_not_vit(module: Any) -> str | None:
    """Why a module is not built and called as timm's ViT ``Attention``; None if it is.

    By structure: timm's class has moved between its modules, and others are built like it.
    """
    name = type(module).__name__.lower()
    by_name = next((reason for word, reason in _BY_NAME.items() if word in name), None)
    if by_name is not None:
        return by_name
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    parts = [part for part, _ in [*module.named_children(), *own]]
    arguments = list(inspect.signature(module.forward).parameters)
    for pattern, kind in ((_ROTARY, "rotary"), (_RELATIVE, "relative")):
        positions = [part for part in [*arguments, *parts] if pattern.search(part)]
        if positions:
            return f"it is made for {kind} positions ({', '.join(positions)}), which a lambda layer would drop"
    if arguments[:1] != ["x"] or set(arguments[1:]) - {"attn_mask", "is_causal"}:
        return f"it is called as forward({', '.join(arguments)}), not as forward(x, attn_mask)"
    if not all(isinstance(getattr(module, part, None), nn.Linear) for part in ("qkv", "proj")):
        children = [
            f"{part} ({type(child).__name__})"
            for part, child in module.named_children()
            if not isinstance(child, nn.Identity | nn.Dropout)
        ]
        return f"it is built of {first_of(children, 4) or 'no modules'}, not of linear qkv and proj"
    # What has more parts computes something else: talking heads, temperatures, gates.
    more = [part for part in parts if part not in _VIT_PARTS]
    if more:
        return f"it computes something else than attention: it has {', '.join(more)} beside qkv and proj"
    return None if isinstance(getattr(module, "num_heads", None), int) else "it has no num_heads"


def _list(similar: dict[Candidate, str]) -> str:
    """List what looks like attention, those of one class and reason together."""
    groups: dict[tuple[str, str], list[str]] = {}
    for candidate, why in similar.items():
        groups.setdefault((type(candidate.module).__name__, why), []).append(candidate.name)
    listed = ""
    for (kind, reason), names in list(groups.items())[:3]:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        listed += f"; {names[0] or 'the model itself'} ({kind}){more}: {reason}"
    return listed


def why_not(model: nn.Module, candidate: Candidate, positions: str | None) -> str | None:
    """Why an attention cannot become a lambda layer with such positions; None if it can."""
    attention: Any = candidate.module
    if any(hooks_of(module) for module in attention.modules()):
        return "it has hooks, or a module in it has, which would be lost; remove them first"
    if any(parametrize.is_parametrized(module) for module in attention.modules()):
        return "its weights are parametrised; call torch.nn.utils.parametrize.remove_parametrizations first"
    patches = None if positions == "none" else patches_around(model, candidate.name)
    if not isinstance(getattr(patches and patches.transformer, "patch_drop", None), nn.Identity | None):
        return (
            "its transformer drops patches in training, and those that are left are no grid; make it with "
            'patch_drop_rate=0, or give positions="none"'
        )
    if not isinstance(attention, nn.MultiheadAttention):
        return "it has an output gate, which a lambda layer has not" if getattr(attention, "gate", None) else None
    if type(attention).__module__.startswith("torch.ao."):
        return "it is prepared for quantisation; replace before preparing"
    if type(attention).forward is not nn.MultiheadAttention.forward:
        return f"{type(attention).__name__} has a forward of its own, and what that adds would be lost"
    if attention.bias_k is not None or attention.add_zero_attn:
        return "it adds a key of its own (add_bias_kv or add_zero_attn), which stands at no position"
    if not attention._qkv_same_embed_dim:
        return "its keys or values have other channels than its queries: it attends to another sequence"
    parent, _, last = candidate.name.rpartition(".")
    crosses = last == "multihead_attn" and isinstance(model.get_submodule(parent), nn.TransformerDecoderLayer)
    if crosses and positions != "none":
        return 'it attends to the encoder\'s sequence, where the tokens have no positions; positions="none" would do'
    return None
