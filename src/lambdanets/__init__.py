"""LambdaNetworks for PyTorch: exact, fast lambda layers and the LambdaResNet family.

``import lambdanets`` registers the models in timm's registry: ``timm.create_model("lambda_resnet50_llll")``.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from lambdanets._imports import load_after

if TYPE_CHECKING:
    from lambdanets.functional import lambda_apply
    from lambdanets.interop import (
        adopt,
        export_model,
        load_weights,
        plan_attention,
        plan_convs,
        replace_attention,
        replace_convs,
    )
    from lambdanets.layers import GraphLambdaLayer, LambdaLayer
    from lambdanets.models import LambdaResNet, resize_positions
    from lambdanets.positions import DensePositions, EdgePositions, GridPositions

__version__ = "0.1.0"

__all__ = [
    "DensePositions",
    "EdgePositions",
    "GraphLambdaLayer",
    "GridPositions",
    "LambdaLayer",
    "LambdaResNet",
    "__version__",
    "adopt",
    "export_model",
    "lambda_apply",
    "load_weights",
    "plan_attention",
    "plan_convs",
    "replace_attention",
    "replace_convs",
    "resize_positions",
]


_PARTS = ("positions", "kernels", "functional", "layers", "models", "interop")

if not TYPE_CHECKING:  # which would take every name for one that exists

    def __getattr__(name: str) -> Any:
        """Loads all that is public when the first of it is wanted."""
        if name in __all__ or name in _PARTS:
            _load()
            return globals()[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PARTS})


def _load() -> None:
    for part in _PARTS:
        module = import_module(f"lambdanets.{part}")
        globals().update({name: getattr(module, name) for name in __all__ if hasattr(module, name)})


# PyTorch and timm take seconds to import, which the command's --help must not wait for.
if "torch" in sys.modules:
    _load()
else:
    # What an import of this package promises beside its names: the models in timm's registry, and the ops that a loaded
    # torch.export program calls.
    load_after("timm", "lambdanets.models")
    load_after("torch", "lambdanets.functional", unless=("lambdanets.positions", "lambdanets.kernels"))
