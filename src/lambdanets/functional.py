"""The op: :func:`lambda_apply`, its contract and its argument checks."""

from __future__ import annotations

import torch
from torch import Tensor

from lambdanets.kernels.autograd.modes import is_autocast, is_compiling, is_readable
from lambdanets.kernels.call import Call
from lambdanets.kernels.dispatch import dispatch, dispatch_by_graph
from lambdanets.positions import (
    DensePositions,
    EdgePositions,
    GridPositions,
    Positions,
    describe_type,
    require_dense,
    require_floating,
    require_index,
)

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

__all__ = ["lambda_apply", "lambda_apply_by_graph"]


def lambda_apply(
    query: Tensor,
    key: Tensor | None,
    value: Tensor,
    positions: Positions | None = None,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    kernel: str | None = None,
) -> Tensor:
    """Apply to each query the lambda of its context: the content lambda plus its position lambda.

    .. math:: y_n^h = \\Big(\\sum_{m,u} \\bar K_{mu} V_{mu}^T + \\sum_{m,u} E_{nmu} V_{mu}^T\\Big)^T q_n^h

    with K̄ the softmax of the keys over the context positions (LambdaNetworks, section 3.1, equations 1 to 3).
    It is to lambda layers what ``F.scaled_dot_product_attention`` is to attention: no parameters, no
    projections. Memory kept for the backward pass does not grow faster than the inputs, except with the kernels
    ``"reference"`` and ``"portable"``.

    Letters: b batch, h heads, n queries, m context positions, k query depth, v value depth, u intra-depth.

    Args:
        query: (b, h, n, k).
        key: (b, u, m, k), not yet normalised; one set for all heads. None leaves the content term out.
        value: (b, u, m, v); one set for all heads.
        positions: the embeddings E: ``GridPositions`` (n = m = the grid), ``DensePositions``,
            ``EdgePositions``, or None (default) for the content term alone. Converted to the dtype of ``query``.
        mask: (b, m) bool, True where the context position takes part; the others are left out of both sums,
            the softmax included, and may hold anything. An example with nothing visible gives zeros.
            Default: all take part.
        causal: query n sees the context positions m <= n only (row-major order on a grid), in both sums, the
            softmax included. Needs n = m. Default False.
        kernel: None (default) takes the fastest kernel that can run; a name forces that kernel. All kernels
            give the same numbers. In float32 the errors of the kernels by Fourier transforms are in proportion to the
            largest number: of ``"spectral"`` and ``"row_spectral"`` to the largest value of the channel, of
            ``"spectral_compiled"`` to the largest of all channels, of all three to the largest entry of the table. On
            CPUs None looks at the numbers and takes another kernel where such errors would show in an output that
            does not see that number; on other devices it takes another one for every local or causal context.

    Returns:
        (b, h, n, v), of the dtype of ``query``, under autocast of autocast's. In half precision the sums accumulate in
        float32, and their total is rounded once; on CUDA devices with GridPositions each term is.

        A value that is not finite makes those outputs NaN that see it, and no others: the position term sees the
        table's extents around the query, a dense E the whole context, edges their own positions; without a causal
        order the content term sees the whole context, and its outputs are then NaN or infinite. An entry of the
        table that is not finite is seen by the queries that have a position at its offset, masked or not. There are
        three exceptions, in which they may show in other outputs too: values and entries in an ONNX file of
        ``dynamo=False``, entries where ``"portable"`` is traced or exported, and entries with
        ``"query_first_triton"``.

        Derivatives of every order, in reverse and in forward mode; the content term in causal order has first
        derivatives in reverse mode only, but with ``kernel="portable"`` or ``"reference"``.

    Raises:
        TypeError: if an argument is not a dense floating-point tensor (``mask``: a bool tensor), dtypes differ, or
            ``positions`` or ``causal`` is something else.
        ValueError: if shapes do not fit each other, tensors are on several devices, an index of an edge is out of
            range, or the named kernel is unknown or cannot run here.
        NotImplementedError: for the derivatives that the content term in causal order does not have.
    """
    if key is None and positions is None:
        raise ValueError("key and positions must not both be None: there would be no term left to compute")
    query, key, value = _one_dtype(query, key, value)
    _check_devices(query, positions, key=key, value=value, mask=mask)
    _check_shapes(query, key, value)
    _check_positions(query, value, positions)
    if mask is not None:
        _check_mask(mask, value)
    if not isinstance(causal, bool):
        raise TypeError(f"causal must be True or False, got {causal!r}")
    if causal and query.shape[2] != value.shape[2]:
        raise ValueError(
            f"causal=True needs as many queries as context positions, got n = {query.shape[2]} and "
            f"m = {value.shape[2]}; leave causal off for a context of its own"
        )
    return dispatch(Call(query, key, value, positions, mask, causal, kernel))


