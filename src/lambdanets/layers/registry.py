"""The layers that a model's blocks may have in place of a 3x3 convolution: one row a letter."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from timm.layers import SEModule
from torch import nn

from lambdanets.layers.ablated_lambda import AblatedLambdaLayer
from lambdanets.layers.augmented_conv import AugmentedConv
from lambdanets.layers.axial_attention import AxialAttention
from lambdanets.layers.global_attention import GlobalAttention
from lambdanets.layers.lambda_layer import LambdaLayer
from lambdanets.layers.linear_attention_conv import LinearAttentionConv
from lambdanets.layers.local_attention import LocalAttention
from lambdanets.layers.scriptable import ScriptableLambdaLayer

__all__ = ["DECIDED", "LAYERS", "LayerEntry", "layer_classes"]

# Arguments that the place of a layer decides.
DECIDED = frozenset({"dim", "dim_out", "channels", "ndim", "stride", "device", "dtype"})


@dataclass(frozen=True)
class LayerEntry:
    """One kind of layer.

    Args:
        name: for messages; in a sequence of stages it stands for the letter.
        layer: its class, called as ``layer(dim, dim_out, stride=..., device=..., dtype=..., **options)``; None for the
            convolution that a block has anyway.
        channel_attention: what such a block has after its last norm, called as ``channel_attention(channels,
            **options)``. Default: nothing.
        defaults: options that are not given.
        size_error: from the options, the reason why the layer needs ``size``, the (height, width) of the map that it
            sees, for the message where that is not known ("... must be given where <reason>"), or None where it needs
            none. Default: None always.
        scriptable: the class to take in its place where ``torch.jit.script`` shall compile the model. Default: the
            same.
        leaf: True if graphs that torch.fx traces hold the layer as one node. Default False.
    """

    name: str
    layer: type[nn.Module] | None = None
    channel_attention: type[nn.Module] | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    size_error: Callable[[Mapping[str, Any]], str | None] = lambda options: None
    scriptable: type[nn.Module] | None = None
    leaf: bool = False

    @property
    def options(self) -> frozenset[str]:
        """Names of the arguments that a user of a model may give."""
        kind = self.layer or self.channel_attention
        return frozenset(_parameters(kind)) - DECIDED if kind else frozenset()

    def make(
        self, dim: int, dim_out: int, stride: int, options: Mapping[str, Any], scriptable: bool = False, **factory: Any
    ) -> nn.Module:
        """Build the layer.

        Args:
            dim: channels of the input.
            dim_out: channels of the output.
            stride: of the output.
            options: further arguments of the layer.
            scriptable: True if ``torch.jit.script`` shall compile it. Default False.
            **factory: device and dtype.
        """
        if self.layer is None:
            raise ValueError(f"a {self.name} is the block's own and cannot be made here")
        if scriptable and self.scriptable is None:
            able = ", ".join(letter for letter, entry in LAYERS.items() if entry.layer is None or entry.scriptable)
            raise ValueError(f"scriptable is True, and torch.jit.script takes no {self.name}; use the letters {able}")
        layer = self.scriptable if scriptable and self.scriptable else self.layer
        return layer(dim, dim_out, stride=stride, **factory, **options)


def _parameters(kind: type[nn.Module]) -> list[str]:
    """Names of a class's arguments; one that hands its own on to the class above has those, too."""
    found = inspect.signature(kind).parameters.values()
    names = [parameter.name for parameter in found if parameter.kind not in _VARIABLE]
    return names if len(names) == len(found) else [*names, *_parameters(kind.__bases__[0])]


_VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _lambda_size_error(options: Mapping[str, Any]) -> str | None:
    if options.get("scope") is not None or options.get("size") is not None:
        return None
    return "lambda layers are global (their scope is None; local ones, with scope=23, need none)"


def _map_size_error(options: Mapping[str, Any]) -> str | None:
    if options.get("size") is not None:
        return None
    return "attention over the whole map has a relative position for each of its offsets"


LAYERS: dict[str, LayerEntry] = {
    "C": LayerEntry("convolution"),
    "L": LayerEntry(
        "lambda layer",
        LambdaLayer,
        defaults={"scope": 23, "recompute": True},
        size_error=_lambda_size_error,
        scriptable=ScriptableLambdaLayer,
        leaf=True,
    ),
    # What lambda layers are compared with (paper, tables 3 and 4). The squeeze-and-excitation is that of SE-ResNets (Hu
    # et al. 2018, arXiv 1709.01507): after the block's last norm, with 1/16 of its channels inside.
    "S": LayerEntry("convolution + squeeze-and-excitation", channel_attention=SEModule, defaults={"rd_ratio": 1 / 16}),
    "E": LayerEntry("convolution + linear attention", LinearAttentionConv, leaf=True),
    "A": LayerEntry("attention-augmented convolution", AugmentedConv, size_error=_map_size_error, leaf=True),
    "W": LayerEntry("local self-attention", LocalAttention, leaf=True),
    "X": LayerEntry("axial self-attention", AxialAttention, size_error=_map_size_error, leaf=True),
    "G": LayerEntry("global self-attention", GlobalAttention, size_error=_map_size_error, leaf=True),
    "V": LayerEntry(
        "lambda layer with an ablation",
        AblatedLambdaLayer,
        defaults={"scope": 23},
        size_error=_lambda_size_error,
        leaf=True,
    ),
}


def layer_classes() -> tuple[type[nn.Module], ...]:
    """The classes of all layers but the convolution."""
    return tuple(entry.layer for entry in LAYERS.values() if entry.layer is not None)
