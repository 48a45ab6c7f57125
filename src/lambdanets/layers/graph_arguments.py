"""Checks of the inputs of :class:`GraphLambdaLayer`: shapes always, values of indices where reading costs no wait."""

from __future__ import annotations

import torch
from torch import Tensor

from lambdanets.kernels.autograd.modes import is_compiling, is_readable
from lambdanets.positions import require_floating, require_index

__all__ = ["check_edges", "check_ends", "check_graphs", "check_nodes", "count_graphs", "may_look"]


def may_look(edge_index: Tensor, batch: Tensor | None, num_graphs: int | None) -> bool:
    """True if the values of indices are to be checked.

    They are not where they cannot be read, as in a graph that is being traced, nor on a GPU where ``num_graphs`` is
    given: reading them would wait for all that runs there, which a given number promises to avoid.
    """
    readable = is_readable(edge_index) and (batch is None or is_readable(batch))
    return readable and (edge_index.device.type == "cpu" or num_graphs is None)


def check_nodes(x: Tensor, dim: int) -> None:
    """Raise unless ``x`` is a floating-point tensor of shape (nodes, dim)."""
    require_floating("x", x)
    if x.ndim == 3:
        raise ValueError(
            f"x must have shape (nodes, {dim}), the nodes of all graphs in one axis, got {tuple(x.shape)}; use "
            "x.flatten(0, 1) and name the graph of each node in batch"
        )
    if x.ndim != 2 or x.shape[1] != dim:
        raise ValueError(f"x must have shape (nodes, {dim}) for GraphLambdaLayer(dim={dim}), got {tuple(x.shape)}")


def check_graphs(x: Tensor, batch: Tensor | None, num_graphs: int | None) -> None:
    """Raise unless ``batch`` and ``num_graphs`` may describe the graphs of ``x``.

    Raises:
        TypeError: if ``batch`` is not an int64 tensor or ``num_graphs`` not an int.
        ValueError: if ``batch`` has another length than ``x``, or ``num_graphs`` is negative, or not 1 where there are
            nodes and no ``batch``.
    """
    if num_graphs is not None and (isinstance(num_graphs, bool) or not isinstance(num_graphs, int | torch.SymInt)):
        raise TypeError(f"num_graphs must be an int or None, got {num_graphs!r}")
    if num_graphs is not None and not is_compiling():  # where it may be a number that is known later
        if num_graphs < 0:
            raise ValueError(f"num_graphs must not be negative, got {num_graphs}")
        if batch is None and num_graphs != 1 and x.shape[0] > 0:
            raise ValueError(f"batch must name the graph of each node where num_graphs={num_graphs}, got None")
    if batch is None:
        return
    _check_index("batch", "(nodes,), the graph of each node", batch, x.device)
    if batch.ndim != 1 or batch.shape[0] != x.shape[0]:
        raise ValueError(
            f"batch must have shape ({x.shape[0]},), the graph of each node of x, which has shape {tuple(x.shape)}; "
            f"got {tuple(batch.shape)}"
        )


def check_edges(x: Tensor, edge_index: Tensor, edge_attr: Tensor | None, dim_edge: int | None) -> None:
    """Raise unless the edges fit the nodes' device, their attributes and the layer.

    Raises:
        TypeError: if ``edge_index`` is not an int64 tensor or ``edge_attr`` not a floating-point one.
        ValueError: if shapes do not fit.
    """
    _check_index("edge_index", "(2, edges), rows (source, target)", edge_index, x.device)
    if edge_index.ndim != 2 or edge_index.shape[0] != 2:
        turned = edge_index.ndim == 2 and edge_index.shape[1] == 2
        raise ValueError(
            f"edge_index must have shape (2, edges), rows (source, target), got {tuple(edge_index.shape)}"
            + ("; use edge_index.t()" if turned else "")
        )
    _check_attributes(edge_index, edge_attr, dim_edge, x.device)


def count_graphs(batch: Tensor | None, num_graphs: int | None, look: bool) -> int:
    """Return the number of graphs; with ``look`` after a check of the graphs that ``batch`` names.

    Raises:
        ValueError: if it names one that there is not.
    """
    if batch is None:
        return 1
    if not look:
        # Not int(): torch.export takes an item as a number that is known later.
        return batch.max().item() + 1 if num_graphs is None else num_graphs  # type: ignore[return-value]
    if batch.numel() == 0:
        return num_graphs or 0
    low, high = torch.stack(batch.aminmax()).tolist()
    if low < 0:
        raise ValueError(f"batch must number the graphs from 0, got values from {low} to {high}")
    if num_graphs is not None and high >= num_graphs:
        raise ValueError(
            f"num_graphs must be above every graph that batch names, 0 to {high}, got num_graphs={num_graphs}; "
            f"{high + 1} or None would do"
        )
    return high + 1 if num_graphs is None else num_graphs


def check_ends(nodes: int, edge_index: Tensor, batch: Tensor | None) -> None:
    """Raise a ValueError if an edge ends out of range or joins two graphs; reads the values."""
    if edge_index.shape[1] == 0:
        return
    low, high = torch.stack(edge_index.aminmax()).tolist()
    if low < 0 or high >= nodes:
        raise ValueError(
            f"edge_index must hold nodes of x in [0, {nodes}), got values from {low} to {high}; a batch of graphs "
            "moves the indices of each by the nodes before it"
        )
    if batch is None:
        return
    across = batch[edge_index[0]] != batch[edge_index[1]]
    if across.any():
        edge = int(across.int().argmax())
        source, target = edge_index[:, edge].tolist()
        raise ValueError(
            f"edge_index must join nodes of one graph: edge {edge} goes from node {source} in graph "
            f"{int(batch[source])} to node {target} in graph {int(batch[target])}; correct batch or the edge, or leave "
            "batch out where all nodes are one graph"
        )


def _check_index(name: str, shape: str, index: Tensor, device: torch.device) -> None:
    require_index(name, index, shape)
    _check_device(name, index, device)


def _check_device(name: str, tensor: Tensor, device: torch.device) -> None:
    if tensor.device != device:
        raise ValueError(
            f"{name} must be on the device of x, {device}, got {tensor.device}; move one of them with .to(device)"
        )


def _check_attributes(edge_index: Tensor, edge_attr: Tensor | None, dim_edge: int | None, device: torch.device) -> None:
    if edge_attr is None:
        if dim_edge is not None:
            raise ValueError(f"edge_attr must be given, since the layer was built with dim_edge={dim_edge}")
        return
    if dim_edge is None:
        raise ValueError(
            "edge_attr must be None, since the layer was built with dim_edge=None; build it with dim_edge= the "
            "channels of edge_attr"
        )
    require_floating("edge_attr", edge_attr)
    _check_device("edge_attr", edge_attr, device)
    if edge_attr.ndim != 2 or edge_attr.shape[1] != dim_edge:
        raise ValueError(
            f"edge_attr must have shape (edges, dim_edge) with dim_edge={dim_edge} as the layer was built, "
            f"got {tuple(edge_attr.shape)}"
        )
    if edge_attr.shape[0] != edge_index.shape[1]:
        raise ValueError(
            "edge_attr must have a row for each edge, the columns of edge_index, got edge_attr "
            f"{tuple(edge_attr.shape)} and edge_index {tuple(edge_index.shape)}"
        )
