"""The layers of the study of memory, and the bytes that they keep by formula."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from lambdanets.experiments.bench.measure import TRAINING, passes, peak_bytes
from lambdanets.experiments.paper import COSTS, Figures
from lambdanets.layers import LambdaLayer
from lambdanets.layers.axial_attention import AxialAttention
from lambdanets.layers.global_attention import GlobalAttention
from lambdanets.layers.local_attention import LocalAttention

__all__ = ["DIM", "HEADS", "LAYERS", "OURS", "PROBE", "ROWS", "Layer", "build", "needed_bytes", "predicted_bytes"]

DIM, HEADS, LAYERS = 64, 8, 2
# How many times what it keeps a step allocates at once is measured here; it depends on the number of threads too.
PROBE = 28
# What all others are compared with.
OURS = "lambda"


@dataclass(frozen=True)
class Layer:
    """A row of the study.

    Args:
        make: a layer from the side of the map.
        kept: numbers that a layer keeps for the backward pass of one image, its input left out, from the number of
            positions and the side of the map.
        attention: the form of an attention, with maps that are stored or fused; None for a lambda layer.
        shared: True if all layers have one table of positions.
        paper: the paper's figures, of which "gigabytes" and "rate" are shown.
    """

    make: Callable[[int], nn.Module]
    kept: Callable[[int, int], int]
    attention: Literal["stored maps", "fused"] | None = None
    shared: bool = False
    paper: Figures = field(default_factory=dict)


def _attention(kind: type[nn.Module], side: int, sized: bool = True, **options: Any) -> nn.Module:
    return kind(DIM, num_heads=HEADS, **({"size": side} if sized else {}), **options)


def _lambda(side: int, **options: Any) -> nn.Module:
    return LambdaLayer(DIM, size=None if "scope" in options else side, **options)


def _kept_lambda(n: int, side: int, key: int = 16, heads: int = 4) -> int:
    """Queries, keys and values, before their norms and softmax and behind them, and the content lambda."""
    value = DIM // heads
    return 2 * n * (heads * key + key + value) + key * value


def _kept_local_fused(n: int, side: int) -> int:
    """Blocks of 8x8 queries, their outputs and sums, keys and values of their windows of 14x14; and the mask.

    Each has 14 further channels for the rows and 14 for the columns of a window.
    """
    depth = DIM // HEADS + 2 * 14
    blocks = math.ceil(side / 8) ** 2
    return blocks * HEADS * (64 * (1 + DIM // HEADS + 2 * depth) + 196 * 2 * depth) + 64 * 196


# Fused attention has the logits of rows and columns as further channels of queries, keys, values and outputs.
ROWS: dict[str, Layer] = {
    "global attention": Layer(
        partial(_attention, GlobalAttention),
        lambda n, side: 5 * DIM * n + HEADS * n * n,
        "stored maps",
        paper=COSTS["global attention"],
    ),
    "global attention, fused": Layer(
        partial(_attention, GlobalAttention, fused=True),
        lambda n, side: 2 * DIM * n + 4 * n * (DIM + HEADS * 2 * side) + HEADS * n,
        "fused",
    ),
    "axial attention": Layer(
        partial(_attention, AxialAttention),
        lambda n, side: 9 * DIM * n + 2 * HEADS * n * side,
        "stored maps",
        paper=COSTS["axial attention"],
    ),
    "axial attention, fused": Layer(
        partial(_attention, AxialAttention, fused=True),
        lambda n, side: 3 * DIM * n + 8 * n * (DIM + HEADS * side) + 2 * HEADS * n,
        "fused",
    ),
    "local attention": Layer(
        partial(_attention, LocalAttention, sized=False),
        lambda n, side: 3 * DIM * n + 2 * DIM * (side + 6) ** 2 + HEADS * n * 49,
        "stored maps",
        paper=COSTS["local attention"],
    ),
    "local attention, fused": Layer(
        partial(_attention, LocalAttention, sized=False, fused=True), _kept_local_fused, "fused"
    ),
    OURS: Layer(_lambda, _kept_lambda, paper=COSTS["lambda"]),
    "lambda, k 8": Layer(
        partial(_lambda, dim_key=8),
        partial(_kept_lambda, key=8),
        paper=COSTS["lambda, k 8"],
    ),
    "lambda, one table": Layer(_lambda, _kept_lambda, shared=True, paper=COSTS["lambda, one table"]),
    "lambda convolution": Layer(partial(_lambda, scope=7), _kept_lambda, paper=COSTS["lambda convolution"]),
}


def predicted_bytes(name: str, side: int) -> int:
    """Bytes that the layers of a row keep for the backward pass of one image, by formula."""
    n = side * side
    between = (LAYERS - 1) * DIM * n  # the inputs of all layers but the first
    return 4 * (LAYERS * ROWS[name].kept(n, side) + between)


def needed_bytes(name: str, side: int) -> int:
    """Bytes that a training step allocates at once: those that it keeps, scaled as at a small size."""
    return round(predicted_bytes(name, side) * _step_bytes(name) / predicted_bytes(name, PROBE))


@functools.cache
def _step_bytes(name: str) -> int:
    """Bytes that a training step allocates at once at the small size; all larger ones ask for the same."""
    step = passes(build(name, PROBE), torch.randn(1, DIM, PROBE, PROBE))[TRAINING]
    step()
    return peak_bytes(step)


def build(name: str, side: int) -> nn.Module:
    """Make the layers of a row for maps of a side."""
    torch.manual_seed(0)
    layers: list[Any] = [ROWS[name].make(side) for _ in range(LAYERS)]
    if ROWS[name].shared:
        for layer in layers[1:]:
            layer.positions = layers[0].positions
    return nn.Sequential(*layers)
