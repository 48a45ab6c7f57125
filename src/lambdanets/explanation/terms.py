"""Results of one lambda layer for one example, and from them the weight S of every context position for a query.

Letters as in the paper: h heads, n queries, m context positions, k query depth, v value depth, u intra-depth. With
``p`` prefix tokens (TokenLambda) the first p of the n queries and of the m context positions are these tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["PARTS", "Array", "LayerTerms", "Weights"]

Array = NDArray[np.floating]


PARTS = ("content", "position", "sum")


@dataclass(frozen=True, eq=False)
class Weights:
    """Weights of one query.

    Args:
        content: (h, u, m), q_n^h · K̄_m.
        position: (h, u, m), q_n^h · E_nm.
    """

    content: Array
    position: Array

    def part(self, name: str) -> Array:
        """``"content"``, ``"position"`` or their ``"sum"``, (h, u, m); a ValueError for another name."""
        if name not in PARTS:
            raise ValueError(f"part must be one of {', '.join(map(repr, PARTS))}, got {name!r}")
        return {"content": self.content, "position": self.position, "sum": self.content + self.position}[name]


@dataclass(frozen=True, eq=False)
class LayerTerms:
    """Queries, keys, values and positions of one layer for one example.

    Floats are float32, or float64 for a layer in float64.

    Args:
        name: path of the layer in the model.
        kind: class name of the layer.
        query: (h, n, k), normalised.
        key: (u, m, k), the softmax K̄ over the context; in causal order K minus its largest entry of each channel, since
            each query has a softmax of its own.
        value: (u, m, v), normalised, 0 where the context is masked.
        output: (h, n, v), what the layer gave, before pooling.
        grid: shape of the queries behind the prefix tokens.
        context_grid: shape of the context positions behind them.
        own_context: True if keys and values are of another input, without positions: the query has no place in it.
        prefix: number p of prefix tokens.
        table: (u, k, *extents), offsets on the grid; None if the layer has no such table.
        local: True if the table covers a scope around the query, False if it covers the whole grid.
        prefix_keys: (u, k, p), E of a prefix token as context of a query on the grid.
        prefix_queries: (u, k, p), E of the grid as context of a prefix token.
        prefix_pairs: (u, k, p, p), E of prefix token j as context of prefix token i.
        edges: (2, e) integers, rows (query, context); None if the layer has no edges.
        embedding: (e, k, u), E of the edges.
        graph: (n,) integers, the graph of each node; None if all nodes are in one.
        logsumexp: (u, n, k) in causal order: log Σ_(m <= n) exp(key); None otherwise.
        visible: (m,) bool, False where the context is masked; None if nothing is.
        bias: (k,), bias of the position lambda's entries: q_n · bias is added to the output and belongs to no context
            position; None if there is none.
    """

    name: str
    kind: str
    query: Array
    key: Array
    value: Array
    output: Array
    grid: tuple[int, ...]
    context_grid: tuple[int, ...]
    own_context: bool = False
    prefix: int = 0
    table: Array | None = None
    local: bool = False
    prefix_keys: Array | None = None
    prefix_queries: Array | None = None
    prefix_pairs: Array | None = None
    edges: NDArray[np.int64] | None = None
    embedding: Array | None = None
    graph: NDArray[np.int64] | None = None
    logsumexp: Array | None = None
    visible: NDArray[np.bool_] | None = None
    bias: Array | None = None

    @property
    def heads(self) -> int:
        """The paper's h."""
        return self.query.shape[0]

    @property
    def num_queries(self) -> int:
        """The paper's n, prefix tokens included."""
        return self.query.shape[1]

    @property
    def num_context(self) -> int:
        """The paper's m, prefix tokens included."""
        return self.key.shape[1]

    @property
    def intra_depth(self) -> int:
        """The paper's u."""
        return self.key.shape[0]

    @property
    def extents(self) -> tuple[int, ...] | None:
        """Shape of the table of offsets, or None."""
        return None if self.table is None else self.table.shape[2:]

    @property
    def value_norms(self) -> Array:
        """‖V_m‖, (u, m)."""
        return np.linalg.norm(self.value, axis=2)

    def arrays(self) -> dict[str, Array]:
        """The float arrays that S is computed from, by name."""
        names = ("query", "key", "table", "prefix_keys", "prefix_queries", "prefix_pairs", "embedding", "logsumexp")
        return {name: array for name in names if (array := getattr(self, name)) is not None}

    def weights(self, query: int) -> Weights:
        """S of one query (its index among all n), by part; memory grows with m, not with n · m."""
        content, position = self._content(query), self._position(query)
        if self.visible is not None:
            position = position * self.visible  # masked keys are 0 already
        return Weights(content, position)

    def outputs(self, queries: NDArray[np.int64]) -> Iterator[tuple[Array, Array, Array]]:
        """For each query Σ_mu S V by part, and the share of the bias: three arrays (h, v)."""
        values = self.value.reshape(-1, self.value.shape[2])
        for query in queries.tolist():
            weights = self.weights(query)
            content, position = (part.reshape(self.heads, -1) @ values for part in (weights.content, weights.position))
            bias = np.zeros_like(content)
            if self.bias is not None:
                bias += (self.query[:, query] @ self.bias)[:, None]
            yield content, position, bias

    def _content(self, query: int) -> Array:
        key = self.key
        if self.logsumexp is not None:
            seen = np.arange(self.num_context) <= query
            # What is not seen may be larger than what the sum is over.
            exponent = np.where(seen[None, :, None], key - self.logsumexp[:, query, None], -np.inf)
            key = np.exp(exponent)
        content = np.tensordot(self.query[:, query], key, axes=(1, 2))
        if self.graph is not None:
            content = content * (self.graph == self.graph[query])
        return content

    def _position(self, query: int) -> Array:
        if self.edges is not None:
            return self._edge_scores(query)
        if self.table is None:
            return np.zeros((self.heads, self.intra_depth, self.num_context), self.query.dtype)
        scores = self._token_scores(query) if self.prefix else self._grid_scores(query, query)
        if self.logsumexp is not None:
            scores = scores * (np.arange(self.num_context) <= query)
        return scores

    def _grid_scores(self, query: int, place: int) -> Array:
        """q_n · E_nm over the grid (h, u, positions) of a query that stands at ``place`` of it."""
        table = self.table
        if table is None:
            raise ValueError(f"the layer {self.name!r} has no table of offsets")
        where = np.unravel_index(place, self.grid)
        target: list[Any] = [slice(None), slice(None)]
        source: list[Any] = [slice(None), slice(None)]
        for at, size, extent in zip(where, self.grid, table.shape[2:], strict=True):
            first = max(0, int(at) - extent // 2)
            last = min(size, int(at) + extent // 2 + 1)
            target.append(slice(first, last))
            source.append(slice(first - int(at) + extent // 2, last - int(at) + extent // 2))
        window = table[tuple(source)]
        seen = np.tensordot(self.query[:, query], window, axes=(1, 1))  # (h, u, *window)
        scores = np.zeros((self.heads, self.intra_depth, *self.grid), self.query.dtype)
        scores[tuple(target)] = seen
        return scores.reshape(self.heads, self.intra_depth, -1)

    def _token_scores(self, query: int) -> Array:
        if self.prefix_keys is None or self.prefix_queries is None or self.prefix_pairs is None:
            raise ValueError(f"the layer {self.name!r} has prefix tokens without embeddings")
        q_hk = self.query[:, query]
        if query < self.prefix:
            to_prefix = np.einsum("hk,ukp->hup", q_hk, self.prefix_pairs[:, :, query])
            everywhere = np.einsum("hk,uk->hu", q_hk, self.prefix_queries[:, :, query])
            to_grid = np.repeat(everywhere[:, :, None], math.prod(self.grid), axis=2)
        else:
            to_prefix = np.einsum("hk,ukp->hup", q_hk, self.prefix_keys)
            to_grid = self._grid_scores(query, query - self.prefix)
        return np.concatenate([to_prefix, to_grid], axis=2)

    def _edge_scores(self, query: int) -> Array:
        if self.edges is None or self.embedding is None:
            raise ValueError(f"the layer {self.name!r} has no edges")
        scores = np.zeros((self.heads, self.intra_depth, self.num_context), self.query.dtype)
        own = self.edges[0] == query
        seen = np.einsum("hk,eku->hue", self.query[:, query], self.embedding[own])
        for edge, source in enumerate(self.edges[1, own]):  # parallel edges add up
            scores[:, :, source] += seen[:, :, edge]
        return scores
