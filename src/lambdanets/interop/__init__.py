"""Other people's models: their lambda layers and weights in ours."""

from lambdanets.interop.adopt import AdoptedLayer, Adoption, SkippedLayer, adopt
from lambdanets.interop.checkpoints import Checkpoint, read_checkpoint
from lambdanets.interop.faithful import TwoOrderLambdaLayer
from lambdanets.interop.weights import LoadedWeights, load_weights

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
