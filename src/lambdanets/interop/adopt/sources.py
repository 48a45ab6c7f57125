"""The lambda layers of other implementations: how each names, orders and shapes its numbers, and what they are in ours.

A layer is recognised by the names of its submodules and parameters (``marks``), never by its class: two of the four
implementations are single files that people copy. The same description serves modules and checkpoints.

Letters as in the paper: h heads, k query depth, v value depth, u intra-depth. Our channels are queries (h, k), keys
(u, k), values (u, v); our table is (u, k, *extents), indexed by the offset from the query to the context position.

===========  =====================  ==========  ==========  =============================================
source       projections            keys        values      positions
===========  =====================  ==========  ==========  =============================================
timm         qkv                    k           v           conv_lambda (k, 1, r, r, 1) with bias, or
                                                            pos_emb (2H-1, 2W-1, k)
lucidrains   to_q, to_k, to_v       (u, k)      (u, v)      pos_conv (k, u, 1, r, r) with bias, or
                                                            rel_pos_emb (2n-1, 2n-1, k, u)
d-li14       conv_qkv               (u, k)      (u, v)      lambda_conv (k, u, 1, r, r) with bias
leaderj1001  queries, keys, values  (k, u)      see below   embedding (k, u, 1, m, m), or (k, u): offset 0
===========  =====================  ==========  ==========  =============================================

leaderj1001's content term reads the value channels as (v, u), and so does its position term where the embedding is
(k, u). Its position convolution reads them as (u, v). With u = 1 there is no difference; with u > 1 no one order of
our values gives both, see :class:`lambdanets.interop.TwoOrderLambdaLayer`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["SOURCES", "Layout", "Piece", "Source", "UnfitError", "describe_sources", "recognise"]

Tensors = Mapping[str, Tensor]


class UnfitError(ValueError):
    """A layer that looks like a known one but has no equal among ours; the message says why."""


@dataclass(frozen=True)
class Piece:
    """One of our parameters, made from some of theirs."""

    ours: str
    theirs: tuple[str, ...]
    convert: Callable[..., Tensor]

    def __call__(self, tensors: Tensors) -> Tensor:
        """The parameter in our shape and order; shares memory with theirs where it can."""
        return self.convert(*(tensors[name] for name in self.theirs))


@dataclass(frozen=True)
class Layout:
    """One layer of another implementation, as ours would be built and filled.

    Args:
        dim: channels of the input.
        num_heads: the paper's h.
        dim_key: the paper's k.
        dim_value: the paper's v.
        intra_depth: the paper's u.
        scope: extents of a local table, or None.
        size: grid of a global table, or None.
        pieces: our parameters.
        norms: our normalisation -> the name of theirs.
        value_order: for each of our value channels the index of theirs; None where the orders are the same.
        two_orders: the content term reads the values as (v, u), the position term as (u, v).
    """

    dim: int
    num_heads: int
    dim_key: int
    dim_value: int
    intra_depth: int
    scope: tuple[int, ...] | None
    size: tuple[int, ...] | None
    pieces: tuple[Piece, ...]
    norms: Mapping[str, str]
    value_order: Tensor | None = None
    two_orders: bool = False

    def translate(self, tensors: Tensors) -> dict[str, Tensor]:
        """Our names and values for a layer's tensors.

        Raises:
            UnfitError: if some of theirs have no place in ours.
        """
        ours = {piece.ours: piece(tensors) for piece in self.pieces}
        used = {name for piece in self.pieces for name in piece.theirs}
        for own, other in self.norms.items():
            for name, tensor in tensors.items():
                if name.startswith(other + "."):
                    used.add(name)
                    ours[own + name.removeprefix(other)] = self.reorder(tensor) if own == "norm_value" else tensor
        left = [name for name in tensors if name not in used]
        if left:
            raise UnfitError(f"our layer has no place for {', '.join(sorted(left))}")
        return ours

    def reorder(self, tensor: Tensor) -> Tensor:
        """A tensor over their value channels, in our order; others as they are."""
        if self.value_order is None or tensor.ndim != 1:
            return tensor
        return tensor[self.value_order.to(tensor.device)]


@dataclass(frozen=True)
class Source:
    """One implementation.

    Args:
        name: what users call it.
        marks: sets of names directly inside a layer; a layer has all names of at least one set.
        projections: names that a 1x1 convolution may have.
        layout: reads a layer's tensors; raises :class:`UnfitError` where ours has no equal.
        position_conv: name of the position convolution, where it is a module.
        pool: name of the pooling behind the layer, where it has one.
    """

    name: str
    marks: tuple[frozenset[str], ...]
    projections: tuple[str, ...]
    layout: Callable[[Tensors], Layout] = field(repr=False)
    position_conv: str | None = None
    pool: str | None = None


def describe_sources() -> str:
    """The names that layers are recognised by, for messages."""
    described = []
    for source in SOURCES.values():
        ways = [" + ".join(sorted(marks)) for marks in source.marks]
        described.append(f"{source.name} ({' or '.join(ways)})")
    return ", ".join(described)


def recognise(names: Collection[str], sources: Collection[Source]) -> Source | None:
    """The source whose marks are all among the names directly inside a module or a checkpoint's prefix."""
    present = set(names)
    return next((source for source in sources if any(marks <= present for marks in source.marks)), None)


