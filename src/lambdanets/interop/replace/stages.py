"""Stages and blocks of the models that people use: timm's, torchvision's and those built like them."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from lambdanets.interop.tree import is_lambda, is_spatial
from lambdanets.models.placement import place_blocks

__all__ = ["Stage", "find_stages", "lambda_blocks", "modules_of_block"]

# layer1 (ResNets), s1 (timm's RegNet), block1 (torchvision's), denseblock1, stage2 (ShuffleNet, HRNet), and the names
# that timm's features_only makes of stages.0 and the like.
_NUMBERED = re.compile(r"(layers?_?|stages?_?|s|blocks?_?|(?:features_)?denseblock)\d+$")
_CONTAINERS = ("stages", "blocks", "layers", "features")
# A shortcut carries a block's input around it: the paper leaves it as it is.
_SHORTCUTS = {"downsample", "shortcut"}


@dataclass(frozen=True, eq=False)
class Stage:
    """One stage: its name and its blocks that mix positions, in order."""

    name: str
    blocks: tuple[tuple[str, nn.Module], ...]


def lambda_blocks(model: nn.Module, stages: str | Sequence[str]) -> list[tuple[str, nn.Module]]:
    """The blocks that ``stages`` marks with an L, by name; a shortcut's modules are never among a block's.

    Args:
        model: the model.
        stages: as for :func:`lambdanets.models.placement.place_blocks`, for as many stages as the model has.

    Raises:
        ValueError: if the model has no stages that are known, or ``stages`` does not fit them.
    """
    found = find_stages(model)
    if not found:
        raise ValueError(
            f"stages={stages!r} needs a model with stages (layer1 ..., stages.0 ..., blocks.0 ..., s1 ..., "
            f"denseblock1 ..., features), and {type(model).__name__} has none: its children are "
            f"{', '.join(name for name, _ in model.named_children()) or 'none'}; choose the convolutions with "
            'names="..." or where=...'
        )
    try:
        words = place_blocks(stages, [len(stage.blocks) for stage in found], letters="CL")
    except ValueError as error:
        outline = ", ".join(f"{stage.name} ({len(stage.blocks)} blocks)" for stage in found)
        raise ValueError(f"{error}; {type(model).__name__} has {len(found)} stages: {outline}") from error
    return [
        block
        for stage, word in zip(found, words, strict=True)
        for block, letter in zip(stage.blocks, word, strict=True)
        if letter == "L"
    ]


def modules_of_block(name: str, block: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a block that are not part of its shortcut."""
    for inner, module in block.named_modules(remove_duplicate=False):
        if not _SHORTCUTS & set(inner.split(".")):
            yield f"{name}.{inner}" if inner else name, module


def find_stages(model: nn.Module) -> list[Stage]:
    """The model's stages, the outermost that look like some; empty if there are none.

    In this order: numbered children (layer1, s1, ...), a container named stages, blocks, layers or features, any
    other container of containers, any other sequence. A sequence of blocks is cut where the stride is above 1 or the
    dilation grows; the block with the model's first convolution is its stem.
    """
    for look in (_numbered, _named_container, _nested, _flat):
        queue = deque([("", model)])
        while queue:
            name, module = queue.popleft()
            stages = look(name, module, model)
            if len(stages) > 1:
                return stages
            queue.extend((_join(name, child_name), child) for child_name, child in module.named_children())
    return []


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _mixes(module: nn.Module) -> bool:
    return any(is_spatial(inner) or is_lambda(inner) for inner in module.modules())


def _mixing_children(name: str, module: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(_join(name, n), child) for n, child in module.named_children() if _mixes(child)]


def _numbered(name: str, module: nn.Module, model: nn.Module) -> list[Stage]:
    groups: dict[str, list[Stage]] = {}
    for child_name, child in _mixing_children(name, module):
        matched = _NUMBERED.match(child_name.rpartition(".")[2])
        if matched:
            groups.setdefault(matched[1], []).append(_stage(child_name, child))
    return max(groups.values(), key=len, default=[])


