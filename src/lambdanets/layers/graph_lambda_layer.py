"""The lambda layer for graphs, in the form that users of PyTorch Geometric expect."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lambdanets.functional import lambda_apply
from lambdanets.positions import EdgePositions

__all__ = ["GraphLambdaLayer"]


class GraphLambdaLayer(nn.Module):
    """Lambda layer over the nodes of graphs: content from a node's whole graph, positions from its edges.

    Each node is a query, and the nodes of its graph are its context. The content lambda sums all of them up, the
    position lambda those at the other end of an edge, by the edge's embedding: cost and memory of it grow with the
    number of edges ("structured contexts", LambdaNetworks, section 3.1).

    Args:
        dim: channels of the nodes.
        dim_out: channels of the output; default ``dim``. Must be divisible by ``num_heads``.
        dim_edge: channels of ``edge_attr``; None (default) if edges have no attributes: then all of them share one
            learnt embedding.
        num_heads: the paper's h. Default 4.
        dim_key: the paper's k. Default 16.
        intra_depth: the paper's u. Default 1.
        norm_layer: makes the normalisation of queries and values from a number of channels; default
            ``nn.BatchNorm1d``, over all nodes.
        device: where the parameters live.
        dtype: their element type.

    Shape:
        x (nodes, dim), edge_index (2, edges), edge_attr (edges, dim_edge), batch (nodes,); output (nodes, dim_out).

    Raises:
        ValueError: if arguments or inputs do not fit each other; the message says which and what would do.
        TypeError: if indices are not int64.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int | None = None,
        *,
        dim_edge: int | None = None,
        num_heads: int = 4,
        dim_key: int = 16,
        intra_depth: int = 1,
        norm_layer: Callable[[int], nn.Module] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dim_out = dim if dim_out is None else dim_out
        if dim_out % num_heads:
            raise ValueError(f"num_heads must divide dim_out = {dim_out}, got num_heads={num_heads}")
        self.dim, self.dim_out, self.dim_edge = dim, dim_out, dim_edge
        self.num_heads, self.dim_key, self.intra_depth = num_heads, dim_key, intra_depth
        self.dim_value = dim_out // num_heads
        widths = self._widths()
        self.qkv = nn.Linear(dim, sum(widths), bias=False, device=device, dtype=dtype)
        norm = nn.BatchNorm1d if norm_layer is None else norm_layer
        self.norm_query = norm(widths[0]).to(device=device, dtype=dtype)
        self.norm_value = norm(widths[2]).to(device=device, dtype=dtype)
        # Without attributes an edge is a 1: the weight is then the one embedding.
        self.edge = nn.Linear(dim_edge or 1, dim_key * intra_depth, bias=False, device=device, dtype=dtype)
        self.reset_parameters()

    def _widths(self) -> list[int]:
        return [
            self.num_heads * self.dim_key,
            self.intra_depth * self.dim_key,
            self.intra_depth * self.dim_value,
        ]

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise as :class:`LambdaLayer`; edges so that one neighbour adds unit variance."""
        query, key_value = self.qkv.weight.split([self._widths()[0], sum(self._widths()[1:])])
        nn.init.normal_(query, std=(self.dim_key * self.dim) ** -0.5)
        nn.init.normal_(key_value, std=self.dim**-0.5)
        nn.init.normal_(self.edge.weight, std=(self.dim_key * self.intra_depth * self.edge.in_features) ** -0.5)

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor,
        edge_attr: Tensor | None = None,
        batch: Tensor | None = None,
    ) -> Tensor:
        """Apply the layer.

        Args:
            x: (nodes, dim), of all graphs one after the other.
            edge_index: (2, edges) int64, rows (source, target): the target is the query, the source its context.
            edge_attr: (edges, dim_edge); None only if the layer was built without ``dim_edge``.
            batch: (nodes,) int64, the graph of each node; None (default) for one graph.

        Returns:
            (nodes, dim_out).
        """
        edge_attr = self._check(x, edge_index, edge_attr, batch)
        query, key, value = self.qkv(x).split(self._widths(), dim=1)
        query = self.norm_query(query).unflatten(1, (self.num_heads, self.dim_key)).transpose(0, 1)
        key = key.unflatten(1, (self.intra_depth, self.dim_key)).transpose(0, 1)
        value = self.norm_value(value).unflatten(1, (self.intra_depth, self.dim_value)).transpose(0, 1)
        embedding = self.edge(edge_attr).unflatten(1, (self.dim_key, self.intra_depth))
        by_edges = lambda_apply(query[None], None, value[None], EdgePositions(edge_index.flip(0), embedding))[0]
        out = by_edges + _content_by_graph(query, key, value, batch)
        return out.transpose(0, 1).flatten(1)

    def _check(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor | None, batch: Tensor | None) -> Tensor:
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ValueError(f"x must have shape (nodes, {self.dim}), got {tuple(x.shape)}")
        if batch is not None and (batch.dtype != torch.int64 or batch.shape != x.shape[:1]):
            raise ValueError(
                f"batch must be int64 of shape ({len(x)},), the graph of each node, got {batch.dtype} "
                f"{tuple(batch.shape)}"
            )
        if edge_attr is None:
            if self.dim_edge is not None:
                raise ValueError(f"edge_attr must be given, since the layer was built with dim_edge={self.dim_edge}")
            return x.new_ones(edge_index.shape[-1], 1)
        if self.dim_edge is None or edge_attr.shape[1:] != (self.dim_edge,):
            raise ValueError(
                f"edge_attr must have shape (edges, dim_edge) with dim_edge={self.dim_edge} as the layer was built, "
                f"got {tuple(edge_attr.shape)}"
            )
        return edge_attr

    def extra_repr(self) -> str:
        """The arguments that the submodules do not show."""
        return (
            f"{self.dim}, {self.dim_out}, dim_edge={self.dim_edge}, num_heads={self.num_heads}, "
            f"dim_key={self.dim_key}, intra_depth={self.intra_depth}"
        )


def _content_by_graph(query: Tensor, key: Tensor, value: Tensor, batch: Tensor | None) -> Tensor:
    """Content term of each node in its own graph: query (h, nodes, k), key (u, nodes, k), value (u, nodes, v).

    Graphs are padded to the largest of them.
    """
    if batch is None:
        return lambda_apply(query[None], key[None], value[None])[0]
    counts = torch.bincount(batch)
    # Place of each node in its graph, whatever the order of the nodes.
    order = batch.argsort(stable=True)
    starts = (counts.cumsum(0) - counts)[batch[order]]
    place = torch.empty_like(batch)
    place[order] = torch.arange(len(batch), device=batch.device) - starts
    size = int(counts.max()) if len(counts) else 0

    def pad(rows: Tensor) -> Tensor:
        padded = rows.new_zeros(rows.shape[0], len(counts), size, rows.shape[2])
        return padded.index_put((torch.arange(len(rows), device=rows.device)[:, None], batch, place), rows).transpose(
            0, 1
        )

    mask = torch.arange(size, device=batch.device) < counts[:, None]
    out = lambda_apply(pad(query), pad(key), pad(value), mask=mask)
    return out.transpose(0, 1)[:, batch, place]
