"""Layers: the lambda layer and those that the paper compares it with."""

from lambdanets.layers.lambda_layer import LambdaLayer

__all__ = ["LambdaLayer"]
