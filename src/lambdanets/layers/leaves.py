"""Layers as single nodes in the graphs of ``torch.fx.symbolic_trace``.

A symbolically traced tensor has neither shape nor dtype, which the layers check. PyTorch's tracer enters every module
that is not its own, so a layer's ``forward`` records the layer itself when it is called with such a tensor. Tools with
a list of leaf modules, as the feature extraction of timm and torchvision, do not get as far.
"""

from __future__ import annotations

from functools import reduce
from importlib import import_module
from typing import Any

from torch import nn
from torch.fx import Proxy

__all__ = ["leaf", "run_leaf"]

# Private names of nn.Module, as seen in PyTorch 2.11 to 2.14; where one is gone, leaf() raises an AttributeError.
_REGISTRIES = ("_parameters", "_buffers", "_modules")


def leaf(layer: nn.Module, *args: Any) -> Any:
    """Record a call of ``layer`` as one node.

    A node can name a module inside the traced one. The traced module itself has no name, so that its parts are named
    instead, and :func:`run_leaf` puts them together when the graph runs.

    Args:
        layer: what is called.
        *args: arguments of its ``forward``; the first is a ``torch.fx.Proxy``.

    Raises:
        ValueError: if ``layer`` is the traced module and its class was defined in a function, where a graph cannot
            find it again.
    """
    tracer = args[0].tracer
    if layer is not tracer.root:
        return tracer.create_proxy("call_module", tracer.path_of_module(layer), args, {})
    kind = f"{type(layer).__module__}:{type(layer).__qualname__}"
    if "<locals>" in kind:
        raise ValueError(
            f"a traced graph cannot find the class {kind.replace(':', '.')} again; define it outside of a function, or "
            "trace a module that contains the layer"
        )
    parts = {name: {k: v for k, v in getattr(layer, name).items() if v is not None} for name in _REGISTRIES}
    options = {name: value for name, value in vars(layer).items() if name not in vars(nn.Module())}
    absent = {name: [k for k, v in getattr(layer, name).items() if v is None] for name in _REGISTRIES}
    return tracer.create_proxy("call_function", run_leaf, (kind, options, absent, parts, *args), {})


def run_leaf(
    kind: str, options: dict[str, Any], absent: dict[str, list[str]], parts: dict[str, dict[str, Any]], *args: Any
) -> Any:
    """Call a layer that is given by its parts.

    Args:
        kind: its class, as "module:name".
        options: its plain attributes.
        absent: names of its parameters, buffers and submodules that are None.
        parts: the others.
        *args: arguments of its ``forward``.
    """
    if isinstance(args[0], Proxy):  # a graph is traced once more where it is unpickled
        return args[0].tracer.create_proxy("call_function", run_leaf, (kind, options, absent, parts, *args), {})
    module, name = kind.split(":")
    found: Any = import_module(module)
    layer: nn.Module = object.__new__(reduce(getattr, name.split("."), found))
    nn.Module.__init__(layer)
    vars(layer).update(options)
    for registry in _REGISTRIES:
        getattr(layer, registry).update({**dict.fromkeys(absent[registry]), **parts[registry]})
    return layer(*args)
