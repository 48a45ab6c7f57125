"""Published figures of LambdaNetworks (Bello, ICLR 2021, arXiv 2102.08602), one table of the paper each.

A figure has one of the names "params", millions of parameters; "rate", images a second, of a training on
the paper's accelerator; "gigabytes", of memory with batches of 128; "top1", percent on ImageNet. All are of ResNet-50
at 224 pixels where nothing else is said.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["ABLATION", "CHOICES", "COSTS", "FAMILY", "LAYERS", "PLACEMENTS", "SCOPES", "TIMES_AS_FAST", "Figures"]

Figures = Mapping[str, float]

# Table 3: lambda layers beside convolution and self-attention. The rows of the convolution and of the lambda layer are
# those of the table of hybrid models, which has their rates too.
LAYERS: Mapping[str, Figures] = {
    "convolution + SE": {"params": 28.1, "top1": 77.6},
    "convolution + linear attention": {"params": 33.0, "top1": 77.0},
    "augmented convolution": {"params": 25.8, "top1": 77.7},
    "lambda, u = 4": {"params": 16.0, "top1": 78.9},
}

# Table 4: memory, speed and accuracy of attention and lambda layers; a rate of 0 where memory did not suffice.
COSTS: Mapping[str, Figures] = {
    "global attention": {"gigabytes": 120, "rate": 0},
    "axial attention": {"gigabytes": 4.8, "rate": 960, "top1": 77.5},
    "local attention": {"rate": 440, "top1": 77.4},
    "lambda": {"gigabytes": 1.9, "rate": 1160, "top1": 78.4},
    "lambda, k 8": {"gigabytes": 0.95, "rate": 1640},
    "lambda, one table": {"gigabytes": 0.63, "rate": 1210},
    "lambda convolution": {"rate": 1100, "top1": 78.1},
}

# Appendix D.2, table of hybrid models: the letters of the stages.
PLACEMENTS: Mapping[str, Figures] = {
    "CCCC": {"params": 25.6, "rate": 7240, "top1": 76.9},
    "LCCC": {"params": 25.5, "rate": 1880, "top1": 77.3},
    "LLCC": {"params": 25.0, "rate": 1280, "top1": 77.2},
    "LLLC": {"params": 21.7, "rate": 1160, "top1": 77.8},
    "LLLL": {"params": 15.0, "rate": 1160, "top1": 78.4},
    "CLLL": {"params": 15.1, "rate": 2200, "top1": 78.3},
    "CCLL": {"params": 15.4, "rate": 4980, "top1": 78.3},
    "CCCL": {"params": 18.8, "rate": 7160, "top1": 77.3},
}

# Appendix D.1, table of query depth k, heads h and intra-depth u, the keys: lambda layers in all stages, scope 23 where
# u is 1, else 7. Accuracies are those of the rows that a study has.
ABLATION: Mapping[tuple[int, int, int], Figures] = {
    (8, 2, 1): {"params": 14.8},
    (8, 16, 1): {"params": 15.6},
    (2, 4, 1): {"params": 14.7},
    (4, 4, 1): {"params": 14.7, "top1": 77.6},
    (8, 4, 1): {"params": 14.8, "top1": 77.9},
    (16, 4, 1): {"params": 15.0, "top1": 78.4},
    (32, 4, 1): {"params": 15.4, "top1": 78.4},
    (2, 8, 1): {"params": 14.7},
    (4, 8, 1): {"params": 14.7},
    (8, 8, 1): {"params": 14.7},
    (16, 8, 1): {"params": 15.1, "top1": 78.1},
    (32, 8, 1): {"params": 15.7},
    (8, 8, 4): {"params": 15.3},
    (8, 8, 8): {"params": 16.0},
    (16, 4, 4): {"params": 16.0, "top1": 78.9},
}

# Appendix D.1, tables of the terms and of the normalisation.
CHOICES: Mapping[str, Figures] = {
    "content only": {"top1": 68.8},
    "position only": {"top1": 78.1},
    "softmax of queries too": {"top1": 78.1},
    "keys by L2": {"top1": 78.0},
    "keys as they are": {"top1": 70.0},
    "no batch-norm": {"top1": 76.2},
}

# Appendix D.1, table of the scope; None is the global context.
SCOPES: Mapping[int | None, Figures] = {
    3: {"top1": 77.6},
    7: {"top1": 78.2},
    15: {"top1": 78.5},
    23: {"top1": 78.3},
    31: {"top1": 78.5},
    None: {"top1": 78.4},
}

# Section 5.3 and tables 3 and 5, by names of timm's registry; each at its own image size.
FAMILY: Mapping[str, Figures] = {
    "resnet50": PLACEMENTS["CCCC"],
    "lambda_resnet50_llll": PLACEMENTS["LLLL"],
    "lambda_resnet50_llll_u4": LAYERS["lambda, u = 4"],
    "lambda_resnet152": {"params": 35.0},
    "lambda_resnet200": {"params": 42.0},
}

# Section 5.3: rates of training of LambdaResNets over those of EfficientNets as accurate.
TIMES_AS_FAST = "3.2 to 4.4"
