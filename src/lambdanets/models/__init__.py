"""The LambdaResNet family; importing this registers it in timm's registry."""

from lambdanets.models.lambda_resnet import LambdaBottleneck, LambdaResNet
from lambdanets.models.resize import resize_positions

__all__ = ["LambdaBottleneck", "LambdaResNet", "resize_positions"]