def _named_container(name: str, module: nn.Module, model: nn.Module) -> list[Stage]:
    last = name.rpartition(".")[2]
    if last not in _CONTAINERS or not isinstance(module, nn.Sequential | nn.ModuleList):
        return []
    if last == "stages":
        return [_stage(*child) for child in _mixing_children(name, module)]
    return _nested(name, module, model) or _flat(name, module, model)


def _nested(name: str, module: nn.Module, model: nn.Module) -> list[Stage]:
    """Children that are sequences of blocks themselves."""
    if not isinstance(module, nn.Sequential | nn.ModuleList) or _is_cut_up(module, model):
        return []
    children = [child for child in _mixing_children(name, module) if type(child[1]) in (nn.Sequential, nn.ModuleList)]
    # A sequence of convolutions is a block, not a stage of blocks.
    nested = [c for c in children if not any(is_spatial(inner) for inner in c[1].children())]
    return [_stage(*child) for child in nested] if len(nested) > 1 else []


def _flat(name: str, module: nn.Module, model: nn.Module) -> list[Stage]:
    """A sequence of blocks, cut at the strides and at the dilations that stand for some."""
    if not _is_sequence(module):
        return []
    groups: list[list[tuple[str, nn.Module]]] = [[]]
    dilation = 1
    for child_name, child in _steps(module, model):
        if _has_first_conv(child, model):
            continue
        before, dilation = dilation, max(dilation, _largest("dilation", child))
        if _largest("stride", child) > 1 or dilation > before:
            groups.append([])
        if _mixes(child):
            groups[-1].append((_join(name, child_name), child))
    return [_flat_stage(group) for group in groups if group]


def _is_sequence(module: nn.Module) -> bool:
    """True if the children run in order: torchvision's backbones are dictionaries of a sequence's numbered parts."""
    numbered = isinstance(module, nn.ModuleDict) and all(name.isdecimal() for name in module)
    return isinstance(module, nn.Sequential) or numbered


def _steps(module: nn.Module, model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The children of a sequence; those of its parts where it is cut up."""
    cut_up = _is_cut_up(module, model)
    for name, child in module.named_children():
        if cut_up:
            yield from ((_join(name, inner_name), inner) for inner_name, inner in child.named_children())
        else:
            yield name, child


def _is_cut_up(module: nn.Module, model: nn.Module) -> bool:
    """True if a sequence's parts are no stages: the first has the stem and several strides, as in SSDlite."""
    parts = list(module.children())
    if not parts or any(type(part) is not nn.Sequential for part in parts) or not _has_first_conv(parts[0], model):
        return False
    return sum(_largest("stride", block) > 1 for block in parts[0].children()) > 1


def _has_first_conv(module: nn.Module, model: nn.Module) -> bool:
    first = next((inner for inner in model.modules() if is_spatial(inner)), None)
    return any(inner is first for inner in module.modules())


def _flat_stage(blocks: list[tuple[str, nn.Module]]) -> Stage:
    first, last = blocks[0][0], blocks[-1][0]
    return Stage(first if first == last else f"{first} to {last.rpartition('.')[2]}", tuple(blocks))


def _largest(attribute: str, module: nn.Module) -> int:
    """The largest stride or dilation of the modules inside."""
    found = (getattr(inner, attribute, 1) for inner in module.modules())
    sizes = [size for each in found for size in (each if isinstance(each, tuple) else (each,))]
    return max((size for size in sizes if isinstance(size, int)), default=1)


def _stage(name: str, module: nn.Module) -> Stage:
    blocks: list[tuple[str, nn.Module]] = []
    for child_name, child in _mixing_children(name, module) or [(name, module)]:
        if child_name.rpartition(".")[2] == "blocks":
            blocks += _mixing_children(child_name, child)
        else:
            blocks.append((child_name, child))
    return Stage(name, tuple(blocks))
