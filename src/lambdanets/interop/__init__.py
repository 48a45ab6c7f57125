"""Other people's models: their lambda layers and weights in ours."""

from lambdanets.interop.adopt import AdoptedLayer, Adoption, SkippedLayer, adopt
from lambdanets.interop.checkpoints import Checkpoint, read_checkpoint
from lambdanets.interop.export import Check, Export, ExportDifferenceError, export_model
from lambdanets.interop.faithful import TwoOrderLambdaLayer
from lambdanets.interop.plan import Change, Kept, Plan
from lambdanets.interop.replace_attention import plan_attention, replace_attention
from lambdanets.interop.replace_convs import plan_convs, replace_convs
from lambdanets.interop.stand_ins import LambdaMultiheadAttention, LambdaViTAttention
from lambdanets.interop.token_lambda import TokenLambda
from lambdanets.interop.weights import LoadedWeights, load_weights

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
    "export_model",
    "load_weights",
    "plan_attention",
    "plan_convs",
    "read_checkpoint",
    "replace_attention",
    "replace_convs",
]
