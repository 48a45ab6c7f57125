"""Other people's lambda layers and their weights, in ours."""

from lambdanets.interop.adopt.adopt import AdoptedLayer, Adoption, SkippedLayer, adopt
from lambdanets.interop.adopt.checkpoints import Checkpoint, read_checkpoint
from lambdanets.interop.adopt.faithful import TwoOrderLambdaLayer
from lambdanets.interop.adopt.weights import LoadedWeights, load_weights

__all__ = [
    "AdoptedLayer",
    "Adoption",
    "Checkpoint",
    "LoadedWeights",
    "SkippedLayer",
    "TwoOrderLambdaLayer",
    "adopt",
    "load_weights",
    "read_checkpoint",
]
