"""The layers of the study, which sequences and graphs have in one place of their networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from lambdanets.experiments.studies.structure.data import Graphs, Sequences, load_leaves, load_molecules
from lambdanets.experiments.studies.structure.networks import (
    Attention,
    GraphLambda,
    GraphNetwork,
    RelationalConvolution,
)
from lambdanets.layers import LambdaLayer

__all__ = ["BATCH", "ROWS", "STRUCTURES", "Layer", "Structure", "baseline"]

# Examples of a training step.
BATCH = 32


@dataclass(frozen=True)
class Layer:
    """A row of the study.

    Args:
        make: what makes the layer that mixes positions.
        is_lambda: True for a lambda layer, which is compared with all others. Default False.
    """

    make: Callable[[int, int], nn.Module]
    is_lambda: bool = False


@dataclass(frozen=True)
class Structure:
    """A kind of data with its rows.

    Args:
        data: name of the data set.
        load: reads it.
        rows: by name; the first is the baseline.
        unit: what differences are paired by, a seed or a fold.
        steps: of a training, by scale.
    """

    data: str
    load: Callable[[], Sequences | Graphs]
    rows: Mapping[str, Layer]
    unit: str
    steps: Mapping[str, int]


STRUCTURES = {
    "sequence": Structure(
        "OSULeaf",
        load_leaves,
        {
            "sequence: convolution": Layer(lambda dim, size: nn.Conv1d(dim, dim, 7, padding=3)),
            "sequence: attention": Layer(Attention),
            "sequence: lambda": Layer(lambda dim, size: LambdaLayer(dim, size=size, ndim=1), is_lambda=True),
            "sequence: lambda, scope 7": Layer(lambda dim, size: LambdaLayer(dim, scope=7, ndim=1), is_lambda=True),
        },
        "seed",
        {"full": 300, "quick": 40},
    ),
    "graph": Structure(
        "MUTAG",
        load_molecules,
        {
            "graph: graph network": Layer(GraphNetwork),
            "graph: relational convolution": Layer(RelationalConvolution),
            "graph: lambda": Layer(GraphLambda, is_lambda=True),
            "graph: lambda, no edge labels": Layer(lambda dim, dim_edge: GraphLambda(dim, None), is_lambda=True),
        },
        "fold",
        {"full": 150, "quick": 40},
    ),
}
ROWS = {name: structure for structure, found in STRUCTURES.items() for name in found.rows}


def baseline(structure: str) -> str:
    """The row that the others of a structure are compared with."""
    return next(iter(STRUCTURES[structure].rows))
