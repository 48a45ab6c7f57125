"""The content term in causal order: query n sees the context positions m <= n, the softmax of the keys included.

With ℓ_n = log Σ_{m <= n} exp K_m (for each of the k·u channels) the normalised keys that query n sees are
exp(K_m - ℓ_n), never above 1, so that keys of any size neither overflow nor hide those before them:

    y_n = Σ_{m <= n} (q_n · exp(K_m - ℓ_n)) V_m.

The sequence is cut into chunks. Within a chunk the sum is done as it stands. Of everything before chunk t only the
lambda at its border is carried along, where ℓ is ℓ_t; it fades from border to border:

    λ_{t+1} = exp(ℓ_t - ℓ_{t+1}) λ_t + Σ_{m in t} exp(K_m - ℓ_{t+1}) V_m,    y_n += q_n · (exp(ℓ_t - ℓ_n) λ_t).

Memory beyond the inputs: one segment of chunks at a time. Backward runs the same scan from the other end.

Axes in names: b batch, h heads, u intra-depth, t chunks, n query and m context place in a chunk, k query depth,
v value depth, i and j borders of chunks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, einsum

from lambdanets.kernels.autograd.library import Op
from lambdanets.kernels.slices import slices

__all__ = ["CAUSAL_CONTENT_OP", "causal_content_term"]

CHUNK = 16
CHUNKS_PER_SEGMENT = 64


@dataclass(frozen=True)
class _LogSum:
    """ℓ as the running maximum and log Σ exp(K - maximum): in one number, large keys would take the sum's digits."""

    largest: Tensor
    rest: Tensor

    def __getitem__(self, index: Any) -> _LogSum:
        return _LogSum(self.largest[index], self.rest[index])

    def exp_minus(self, other: _LogSum) -> Tensor:
        return torch.exp((self.largest - other.largest) + (self.rest - other.rest))


def _log_sums(key_butmk: Tensor) -> _LogSum:
    """ℓ at every position; where all keys so far are -inf, a number beside which their weights are 0.

    Only differences of keys are summed, place after place in all chunks at once, then over the borders of the chunks by
    doubling: keys of any size keep all digits.
    """
    key = key_butmk.clamp(min=torch.finfo(key_butmk.dtype).min)
    largest, total = key.cummax(dim=3).values, (key_butmk > float("-inf")).to(key.dtype)
    for place in range(1, CHUNK):
        top, before = largest[:, :, :, place], largest[:, :, :, place - 1]
        weight = torch.exp(key[:, :, :, place] - top) * total[:, :, :, place]
        total[:, :, :, place] = weight + torch.exp(before - top) * total[:, :, :, place - 1]
    # Sums over all chunks up to each, then of those before each.
    before, count, step = largest[:, :, :, -1], total[:, :, :, -1], 1
    while step < before.shape[2]:
        top = torch.maximum(before[:, :, step:], before[:, :, :-step])
        joined = count[:, :, step:] * torch.exp(before[:, :, step:] - top)
        joined += count[:, :, :-step] * torch.exp(before[:, :, :-step] - top)
        before, count = torch.cat([before[:, :, :step], top], 2), torch.cat([count[:, :, :step], joined], 2)
        step *= 2
    hidden = torch.finfo(key.dtype).min
    before = F.pad(before[:, :, :-1], [0, 0, 1, 0], value=hidden)[:, :, :, None]
    count = F.pad(count[:, :, :-1], [0, 0, 1, 0])[:, :, :, None]
    top = torch.maximum(largest, before)
    total = total * torch.exp(largest - top) + count * torch.exp(before - top)
    return _LogSum(top, torch.where(total > 0, total, 1.0).log())


