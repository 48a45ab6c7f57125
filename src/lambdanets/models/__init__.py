"""The LambdaResNet family, importing which registers it in timm's registry; its costs and its sizes."""

from lambdanets.models.cost import ModelCost, PartCost, model_cost
from lambdanets.models.lambda_resnet import LambdaBottleneck, LambdaResNet
from lambdanets.models.resize import resize_positions

__all__ = ["LambdaBottleneck", "LambdaResNet", "ModelCost", "PartCost", "model_cost", "resize_positions"]
