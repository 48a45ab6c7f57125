"""Layers: the lambda layer for grids and for graphs."""

from lambdanets.layers.graph_lambda_layer import GraphLambdaLayer
from lambdanets.layers.lambda_layer import LambdaLayer

__all__ = ["GraphLambdaLayer", "LambdaLayer"]
