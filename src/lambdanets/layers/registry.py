"""The layers that a model's blocks may have in place of a 3x3 convolution: one row a letter."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from lambdanets.layers.lambda_layer import LambdaLayer
from lambdanets.layers.scriptable import ScriptableLambdaLayer

__all__ = ["LAYERS", "LayerEntry", "layer_classes"]

# Arguments that the place of a layer decides.
DECIDED = frozenset({"dim", "dim_out", "ndim", "stride", "device", "dtype"})


@dataclass(frozen=True)
class LayerEntry:
    """One kind of layer.

    Args:
        name: for messages.
        layer: its class, called as ``layer(dim, dim_out, stride=..., device=..., dtype=..., **options)``; None for the
            convolution that a block has anyway.
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
    defaults: Mapping[str, Any] = field(default_factory=dict)
    size_error: Callable[[Mapping[str, Any]], str | None] = lambda options: None
    scriptable: type[nn.Module] | None = None
    leaf: bool = False

    @property
    def options(self) -> frozenset[str]:
        """Names of the arguments that a user of a model may give."""
        return frozenset(inspect.signature(self.layer).parameters) - DECIDED if self.layer else frozenset()

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
        layer = self.scriptable if scriptable and self.scriptable else self.layer
        if layer is None:
            raise ValueError(f"a {self.name} is the block's own and cannot be made here")
        return layer(dim, dim_out, stride=stride, **factory, **options)


def _lambda_size_error(options: Mapping[str, Any]) -> str | None:
    if options.get("scope") is not None or options.get("size") is not None:
        return None
    return "lambda layers are global (lambda_args={'scope': None}; local ones, scope=23, need none)"


LAYERS: dict[str, LayerEntry] = {
    "C": LayerEntry("convolution"),
    "L": LayerEntry(
        "lambda layer",
        LambdaLayer,
        defaults={"scope": 23},
        size_error=_lambda_size_error,
        scriptable=ScriptableLambdaLayer,
        leaf=True,
    ),
}


def layer_classes() -> tuple[type[nn.Module], ...]:
    """The classes of all layers but the convolution."""
    return tuple(entry.layer for entry in LAYERS.values() if entry.layer is not None)