class _Scan:
    """A call cut into chunks, filled up with positions that no query sees, and the weights between them."""

    def __init__(self, query: Tensor, key: Tensor, value: Tensor):
        self.positions = query.shape[2]
        hidden = torch.finfo(key.dtype).min
        self.query_bhtnk, self.value_butmv = self.cut(query), self.cut(value)
        self.key_butmk = self.cut(key, hidden)
        self.log_sum = _log_sums(self.key_butmk)
        # The border before everything: nothing is carried over it, so its ℓ has no influence.
        self.border = _LogSum(
            F.pad(self.log_sum.largest[..., -1, :], [0, 0, 1, 0], value=hidden),
            F.pad(self.log_sum.rest[..., -1, :], [0, 0, 1, 0]),
        )
        self.triangle = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=key.device).tril()

    def cut(self, rows: Tensor, fill: float = 0.0) -> Tensor:
        return F.pad(rows, [0, 0, 0, -self.positions % CHUNK], value=fill).unflatten(2, (-1, CHUNK))

    def join(self, chunks: Tensor) -> Tensor:
        return chunks.flatten(2, 3)[:, :, : self.positions]

    def segments(self) -> list[slice]:
        """Chunks that go through together."""
        return list(slices(self.key_butmk.shape[2], CHUNKS_PER_SEGMENT))

    def within(self, chunks: slice) -> Tensor:
        """exp(K_m - ℓ_n) for m <= n in a chunk, (b, u, t, n, m, k)."""
        log_sum = self.log_sum[:, :, chunks, :, None]
        difference = (self.key_butmk[:, :, chunks, None] - log_sum.largest) - log_sum.rest
        # Hidden before the exponential: what follows n may be as large as it likes.
        return torch.exp(difference.masked_fill_(~self.triangle[..., None], float("-inf")))

    def from_border(self, chunks: slice) -> Tensor:
        """exp(ℓ_t - ℓ_n), (b, u, t, n, k)."""
        return self.border[:, :, chunks, None].exp_minus(self.log_sum[:, :, chunks])

    def to_border(self, chunks: slice) -> Tensor:
        """exp(K_m - ℓ_{t+1}), (b, u, t, m, k)."""
        border = self.border[:, :, chunks.start + 1 : chunks.stop + 1, None]
        return torch.exp((self.key_butmk[:, :, chunks] - border.largest) - border.rest)

    def between_borders(self, chunks: slice) -> Tensor:
        """exp(ℓ_i - ℓ_j) for i <= j among the segment's borders, (b, u, j, i, k)."""
        border = self.border[:, :, chunks.start : chunks.stop + 1]
        size = chunks.stop - chunks.start + 1
        later = torch.ones(size, size, dtype=torch.bool, device=self.triangle.device).tril()
        weight = border[:, :, None].exp_minus(border[:, :, :, None])
        return weight.masked_fill_(~later[..., None], 0)

    def lambdas(self) -> Iterator[tuple[slice, Tensor]]:
        """Segment by segment the lambdas at its borders, (b, u, t + 1, k, v)."""
        b, u, _, _, k = self.key_butmk.shape
        carried = self.value_butmv.new_zeros(b, u, 1, k, self.value_butmv.shape[-1])
        for chunks in self.segments():
            added = einsum("butmk,butmv->butkv", self.to_border(chunks), self.value_butmv[:, :, chunks])
            sources = torch.cat([carried, added], dim=2)
            at_borders = einsum("bujik,buikv->bujkv", self.between_borders(chunks), sources)
            yield chunks, at_borders
            carried = at_borders[:, :, -1:]