def _get(tensors: Tensors, name: str, ndim: int) -> Tensor:
    if name not in tensors:
        raise UnfitError(f"it has no {name} (its module may be of another kind, or parametrised)")
    if tensors[name].ndim != ndim:
        raise UnfitError(f"{name} has {tensors[name].ndim} axes, {tuple(tensors[name].shape)}, not {ndim}")
    return tensors[name]


def _width(tensors: Tensors, norm: str, channels: str) -> int:
    """Channels of a normalisation: the only place that tells how many heads there are."""
    widths = {len(t) for name, t in tensors.items() if name.startswith(norm + ".") and t.ndim == 1}
    if len(widths) != 1:
        raise UnfitError(f"{norm} has no numbers by channel, which would tell the width of {channels}")
    return widths.pop()


def _odd(extents: tuple[int, ...], name: str) -> tuple[int, ...]:
    if any(extent % 2 == 0 for extent in extents):
        raise UnfitError(f"{name} has even extents {extents}, so that no entry is offset 0")
    return extents


def _grid(extents: tuple[int, ...], name: str) -> tuple[int, ...]:
    return tuple((extent + 1) // 2 for extent in _odd(extents, name))


def _exact(amount: int, by: int, what: str) -> int:
    if by < 1 or amount < 1 or amount % by:
        raise UnfitError(f"{what}: {amount} is no multiple of {by}")
    return amount // by


def _joined(tensors: Tensors, name: str, k: int, u: int) -> tuple[int, int, int]:
    """Channels of the input, heads and value depth of a joint projection."""
    weight = _get(tensors, f"{name}.weight", 4)
    queries = _width(tensors, "norm_q", "the queries")
    heads = _exact(queries, k, "channels of the queries by their depth k")
    values = weight.shape[0] - queries - k * u
    return weight.shape[1], heads, _exact(values, u, "channels of the values by u")


def _cat(*parts: Tensor) -> Tensor:
    return torch.cat(parts)


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _optional_bias(tensors: Tensors, ours: str, theirs: tuple[str, ...]) -> tuple[Piece, ...]:
    return (Piece(ours, theirs, _cat if len(theirs) > 1 else _same),) if all(n in tensors for n in theirs) else ()


_NORMS = {"norm_query": "norm_q", "norm_value": "norm_v"}


def _timm(tensors: Tensors) -> Layout:
    scope = size = None
    if "conv_lambda.weight" in tensors:
        table = _get(tensors, "conv_lambda.weight", 5)
        if table.shape[1] != 1 or table.shape[4] != 1:
            raise UnfitError(f"conv_lambda.weight is {tuple(table.shape)}, not (k, 1, r, r, 1)")
        k, scope = table.shape[0], _odd(tuple(table.shape[2:4]), "conv_lambda.weight")
        positions = Piece("positions", ("conv_lambda.weight",), lambda w: w[..., 0].transpose(0, 1))
    else:
        table = _get(tensors, "pos_emb", 3)
        k, size = table.shape[2], _grid(tuple(table.shape[:2]), "pos_emb")
        positions = Piece("positions", ("pos_emb",), lambda e: e.permute(2, 0, 1)[None])
    dim, heads, v = _joined(tensors, "qkv", k, 1)
    pieces = (
        Piece("qkv.weight", ("qkv.weight",), _same),
        positions,
        *_optional_bias(tensors, "qkv.bias", ("qkv.bias",)),
        *_optional_bias(tensors, "position_bias", ("conv_lambda.bias",)),
    )
    return Layout(dim, heads, k, v, 1, scope, size, pieces, _NORMS)


def _conv_table(tensors: Tensors, name: str) -> tuple[int, int, tuple[int, ...], Piece]:
    """Depth, intra-depth, scope and table of a position convolution (k, u, 1, r, r)."""
    table = _get(tensors, name, 5)
    if table.shape[2] != 1:
        raise UnfitError(f"{name} is {tuple(table.shape)}, not (k, u, 1, r, r)")
    piece = Piece("positions", (name,), lambda w: w[:, :, 0].transpose(0, 1))
    return table.shape[0], table.shape[1], _odd(tuple(table.shape[3:]), name), piece


def _d_li14(tensors: Tensors) -> Layout:
    k, u, scope, positions = _conv_table(tensors, "lambda_conv.weight")
    dim, heads, v = _joined(tensors, "conv_qkv", k, u)
    pieces = (
        Piece("qkv.weight", ("conv_qkv.weight",), _same),
        positions,
        *_optional_bias(tensors, "qkv.bias", ("conv_qkv.bias",)),
        *_optional_bias(tensors, "position_bias", ("lambda_conv.bias",)),
    )
    return Layout(dim, heads, k, v, u, scope, None, pieces, _NORMS)


def _lucidrains(tensors: Tensors) -> Layout:
    scope = size = None
    if "pos_conv.weight" in tensors:
        k, u, scope, positions = _conv_table(tensors, "pos_conv.weight")
    elif "rel_pos_emb" in tensors:
        table = _get(tensors, "rel_pos_emb", 4)
        k, u, size = table.shape[2], table.shape[3], _grid(tuple(table.shape[:2]), "rel_pos_emb")
        positions = Piece("positions", ("rel_pos_emb",), lambda e: e.permute(3, 2, 0, 1))
    else:
        raise UnfitError("it has neither pos_conv nor rel_pos_emb: before version 0.4 its positions were a dense table")
    names = ("to_q", "to_k", "to_v")
    query, key, value = (_get(tensors, f"{name}.weight", 4) for name in names)
    if key.shape[0] != k * u:
        raise UnfitError(f"to_k has {key.shape[0]} channels, not k · u = {k} · {u}")
    heads = _exact(query.shape[0], k, "channels of the queries by their depth k")
    v = _exact(value.shape[0], u, "channels of the values by u")
    pieces = (
        Piece("qkv.weight", tuple(f"{name}.weight" for name in names), _cat),
        positions,
        *_optional_bias(tensors, "qkv.bias", tuple(f"{name}.bias" for name in names)),
        *_optional_bias(tensors, "position_bias", ("pos_conv.bias",)),
    )
    return Layout(query.shape[1], heads, k, v, u, scope, size, pieces, _NORMS)


def _swapped(outer: int, inner: int) -> Tensor:
    """For each channel in order (inner, outer) its index in order (outer, inner)."""
    return torch.arange(outer * inner).reshape(outer, inner).T.flatten()


def _leaderj1001(tensors: Tensors) -> Layout:
    if any(name.startswith("keys.1.") for name in tensors):
        raise UnfitError("its keys pass a batch-norm (its versions before 16 November 2020), which ours do not")
    names = ("queries.0.weight", "keys.0.weight", "values.0.weight")
    query, key, value = (_get(tensors, name, 4) for name in names)
    if "embedding" not in tensors:
        raise UnfitError("its embedding is no parameter of its own")
    embedding = tensors["embedding"]
    scope: tuple[int, ...] = (1, 1)
    if embedding.ndim == 2:
        k, u = embedding.shape
        # Without a scope each query meets the values of its own position alone.
        positions = Piece("positions", ("embedding",), lambda e: e.T[..., None, None])
    else:
        k, u, scope, positions = _conv_table(tensors, "embedding")
    if key.shape[0] != k * u:
        raise UnfitError(f"keys.0 has {key.shape[0]} channels, not k · u = {k} · {u}")
    heads = _exact(query.shape[0], k, "channels of the queries by their depth k")
    v = _exact(value.shape[0], u, "channels of the values by u")
    key_order = _swapped(k, u)
    value_order = _swapped(v, u) if embedding.ndim == 2 and u > 1 else None

    def join(q: Tensor, key: Tensor, value: Tensor) -> Tensor:
        value = value if value_order is None else value[value_order.to(value.device)]
        return torch.cat([q, key[key_order.to(key.device)], value])

    biases = tuple(name.replace("weight", "bias") for name in names)
    pieces = (
        Piece("qkv.weight", names, join),
        positions,
        *((Piece("qkv.bias", biases, join),) if all(name in tensors for name in biases) else ()),
    )
    norms = {"norm_query": "queries.1", "norm_value": "values.1"}
    two_orders = u > 1 and embedding.ndim == 5
    return Layout(query.shape[1], heads, k, v, u, scope, None, pieces, norms, value_order, two_orders)


SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Source(
            "timm",
            (frozenset({"qkv", "conv_lambda"}), frozenset({"qkv", "norm_q", "norm_v", "pos_emb"})),
            ("qkv",),
            _timm,
            position_conv="conv_lambda",
            pool="pool",
        ),
        Source(
            "lucidrains",
            tuple(frozenset({"to_q", "to_k", "to_v", *own}) for own in (("pos_conv",), ("rel_pos_emb",), ("norm_v",))),
            ("to_q", "to_k", "to_v"),
            _lucidrains,
            position_conv="pos_conv",
        ),
        Source(
            "d-li14",
            (frozenset({"conv_qkv", "lambda_conv"}),),
            ("conv_qkv",),
            _d_li14,
            position_conv="lambda_conv",
            pool="avgpool",
        ),
        Source(
            "leaderj1001",
            (frozenset({"queries", "keys", "values", "embedding"}),),
            ("queries.0", "keys.0", "values.0"),
            _leaderj1001,
        ),
    )
}
