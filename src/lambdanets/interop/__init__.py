"""Other people's models: their lambda layers and weights in ours."""

from lambdanets.interop.adopt import (
    AdoptedLayer,
    Adoption,
    Checkpoint,
    LoadedWeights,
    SkippedLayer,
    TwoOrderLambdaLayer,
    adopt,
    load_weights,
    read_checkpoint,
)
from lambdanets.interop.export import Check, Export, ExportDifferenceError, decompositions, export_model
from lambdanets.interop.replace import (
    Change,
    Kept,
    LambdaMultiheadAttention,
    LambdaViTAttention,
    Plan,
    TokenLambda,
    plan_attention,
    plan_convs,
    replace_attention,
    replace_convs,
)

__all__ = [
    "AdoptedLayer",
    "Adoption",
    "Change",
    "Check",
    "Checkpoint",
    "Export",
    "ExportDifferenceError",
    "Kept",
    "LambdaMultiheadAttention",
    "LambdaViTAttention",
    "LoadedWeights",
    "Plan",
    "SkippedLayer",
    "TokenLambda",
    "TwoOrderLambdaLayer",
    "adopt",
    "decompositions",
    "export_model",
    "load_weights",
    "plan_attention",
    "plan_convs",
    "read_checkpoint",
    "replace_attention",
    "replace_convs",
]
