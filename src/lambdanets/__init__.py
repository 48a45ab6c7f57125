"""LambdaNetworks for PyTorch: exact, fast lambda layers and the LambdaResNet family.

``import lambdanets`` registers the models in timm's registry, as ``timm.create_model("lambda_resnet50_llll")``, and the
ops that a file of ``torch.export`` calls: import it before ``torch.export.load``.
"""

from lambdanets.explanation import Explanation, explain
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

__version__ = "0.2.0"

__all__ = [
    "DensePositions",
    "EdgePositions",
    "Explanation",
    "GraphLambdaLayer",
    "GridPositions",
    "LambdaLayer",
    "LambdaResNet",
    "__version__",
    "adopt",
    "explain",
    "export_model",
    "lambda_apply",
    "load_weights",
    "plan_attention",
    "plan_convs",
    "replace_attention",
    "replace_convs",
    "resize_positions",
]
