"""Other people's models: their lambda layers and weights in ours."""

from lambdanets.interop.adopt import AdoptedLayer, Adoption, SkippedLayer, adopt
from lambdanets.interop.checkpoints import Checkpoint, read_checkpoint
from lambdanets.interop.export import Check, Export, ExportDifferenceError, export_model
from lambdanets.interop.faithful import TwoOrderLambdaLayer
from lambdanets.interop.plan import Change, Kept, Plan
from lambdanets.interop.replace_convs import plan_convs, replace_convs
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
    "LoadedWeights",
    "Plan",
    "SkippedLayer",
    "TwoOrderLambdaLayer",
    "adopt",
    "export_model",
    "load_weights",
    "plan_convs",
    "read_checkpoint",
    "replace_convs",
]
