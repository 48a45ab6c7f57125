"""Lambda layers of every kind, with an input for each."""

import torch
from torch import nn

from lambdanets import GraphLambdaLayer, LambdaLayer
from lambdanets.layers import TokenLambda

IMAGE = (1, 8, 4, 5)


def layer_and_input(kind):
    """A layer of each kind with the arguments of its call."""
    torch.manual_seed(0)
    layer, args = LAYERS[kind]()
    layer.double()
    args = tuple(arg.double() if arg is not None and arg.is_floating_point() else arg for arg in args)
    for module in layer.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 1.5)
    return layer.eval(), args


def _graphs():
    index = torch.tensor([[0, 1, 2, 2, 4, 5, 6, 1], [1, 0, 0, 0, 5, 6, 6, 2]])  # 2 -> 0 twice, a loop, two graphs
    return index, torch.randn(8, 3), torch.tensor([0, 0, 0, 0, 1, 1, 1])


def _mask(*shape):
    mask = torch.rand(*shape) < 0.6
    mask.view(-1)[1] = True
    return mask


LAYERS = {
    "image, local": lambda: (LambdaLayer(8, scope=3), (torch.randn(IMAGE),)),
    "image, global": lambda: (LambdaLayer(8, size=(4, 6)), (torch.randn(IMAGE),)),
    "image, u": lambda: (LambdaLayer(8, scope=(3, 5), intra_depth=3), (torch.randn(IMAGE),)),
    "image, stride": lambda: (LambdaLayer(8, 12, scope=3, stride=2), (torch.randn(IMAGE),)),
    "image, bias": lambda: (
        with_biases(LambdaLayer(8, scope=3, qkv_bias=True, position_bias=True)),
        (torch.randn(IMAGE),),
    ),
    "image, masked": lambda: (LambdaLayer(8, scope=3), (torch.randn(IMAGE), None, _mask(1, 4, 5))),
    "image, context": lambda: (LambdaLayer(8, size=5), (torch.randn(IMAGE), torch.randn(IMAGE))),
    "image, causal": lambda: (LambdaLayer(8, scope=3, causal=True), (torch.randn(IMAGE),)),
    "sequence": lambda: (LambdaLayer(8, scope=5, ndim=1), (torch.randn(1, 8, 11),)),
    "sequence, causal": lambda: (LambdaLayer(8, size=11, ndim=1, causal=True), (5 * torch.randn(1, 8, 11),)),
    "sequence, causal, masked": lambda: (
        LambdaLayer(8, size=11, ndim=1, causal=True, intra_depth=2),
        (torch.randn(1, 8, 11), None, _mask(1, 11)),
    ),
    "volume": lambda: (LambdaLayer(8, scope=3, ndim=3), (torch.randn(1, 8, 3, 2, 4),)),
    "tokens, 1d": lambda: (TokenLambda(8, size=9, intra_depth=2), (torch.randn(1, 7, 8),)),
    "tokens, prefix": lambda: (
        TokenLambda(8, positions="2d", size=(2, 3), prefix_tokens=2, intra_depth=2),
        (torch.randn(1, 8, 8),),
    ),
    "tokens, prefix, masked": lambda: (
        TokenLambda(8, positions="2d", scope=3, prefix_tokens=1),
        (torch.randn(1, 10, 8), None, _mask(1, 10)),
    ),
    "tokens, prefix, 1d": lambda: (TokenLambda(8, scope=3, prefix_tokens=3), (torch.randn(1, 10, 8),)),
    "tokens, causal": lambda: (TokenLambda(8, size=9, causal=True), (torch.randn(1, 7, 8),)),
    "tokens, none": lambda: (TokenLambda(8, positions="none"), (torch.randn(1, 7, 8), torch.randn(1, 5, 8))),
    "graph": lambda: (GraphLambdaLayer(8, intra_depth=2), (torch.randn(7, 8), _graphs()[0])),
    "graphs": lambda: (GraphLambdaLayer(8, dim_edge=3), (torch.randn(7, 8), *_graphs())),
}


def with_biases(layer):
    nn.init.normal_(layer.position_bias)
    nn.init.normal_(layer.qkv.bias)
    return layer
