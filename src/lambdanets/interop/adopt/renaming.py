"""The names of leaderj1001's whole models in ours; the others name their ResNets as we do, or as timm does."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from lambdanets.interop.adopt.sources import Source
from lambdanets.layers import LambdaLayer

__all__ = ["Renamed", "to_our_names"]

# A block of theirs: conv2 is Sequential(LambdaConv, maybe a 3x3 average pool, batch-norm, ReLU), the shortcut's
# convolution has a bias.
_BLOCK_NORM = re.compile(r"^(layer\d+\.\d+)\.conv2\.([12])\.(.+)$")
_SHORTCUT = re.compile(r"^(layer\d+\.\d+)\.shortcut\.(.+)$")
_HEAD = re.compile(r"^(?:fc\.1|linear)\.(weight|bias)$")


@dataclass(frozen=True, eq=False)
class Renamed:
    """Weights by the model's names.

    Args:
        tensors: the weights.
        layers: old path -> new path of the lambda layers that moved.
        pooled: the new paths of those behind which the weights' model pools.
    """

    tensors: Mapping[str, Tensor]
    layers: Mapping[str, str] = field(default_factory=dict)
    pooled: tuple[str, ...] = ()


def to_our_names(tensors: Mapping[str, Tensor], found: Mapping[str, Source], model: nn.Module) -> Renamed:
    """Rename the weights of leaderj1001's models for a LambdaResNet of ours; all others stay as they are.

    A bias of a shortcut's convolution goes into the running mean of the batch-norm behind it, which subtracts it:
    the function is the same in both modes.

    Args:
        tensors: weights whose lambda layers have our names already.
        found: path -> source of the lambda layers.
        model: the model to load them into.

    Returns:
        The renamed weights.
    """
    ours = {path for path, module in model.named_modules() if isinstance(module, LambdaLayer)}
    layers = {
        path: path.removesuffix(".0")
        for path, source in found.items()
        if source.name == "leaderj1001" and path.endswith(".conv2.0") and path not in ours
    }
    if not layers or not ours.issuperset(layers.values()):
        return Renamed(tensors)
    renamed, pooled = {}, []
    for name, tensor in tensors.items():
        if match := _BLOCK_NORM.match(name):
            block, index, rest = match.groups()
            name = f"{block}.bn2.{rest}"
            # Without parameters of its own the pool shows by the place of what follows it.
            if index == "2" and rest == "weight":
                pooled.append(f"{block}.conv2")
        elif match := _SHORTCUT.match(name):
            name = f"{match[1]}.downsample.{match[2]}"
        elif match := _HEAD.match(name):
            name = f"fc.{match[1]}"
        else:
            moved = next((path for path in layers if name.startswith(path + ".")), None)
            name = name if moved is None else layers[moved] + name.removeprefix(moved)
        renamed[name] = tensor
    return Renamed(_without_shortcut_biases(renamed), layers, tuple(pooled))


def _without_shortcut_biases(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for name in [name for name in tensors if name.endswith(".downsample.0.bias")]:
        mean = name.replace(".0.bias", ".1.running_mean")
        if mean in tensors:
            tensors[mean] = tensors[mean] - tensors.pop(name).to(tensors[mean])
    return tensors
