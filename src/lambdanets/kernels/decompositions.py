"""Each op of this package in PyTorch's own operations, for programs that leave it.

The functions stand in PyTorch's table of decompositions, which ``torch.onnx.export(..., dynamo=True)`` takes into
account. ``ExportedProgram.run_decompositions()`` does not: without a table of its own it keeps these ops, so that a
program that stays with PyTorch keeps their speed. :func:`decompositions` is for programs that go elsewhere.

They hold for symbolic sizes, and read nothing that a runtime would have to know of this package. Those of a grid, of
edges and of graphs are functions of :mod:`lambdanets.kernels.portable`. Dense positions take two products here, with
scores of b · h · n · u · m numbers, and the causal content term is the reference's, which writes out the normalised
keys of every query, b · u · n² · k numbers.

Axes in names: b batch, h heads, n queries, m context positions, k query depth, v value depth, u intra-depth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lambdanets.kernels.autograd.library import Op
from lambdanets.kernels.autograd.modes import register_in_operations
from lambdanets.kernels.call import Call
from lambdanets.kernels.portable import edges_term, graph_content_term, grid_term_by_convolution
from lambdanets.kernels.precision import widened
from lambdanets.kernels.reference import reference
from lambdanets.kernels.terms.causal_content import CAUSAL_CONTENT_OP
from lambdanets.kernels.terms.dense import DENSE_OP
from lambdanets.kernels.terms.edges import EDGES_OP
from lambdanets.kernels.terms.graph_content import SEGMENTS_OP
from lambdanets.kernels.terms.grid import GRID_OP

__all__ = ["decompositions"]

_TABLE: dict[Any, Callable[..., Tensor]] = {}


def decompositions() -> dict[Any, Callable[..., Tensor]]:
    """Return the ops of this package and what each is in PyTorch's own operations.

    Example:
        >>> table = torch.export.default_decompositions()
        >>> table.update(decompositions())
        >>> layer = LambdaLayer(8, scope=3).eval()
        >>> program = torch.export.export(layer, (torch.zeros(2, 8, 6, 6),)).run_decompositions(table)
    """
    return dict(_TABLE)


def _decomposes(op: Op) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    def register(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def decomposed(query: Tensor, *args: Any) -> Tensor:
            # In the precision of the op's sums, and contiguous as its output.
            tensors = widened([arg for arg in (query, *args) if isinstance(arg, Tensor)])
            others = [arg for arg in args if not isinstance(arg, Tensor)]
            return function(*tensors, *others).to(query.dtype).contiguous()

        _TABLE[register_in_operations(op.forward_op, decomposed)] = decomposed
        return function

    return register


@_decomposes(GRID_OP)
def _grid_term(
    query: Tensor, value: Tensor, table: Tensor, grid: Sequence[int], origin: Sequence[int], kernel: str
) -> Tensor:
    return grid_term_by_convolution(query, value, table, grid, origin)


@_decomposes(DENSE_OP)
def _dense_term(query: Tensor, value: Tensor, embedding: Tensor) -> Tensor:
    scores_bhnum = torch.einsum("bhnk,nmku->bhnum", query, embedding)
    return scores_bhnum.flatten(3) @ value.flatten(1, 2)[:, None]


@_decomposes(CAUSAL_CONTENT_OP)
def _causal_content_term(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return reference(Call(query, key, value, None, causal=True))


_decomposes(EDGES_OP)(edges_term)
_decomposes(SEGMENTS_OP)(graph_content_term)