def lambda_apply_by_graph(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    batch: Tensor,
    num_graphs: int,
    positions: EdgePositions | None = None,
) -> Tensor:
    """Apply to each node of many graphs the content lambda of its own graph plus the position lambda of its edges.

    What :func:`lambda_apply` does for one graph, for all of them at once: the content term by segment sums; the
    position term needs nothing of its own, since edges stay within their graph.

    Args:
        query: (b, h, nodes, k).
        key: (b, u, nodes, k), not yet normalised.
        value: (b, u, nodes, v).
        batch: (nodes,) int64 in [0, num_graphs), the graph of each node, in any order; its values are not checked.
        num_graphs: how many graphs there are, those without nodes included.
        positions: the edges of all graphs; None (default) for the content term alone.

    Returns:
        (b, h, nodes, v), of the dtype of ``query``, under autocast of autocast's. In half precision the sums accumulate
        in float32.

    Raises:
        TypeError: if query, key or value is not a dense floating-point tensor, dtypes differ, ``batch`` is not an int64
            tensor, ``num_graphs`` not an int, or ``positions`` something else.
        ValueError: if shapes do not fit each other, tensors are on several devices, ``num_graphs`` is negative, or an
            edge's index is out of range. An edge between two graphs is not looked for: it counts as any other.
    """
    if key is None:
        raise TypeError("key must be a torch.Tensor, got None; for edges alone use lambda_apply with key=None")
    query, key, value = _one_dtype(query, key, value)  # type: ignore[assignment]
    _check_devices(query, positions, key=key, value=value, batch=batch)
    _check_shapes(query, key, value)
    _check_graphs(value.shape[2], batch, num_graphs)
    if query.shape[2] != value.shape[2]:
        raise ValueError(
            f"query and value must have the same nodes (axis 2), got query {tuple(query.shape)} and value "
            f"{tuple(value.shape)}"
        )
    if positions is not None and not isinstance(positions, EdgePositions):
        raise TypeError(f"positions must be EdgePositions or None, got {describe_type(positions)}")
    _check_positions(query, value, positions)
    return dispatch_by_graph(query, key, value, positions, batch, num_graphs)


def _one_dtype(query: Tensor, key: Tensor | None, value: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    """The tensors in one dtype: autocast's where it is enabled, else the one that all of them must have.

    Raises:
        TypeError: if there is none, or one is not a tensor of a dtype that kernels take.
    """
    named = {"query": query, "value": value} if key is None else {"query": query, "key": key, "value": value}
    for name, tensor in named.items():
        require_floating(name, tensor)
        if tensor.dtype not in _DTYPES:
            names = ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES)
            raise TypeError(f"{name} must be of one of the dtypes {names}, got {tensor.dtype}; use .to(torch.bfloat16)")
    device_type = query.device.type
    if is_autocast(device_type) and all(t.dtype != torch.float64 for t in named.values()):
        dtype = torch.get_autocast_dtype(device_type)
        return query.to(dtype), None if key is None else key.to(dtype), value.to(dtype)
    if any(tensor.dtype != query.dtype for tensor in named.values()):
        given = ", ".join(f"{name} {tensor.dtype}" for name, tensor in named.items())
        raise TypeError(
            f"query, key and value must have one dtype, got {given}; convert them with .to(dtype) or run under "
            "torch.autocast, which leaves float64 as it is"
        )
    return query, key, value


def _check_devices(query: Tensor, positions: Positions | None, **tensors: Tensor | None) -> None:
    for name in ("table", "embedding", "index"):
        tensors[f"positions.{name}"] = getattr(positions, name, None)
    for name, tensor in tensors.items():
        if isinstance(tensor, Tensor) and tensor.device != query.device:
            raise ValueError(
                f"{name} must be on the device of query, {query.device}, got {tensor.device}; "
                f"move one of them with .to(device)"
            )


