"""The LambdaResNet family; importing this registers it in timm's registry."""

from lambdanets.models.lambda_resnet import LambdaBottleneck, LambdaResNet

__all__ = ["LambdaBottleneck", "LambdaResNet"]
