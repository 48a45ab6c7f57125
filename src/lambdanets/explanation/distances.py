"""Distances that lambda layers have learnt to look, for which no image is needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from lambdanets.explanation.capture import lambda_layers
from lambdanets.explanation.terms import Array

__all__ = ["Learnt", "learnt"]


@dataclass(frozen=True, eq=False)
class Learnt:
    """The table of offsets of one layer.

    Args:
        layer: its name.
        table: (u, k, *extents), the embeddings E of the offsets; the centre is offset 0.
        distance: mean length of the offsets in positions, weighted by |E| (the norm over u and k). Of causal layers
            those of later positions, which no query sees, are left out.
        uniform: the same mean if |E| were equal everywhere, as it nearly is before training.
    """

    layer: str
    table: Array
    distance: float
    uniform: float


def learnt(model: nn.Module) -> tuple[Learnt, ...]:
    """Return how far the lambda layers of a model look, by layer; those without a table of offsets are not in it.

    Args:
        model: any model that contains lambda layers.

    Raises:
        ValueError: if there is none, or a table has numbers that are not finite.

    Example:
        >>> import timm
        >>> import lambdanets
        >>> from lambdanets.explanation import learnt
        >>> [layer.table.shape for layer in learnt(timm.create_model("lambda_resnet_tiny"))][:1]
        [(1, 16, 7, 7)]
    """
    found = []
    for name, layer in lambda_layers(model).items():
        positions: Any = getattr(layer, "positions", None)
        if positions is None:
            continue
        table = positions.detach().float().cpu().numpy()
        if not np.isfinite(table).all():
            raise ValueError(f"the table of positions of layer {name!r} has numbers that are not finite; train it anew")
        length = offset_lengths(table.shape[2:])
        size = np.linalg.norm(table, axis=(0, 1))
        if getattr(layer, "causal", False):  # in row-major order offset 0 is the middle one
            length, size = (values.ravel()[: values.size // 2 + 1] for values in (length, size))
        found.append(Learnt(name, table, _mean(length, size), float(length.mean())))
    return tuple(found)


def offset_lengths(extents: tuple[int, ...]) -> Array:
    """Length of each offset of a table, (*extents)."""
    axes = [np.arange(extent) - extent // 2 for extent in extents]
    return np.sqrt(sum(np.square(axis.astype(np.float32)) for axis in np.meshgrid(*axes, indexing="ij")))


def _mean(values: Array, weights: Array) -> float:
    total = float(weights.sum())
    return float((values * weights).sum() / total) if total else 0.0