def _check_shapes(query: Tensor, key: Tensor | None, value: Tensor) -> None:
    for name, tensor, axes in (
        ("query", query, "(b, h, n, k)"),
        ("key", key, "(b, u, m, k)"),
        ("value", value, "(b, u, m, v)"),
    ):
        if tensor is not None and tensor.ndim != 4:
            raise ValueError(f"{name} must have shape {axes}, got {tuple(tensor.shape)}")
    if query.shape[0] != value.shape[0]:
        raise ValueError(
            f"query and value must have one batch size, got query {tuple(query.shape)} and value {tuple(value.shape)}"
        )
    if key is None:
        return
    if key.shape[:3] != value.shape[:3]:
        raise ValueError(
            "key and value must agree in batch, intra-depth and context positions (b, u, m), got key "
            f"{tuple(key.shape)} and value {tuple(value.shape)}"
        )
    if query.shape[3] != key.shape[3]:
        raise ValueError(
            "query and key must have one query depth k (last axis), got query "
            f"{tuple(query.shape)} and key {tuple(key.shape)}"
        )


def _check_graphs(nodes: int, batch: Tensor, num_graphs: int) -> None:
    require_index("batch", batch, "(nodes,), the graph of each node")
    if tuple(batch.shape) != (nodes,):
        raise ValueError(f"batch must have shape (nodes,) = ({nodes},), got {tuple(batch.shape)}")
    if isinstance(num_graphs, bool) or not isinstance(num_graphs, int | torch.SymInt):
        raise TypeError(f"num_graphs must be an int, got {num_graphs!r}")
    if not is_compiling() and num_graphs < 0:  # where it may be a number that is known later
        raise ValueError(f"num_graphs must not be negative, got {num_graphs}")


def _check_positions(query: Tensor, value: Tensor, positions: Positions | None) -> None:
    if positions is None:
        return
    if not isinstance(positions, GridPositions | DensePositions | EdgePositions):
        raise TypeError(
            f"positions must be GridPositions, DensePositions, EdgePositions or None, got {type(positions).__name__}"
        )
    n, k, (u, m) = query.shape[2], query.shape[3], value.shape[1:3]
    if positions.dim_key != k:
        raise ValueError(
            f"positions must have the queries' depth k = {k}, got {positions.dim_key}: query has shape "
            f"{tuple(query.shape)}, {_described(positions)}"
        )
    if positions.intra_depth != u:
        raise ValueError(
            f"positions must have the values' intra-depth u = {u}, got {positions.intra_depth}: value has "
            f"shape {tuple(value.shape)}, {_described(positions)}"
        )
    if isinstance(positions, EdgePositions):
        _check_edges(positions, n, m)
    elif isinstance(positions, GridPositions) and n != m:
        raise ValueError(
            f"positions on a grid are their own context, so n = m, got n = {n} queries and m = {m} context positions "
            f"on positions.grid = {tuple(positions.grid)}; for another context use DensePositions with an embedding "
            f"(n, m, k, u) = {(n, m, k, u)}, or positions=None"
        )
    elif (positions.num_queries, positions.num_context) != (n, m):
        remedy = (
            f"positions.grid = {tuple(positions.grid)} has {positions.num_queries} positions; pass the grid of this "
            "input"
            if isinstance(positions, GridPositions)
            else f"positions.embedding must have shape (n, m, k, u) = {(n, m, k, u)}"
        )
        raise ValueError(
            f"positions are for {positions.num_queries} queries and {positions.num_context} context positions, "
            f"got n = {n} and m = {m}: {remedy}"
        )


def _described(positions: Positions) -> str:
    if isinstance(positions, GridPositions):
        return f"positions.table has shape {tuple(positions.table.shape)}, (u, k, *extents)"
    return f"positions.embedding has shape {tuple(positions.embedding.shape)}, (..., k, u)"


def _check_edges(positions: EdgePositions, n: int, m: int) -> None:
    index = positions.index
    if positions.in_range or not is_readable(index) or index.shape[1] == 0:
        return
    bounds = torch.stack(index.aminmax(dim=1), dim=1).tolist()  # once: a GPU is waited for
    for row, (name, size) in enumerate((("query", n), ("context", m))):
        low, high = bounds[row]
        if low < 0 or high >= size:
            raise ValueError(
                f"positions.index row {row} must hold {name} positions in [0, {size}), got values from {low} to "
                f"{high}; rows are (query, context), both counted from 0"
            )


def _check_mask(mask: Tensor, value: Tensor) -> None:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        given = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(
            f"mask must be a bool tensor, True where the context position takes part, got {given}; "
            "convert it with mask.bool()"
        )
    require_dense("mask", mask)
    expected = (value.shape[0], value.shape[2])
    if tuple(mask.shape) != expected:
        raise ValueError(f"mask must have shape (b, m) = {expected}, got {tuple(mask.shape)}")
