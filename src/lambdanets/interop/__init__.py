"""Other people's models: their lambda layers and weights in ours."""

from lambdanets.interop.adopt import AdoptedLayer, Adoption, SkippedLayer, adopt
from lambdanets.interop.checkpoints import Checkpoint, read_checkpoint
from lambdanets.interop.export import Check, Export, ExportDifferenceError, export_model
from lambdanets.interop.faithful import TwoOrderLambdaLayer
from lambdanets.interop.weights import LoadedWeights, load_weights

__all__ = [
    "AdoptedLayer",
    "Adoption",
    "Check",
    "Checkpoint",
    "Export",
    "ExportDifferenceError",
    "LoadedWeights",
    "SkippedLayer",
    "TwoOrderLambdaLayer",
    "adopt",
    "export_model",
    "load_weights",
    "read_checkpoint",
]
