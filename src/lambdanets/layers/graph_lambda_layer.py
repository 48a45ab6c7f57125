"""The lambda layer for graphs, in the form that users of PyTorch Geometric expect."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from lambdanets.functional import lambda_apply, lambda_apply_by_graph
from lambdanets.kernels.autograd.modes import is_compiling, is_jit_tracing
from lambdanets.layers.arguments import check_dtype, positive_int
from lambdanets.layers.base import LambdaModule
from lambdanets.layers.graph_arguments import (
    check_edges,
    check_ends,
    check_graphs,
    check_nodes,
    count_graphs,
    may_look,
)
from lambdanets.layers.leaves import leaf
from lambdanets.layers.norms import NormLayer, check_enough_values, make_norm
from lambdanets.positions import EdgePositions

__all__ = ["GraphLambdaLayer"]

_NORMS = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm, "none": nn.Identity}


class GraphLambdaLayer(LambdaModule):
    """Lambda layer over the nodes of graphs: content from a node's whole graph, positions from its edges.

    Each node is a query, and the nodes of its graph are its context. The content lambda sums all of them up, the
    position lambda those at the other end of an edge, by the edge's embedding: cost and memory of it grow with the
    number of edges ("structured contexts", LambdaNetworks, section 3.1). Sums over a graph are segment sums: graphs of
    any sizes go through together, in any order of their nodes, without padding.

    Args:
        dim: channels of the nodes.
        dim_out: channels of the output; default ``dim``. Must be divisible by ``num_heads``.
        dim_edge: channels of ``edge_attr``; None (default) if edges have no attributes: then all of them share one
            learnt embedding.
        num_heads: the paper's h. Default 4.
        dim_key: the paper's k. Default 16.
        intra_depth: the paper's u. Default 1.
        norm_layer: normalisation of queries and values: "batch" (default) batch-norm over the nodes of all graphs,
            "layer" layer-norm over the channels of each node, "none", or a class or function that makes a norm of
            (nodes, channels) from a number of channels.
        device: where the parameters live.
        dtype: their element type.

    Shape:
        x (nodes, dim), edge_index (2, edges), edge_attr (edges, dim_edge), batch (nodes,); output (nodes, dim_out).

    Raises:
        ValueError: if arguments or inputs do not fit each other; the message says which and what would do.
        TypeError: if ``x`` or ``edge_attr`` are not floating-point tensors or of another dtype than the weights without
            autocast, indices are not int64, ``norm_layer`` makes no norm, or ``num_graphs`` is no int.

    Note:
        ``torch.compile(fullgraph=True)`` and ``torch.export`` take the layer for any number of nodes, edges and
        graphs, with ``num_graphs`` or without; they do not look at the values of indices.

    Example:
        >>> layer = GraphLambdaLayer(64, dim_edge=8)
        >>> edge_index = torch.tensor([[0, 1, 3], [1, 2, 4]])
        >>> batch = torch.tensor([0, 0, 0, 1, 1])
        >>> layer(torch.randn(5, 64), edge_index, torch.randn(3, 8), batch).shape
        torch.Size([5, 64])
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
        norm_layer: NormLayer | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim, dim_out, num_heads, dim_key, intra_depth)
        self.dim_edge = None if dim_edge is None else positive_int("dim_edge", dim_edge)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        widths = self._widths()
        self.qkv = nn.Linear(self.dim, sum(widths), bias=False, **factory)
        norm_layer = "batch" if norm_layer is None else norm_layer
        self.norm_query = make_norm(norm_layer, _NORMS, widths[0], **factory)
        self.norm_value = make_norm(norm_layer, _NORMS, widths[2], **factory)
        # Without attributes an edge is a 1: the weight is then the one embedding.
        self.edge = nn.Linear(self.dim_edge or 1, self.dim_key * self.intra_depth, bias=False, **factory)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise as :class:`LambdaLayer`; edges so that one neighbour adds unit variance."""
        self._reset_projection(self.qkv.weight, (self.norm_query, self.norm_value))
        nn.init.normal_(self.edge.weight, std=(self.dim_key * self.intra_depth * self.edge.in_features) ** -0.5)

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor,
        edge_attr: Tensor | None = None,
        batch: Tensor | None = None,
        num_graphs: int | None = None,
    ) -> Tensor:
        """Apply the layer.

        Args:
            x: (nodes, dim), of all graphs.
            edge_index: (2, edges) int64, rows (source, target): the target is the query, the source its context.
                Both ends of an edge are in one graph; parallel edges add up.
            edge_attr: (edges, dim_edge); None only if the layer was built without ``dim_edge``.
            batch: (nodes,) int64, the graph of each node, in any order; None (default) for one graph.
            num_graphs: how many graphs there are, those without nodes included; one without ``batch``. Default None: as
                many as ``batch`` names. Where it is given, a GPU is not waited for, and so values of indices are not
                looked at there: one out of range is then a device-side assertion, and an edge across graphs is not
                noticed.

        Returns:
            (nodes, dim_out).
        """
        if isinstance(x, Proxy):  # torch.fx.symbolic_trace
            return leaf(self, x, edge_index, edge_attr, batch, num_graphs)
        check_nodes(x, self.dim)
        check_graphs(x, batch, num_graphs)
        check_edges(x, edge_index, edge_attr, self.dim_edge)
        check_dtype("x", x, self.qkv)
        if edge_attr is not None:
            check_dtype("edge_attr", edge_attr, self.edge)
        if not (is_compiling() or is_jit_tracing()) and x.shape[0] == 1:
            check_enough_values("x of one node", self.norm_query, self.norm_value)
        look = may_look(edge_index, batch, num_graphs)
        graphs = count_graphs(batch, num_graphs, look)
        if look:
            check_ends(x.shape[0], edge_index, batch)
        query, key, value = self.project(x)
        edges = EdgePositions(edge_index.flip(0), self._embedding(edge_index, edge_attr), in_range=True)
        if batch is None:
            out = lambda_apply(query, key, value, edges)
        else:
            out = lambda_apply_by_graph(query, key, value, batch, graphs, edges)
        return out[0].transpose(0, 1).flatten(1)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the arguments of :func:`lambdanets.lambda_apply`, norms applied; the input is not checked.

        Args:
            x: (nodes, dim).

        Returns:
            Queries (1, h, nodes, k), keys (1, u, nodes, k) before their softmax, and values (1, u, nodes, v).
        """
        query, key, value = self.qkv(x).split(self._widths(), dim=1)
        query = self.norm_query(query).unflatten(1, (self.num_heads, self.dim_key)).transpose(0, 1)[None]
        key = key.unflatten(1, (self.intra_depth, self.dim_key)).transpose(0, 1)[None]
        value = self.norm_value(value).unflatten(1, (self.intra_depth, self.dim_value)).transpose(0, 1)[None]
        return query, key, value

    def _embedding(self, edge_index: Tensor, edge_attr: Tensor | None) -> Tensor:
        """(edges, k, u)."""
        if edge_attr is None:
            edge_attr = self.edge.weight.new_ones(edge_index.shape[1], 1)
        return self.edge(edge_attr).unflatten(1, (self.dim_key, self.intra_depth))

    def extra_repr(self) -> str:
        """The arguments that the submodules do not show."""
        return (
            f"{self.dim}, {self.dim_out}, dim_edge={self.dim_edge}, num_heads={self.num_heads}, "
            f"dim_key={self.dim_key}, intra_depth={self.intra_depth}"
        )