def _forward(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    scan = _Scan(query, key, value)
    outs = []
    for chunks, lambda_bujkv in scan.lambdas():
        q, v = scan.query_bhtnk[:, :, chunks], scan.value_butmv[:, :, chunks]
        scores = einsum("bhtnk,butnmk->buhtnm", q, scan.within(chunks))
        out = einsum("buhtnm,butmv->bhtnv", scores, v)
        faded = einsum("bhtnk,butnk->buhtnk", q, scan.from_border(chunks))
        outs.append(out + einsum("buhtnk,butkv->bhtnv", faded, lambda_bujkv[:, :, :-1]))
    return scan.join(torch.cat(outs, dim=2))


def _backward(grad: Tensor, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    scan = _Scan(query, key, value)
    grad_bhtnv = scan.cut(grad)
    # The lambdas at the start of each segment are kept, the others made once more.
    starts = [(chunks, at_borders[:, :, :1].clone()) for chunks, at_borders in scan.lambdas()]
    u, k, v = value.shape[1], query.shape[3], value.shape[3]
    carried = value.new_zeros(value.shape[0], u, 1, k, v + 1)
    parts = []
    for chunks, start in reversed(starts):
        *part, carried = _segment_backward(scan, grad_bhtnv[:, :, chunks], chunks, start, carried)
        parts.append(part)
    query_grad, key_grad, value_grad = (
        scan.join(torch.cat(list(reversed(pieces)), dim=2)) for pieces in zip(*parts, strict=True)
    )
    return query_grad, key_grad, value_grad


def _segment_backward(
    scan: _Scan, g: Tensor, chunks: slice, start: Tensor, carried: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of a segment's queries, keys and values, and the sums that it hands to the segment before it.

    The sums that run backwards over the borders are Σ_n exp(ℓ_j - ℓ_n) [dλ_n, dλ_n · λ_n] over the queries
    behind border j: (b, u, j, k, v + 1). The derivative of exp(K_m - ℓ_n) needs both.
    """
    q, v = scan.query_bhtnk[:, :, chunks], scan.value_butmv[:, :, chunks]
    within, from_border, to_border = scan.within(chunks), scan.from_border(chunks), scan.to_border(chunks)
    between = scan.between_borders(chunks)
    added = einsum("butmk,butmv->butkv", to_border, v)
    before = einsum("bujik,buikv->bujkv", between, torch.cat([start, added], 2))[:, :, :-1]

    # Queries: g · λ_n, for each u by itself since each has its own softmax.
    products = einsum("bhtnv,butmv->buhtnm", g, v)
    query_grad = einsum("buhtnm,butnmk->buhtnk", products, within)
    query_grad += einsum("bhtnv,butkv->buhtnk", g, before) * from_border[:, :, None]
    own = einsum("bhtnk,buhtnk->butnk", q, query_grad)  # dλ_n · λ_n

    # Backwards over the borders.
    faded = einsum("bhtnk,butnk->buhtnk", q, from_border)
    arriving = torch.cat([einsum("buhtnk,bhtnv->butkv", faded, g), (from_border * own).sum(3)[..., None]], dim=-1)
    at_borders = einsum("bujik,bujkv->buikv", between, torch.cat([arriving, carried], dim=2))
    behind, behind_own = at_borders[:, :, 1:, :, :-1], at_borders[:, :, 1:, :, -1]

    scores = einsum("bhtnk,butnmk->buhtnm", q, within)
    value_grad = einsum("buhtnm,bhtnv->butmv", scores, g) + einsum("butmk,butkv->butmv", to_border, behind)
    inner = einsum("bhtnk,buhtnm->butnmk", q, products) - own[:, :, :, :, None]
    outer = einsum("butkv,butmv->butmk", behind, v) - behind_own[:, :, :, None]
    key_grad = (within * inner).sum(3) + to_border * outer
    return query_grad.sum(1), key_grad, value_grad, at_borders[:, :, :1]


CAUSAL_CONTENT_OP = Op(
    "causal_content_term",
    _forward,
    _backward,
    lambda query, key, value: (*query.shape[:3], value.shape[3]),
    tensors=("query", "key", "value"),
    multilinear=False,
)


def causal_content_term(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Content term of queries that see the context positions up to their own.

    Args:
        query: (b, h, n, k).
        key: (b, u, n, k), before the softmax; the dtype's minimum where masked. A key of -inf has no weight; NaN and
            inf are for :func:`lambdanets.kernels.terms.finite.set_apart`.
        value: (b, u, n, v), finite; zero where masked.

    Returns:
        (b, h, n, v), contiguous.
    """
    return CAUSAL_CONTENT_OP(query, key, value)
