"""Layers: the lambda layer for grids, for graphs and for tokens."""

from lambdanets.layers.graph_lambda_layer import GraphLambdaLayer
from lambdanets.layers.lambda_layer import LambdaLayer
from lambdanets.layers.norms import PositionNorm
from lambdanets.layers.token_lambda import TokenLambda

__all__ = ["GraphLambdaLayer", "LambdaLayer", "PositionNorm", "TokenLambda"]
