"""The content term in causal order: query n sees the context positions m <= n, the softmax of the keys included.

With ℓ_n = log Σ_{m <= n} exp K_m (for each of the k·u channels) the normalised keys that query n sees are
exp(K_m - ℓ_n), never above 1, so that keys of any size neither overflow nor hide those before them:

    y_n = Σ_{m <= n} (q_n · exp(K_m - ℓ_n)) V_m.

The sequence is cut into chunks. Within a chunk the sum is done as it stands. Of everything before chunk t only the
lambda at its border is carried along, where ℓ is ℓ_t; from border to border it is multiplied by a number of at most 1:

    λ_{t+1} = exp(ℓ_t - ℓ_{t+1}) λ_t + Σ_{m in t} exp(K_m - ℓ_{t+1}) V_m,    y_n += q_n · (exp(ℓ_t - ℓ_n) λ_t).

**Backward**, with w_nm = exp(K_m - ℓ_n) for m <= n, g_n the gradient of y_n, and ∂w_nm / ∂K_j = w_nm ([m = j] - w_nj);
all products over k are element by element, and heads are summed wherever the left side has none:

    dq_n = Σ_u p_nu,   p_nu = Σ_{m <= n} w_nm (g_n · V_m)                       p (h, k)
    dV_m = Σ_{n >= m} (q_n · w_nm) g_n                                           dV (v)
    dK_m = Σ_{n >= m} w_nm (q_n (g_n · V_m) - δ_n),    δ_n = Σ_h q_n p_n         dK, δ (k)

Queries n of m's own chunk are summed as they stand. Those after border t + 1, the end of m's chunk, have
w_nm = exp(K_m - ℓ_{t+1}) exp(ℓ_{t+1} - ℓ_n), so that two sums at each border stand for all of them:

    D_j = Σ_{n after j} exp(ℓ_j - ℓ_n) Σ_h q_n g_nᵀ,    O_j = Σ_{n after j} exp(ℓ_j - ℓ_n) δ_n       D (k, v), O (k)

    dV_m += exp(K_m - ℓ_{t+1}) · D_{t+1},    dK_m += exp(K_m - ℓ_{t+1}) (D_{t+1} V_m - O_{t+1}).

They run from the last border to the first as λ does from the first to the last.

Memory beyond the inputs: one segment of chunks at a time.

Axes in names: b batch, h heads, u intra-depth, t chunks, n query and m context place in a chunk, k query depth,
v value depth, w value depth and one more (D and O side by side), i and j borders of chunks.
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

__all__ = ["CAUSAL_CONTENT_OP"]

CHUNK = 16
CHUNKS_PER_SEGMENT = 64


@dataclass(frozen=True)
class _LogSum:
    """ℓ as the running maximum M and log S with S = Σ exp(K - M).

    As the one number M + log S, a large M would leave no digits for log S.
    """

    largest: Tensor
    log_total: Tensor

    def __getitem__(self, index: Any) -> _LogSum:
        return _LogSum(self.largest[index], self.log_total[index])

    def exp_minus(self, other: _LogSum) -> Tensor:
        """exp(ℓ - other)."""
        return torch.exp((self.largest - other.largest) + (self.log_total - other.log_total))


def _log_sums(key_butmk: Tensor) -> _LogSum:
    """ℓ at every position; where all keys so far are -inf, a number beside which their weights are 0.

    With M the maximum of some keys and S = Σ exp(K - M), two neighbouring ranges of keys join to

        (M, S) ⊕ (M', S') = (T, S exp(M - T) + S' exp(M' - T)),    T = max(M, M'),

    where only differences of keys enter, so that keys of any size keep all digits. Three steps:

    1. within each chunk, place after place: (M_n, S_n) = (M_{n-1}, S_{n-1}) ⊕ (K_n, 1);
    2. over the chunks by doubling, from the pair (M, S) of each chunk t: with step 1, 2, 4, ... each pair becomes
       (M, S)_{t - step} ⊕ (M, S)_t, after which it stands for the chunks t - 2 step + 1 .. t, at last for 0 .. t;
    3. each position joins that of all chunks before its own.
    """
    least = torch.finfo(key_butmk.dtype).min
    key = key_butmk.clamp(min=least)
    largest, total = key.cummax(dim=3).values, (key_butmk > float("-inf")).to(key.dtype)
    for place in range(1, CHUNK):
        top, before = largest[:, :, :, place], largest[:, :, :, place - 1]
        weight = torch.exp(key[:, :, :, place] - top) * total[:, :, :, place]
        total[:, :, :, place] = weight + torch.exp(before - top) * total[:, :, :, place - 1]

    largest_butk, total_butk, step = largest[:, :, :, -1], total[:, :, :, -1], 1
    while step < largest_butk.shape[2]:
        earlier, later = largest_butk[:, :, :-step], largest_butk[:, :, step:]
        top = torch.maximum(later, earlier)
        joined = total_butk[:, :, step:] * torch.exp(later - top)
        joined += total_butk[:, :, :-step] * torch.exp(earlier - top)
        largest_butk = torch.cat([largest_butk[:, :, :step], top], 2)
        total_butk = torch.cat([total_butk[:, :, :step], joined], 2)
        step *= 2

    # Shifted by one chunk: the sums of all chunks before each, and nothing before the first.
    largest_but1k = F.pad(largest_butk[:, :, :-1], [0, 0, 1, 0], value=least)[:, :, :, None]
    total_but1k = F.pad(total_butk[:, :, :-1], [0, 0, 1, 0])[:, :, :, None]
    top = torch.maximum(largest, largest_but1k)
    total = total * torch.exp(largest - top) + total_but1k * torch.exp(largest_but1k - top)
    return _LogSum(top, torch.where(total > 0, total, 1.0).log())


class _Scan:
    """A call cut into chunks, filled up with positions that no query sees, and the weights between them."""

    def __init__(self, query: Tensor, key: Tensor, value: Tensor):
        self.num_positions = query.shape[2]
        least = torch.finfo(key.dtype).min
        self.query_bhtnk, self.value_butmv = self.cut(query), self.cut(value)
        self.key_butmk = self.cut(key, least)
        self.log_sum = _log_sums(self.key_butmk)
        # The first border has no keys before it, and nothing is carried over it: its ℓ may be any number.
        self.border = _LogSum(
            F.pad(self.log_sum.largest[..., -1, :], [0, 0, 1, 0], value=least),
            F.pad(self.log_sum.log_total[..., -1, :], [0, 0, 1, 0]),
        )
        self.triangle = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=key.device).tril()

    def cut(self, rows: Tensor, fill: float = 0.0) -> Tensor:
        """(b, c, positions, depth) -> (b, c, t, places, depth), the last chunk filled up."""
        return F.pad(rows, [0, 0, 0, -self.num_positions % CHUNK], value=fill).unflatten(2, (-1, CHUNK))

    def join(self, chunks: Tensor) -> Tensor:
        """Undo :meth:`cut`."""
        return chunks.flatten(2, 3)[:, :, : self.num_positions]

    def segments(self) -> list[slice]:
        """Chunks that are computed together."""
        return list(slices(self.key_butmk.shape[2], CHUNKS_PER_SEGMENT))

    def within(self, chunks: slice) -> Tensor:
        """exp(K_m - ℓ_n) for m <= n in a chunk, (b, u, t, n, m, k)."""
        log_sum = self.log_sum[:, :, chunks, :, None]
        difference = (self.key_butmk[:, :, chunks, None] - log_sum.largest) - log_sum.log_total
        # Before the exponential, which later keys would make infinite.
        return torch.exp(difference.masked_fill_(~self.triangle[..., None], float("-inf")))

    def from_border(self, chunks: slice) -> Tensor:
        """exp(ℓ_t - ℓ_n), (b, u, t, n, k)."""
        return self.border[:, :, chunks, None].exp_minus(self.log_sum[:, :, chunks])

    def to_border(self, chunks: slice) -> Tensor:
        """exp(K_m - ℓ_{t+1}), (b, u, t, m, k)."""
        border = self.border[:, :, chunks.start + 1 : chunks.stop + 1, None]
        return torch.exp((self.key_butmk[:, :, chunks] - border.largest) - border.log_total)

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
            at_borders = lambdas_at_borders(self.between_borders(chunks), carried, added)
            yield chunks, at_borders
            carried = at_borders[:, :, -1:]


def lambdas_at_borders(between_bujik: Tensor, carried_bu1kv: Tensor, added_butkv: Tensor) -> Tensor:
    """The lambdas at the borders of a segment, (b, u, t + 1, k, v).

    Args:
        between_bujik: the weights from border to border.
        carried_bu1kv: the lambda at the first border.
        added_butkv: what each chunk adds at the border after it.
    """
    return einsum("bujik,buikv->bujkv", between_bujik, torch.cat([carried_bu1kv, added_butkv], dim=2))


def _forward(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    scan = _Scan(query, key, value)
    outs = []
    for chunks, lambda_bujkv in scan.lambdas():
        query_bhtnk, value_butmv = scan.query_bhtnk[:, :, chunks], scan.value_butmv[:, :, chunks]
        scores_buhtnm = einsum("bhtnk,butnmk->buhtnm", query_bhtnk, scan.within(chunks))
        out_bhtnv = einsum("buhtnm,butmv->bhtnv", scores_buhtnm, value_butmv)
        query_buhtnk = einsum("bhtnk,butnk->buhtnk", query_bhtnk, scan.from_border(chunks))
        outs.append(out_bhtnv + einsum("buhtnk,butkv->bhtnv", query_buhtnk, lambda_bujkv[:, :, :-1]))
    return scan.join(torch.cat(outs, dim=2))


def _backward(grad: Tensor, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    scan = _Scan(query, key, value)
    grad_bhtnv = scan.cut(grad)
    # The lambdas at the start of each segment are kept, the others made once more.
    starts = [(chunks, lambda_bujkv[:, :, :1].clone()) for chunks, lambda_bujkv in scan.lambdas()]
    b, u, _, v = value.shape
    sums_bu1kw = value.new_zeros(b, u, 1, query.shape[3], v + 1)  # after the last border there is nothing
    parts = []
    for chunks, lambda_bu1kv in reversed(starts):
        *part, sums_bu1kw = _segment_backward(scan, grad_bhtnv[:, :, chunks], chunks, lambda_bu1kv, sums_bu1kw)
        parts.append(part)
    query_grad, key_grad, value_grad = (
        scan.join(torch.cat(list(reversed(pieces)), dim=2)) for pieces in zip(*parts, strict=True)
    )
    return query_grad, key_grad, value_grad


def _segment_backward(
    scan: _Scan, grad_bhtnv: Tensor, chunks: slice, lambda_bu1kv: Tensor, sums_bu1kw: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of a segment's queries, keys and values; the letters are those of the module's equations.

    Args:
        scan: the call.
        grad_bhtnv: g of the segment.
        chunks: of the segment.
        lambda_bu1kv: λ at its first border.
        sums_bu1kw: D and O, side by side, at its last border.

    Returns:
        dq (b, h, t, n, k), dK (b, u, t, m, k), dV (b, u, t, m, v), and D and O at the segment's first border.
    """
    query_bhtnk, value_butmv = scan.query_bhtnk[:, :, chunks], scan.value_butmv[:, :, chunks]
    w_butnmk, from_border_butnk, to_border_butmk = (
        scan.within(chunks),
        scan.from_border(chunks),
        scan.to_border(chunks),
    )
    between_bujik = scan.between_borders(chunks)
    added_butkv = einsum("butmk,butmv->butkv", to_border_butmk, value_butmv)
    lambda_bujkv = lambdas_at_borders(between_bujik, lambda_bu1kv, added_butkv)[:, :, :-1]

    # p: in the chunk w_nm (g_n · V_m), from before it λ g_n; for each u by itself, since each has its own softmax.
    products_buhtnm = einsum("bhtnv,butmv->buhtnm", grad_bhtnv, value_butmv)
    p_buhtnk = einsum("buhtnm,butnmk->buhtnk", products_buhtnm, w_butnmk)
    p_buhtnk += einsum("bhtnv,butkv->buhtnk", grad_bhtnv, lambda_bujkv) * from_border_butnk[:, :, None]
    delta_butnk = einsum("bhtnk,buhtnk->butnk", query_bhtnk, p_buhtnk)

    # D and O: what each chunk's queries add at the border before it, then all of that after each border.
    query_buhtnk = einsum("bhtnk,butnk->buhtnk", query_bhtnk, from_border_butnk)
    added_d_butkv = einsum("buhtnk,bhtnv->butkv", query_buhtnk, grad_bhtnv)
    added_o_butk = (from_border_butnk * delta_butnk).sum(3)
    added_butkw = torch.cat([added_d_butkv, added_o_butk[..., None]], dim=-1)
    sums_buikw = einsum("bujik,bujkw->buikw", between_bujik, torch.cat([added_butkw, sums_bu1kw], dim=2))
    d_butkv, o_butk = sums_buikw[:, :, 1:, :, :-1], sums_buikw[:, :, 1:, :, -1]  # at the end of each chunk

    scores_buhtnm = einsum("bhtnk,butnmk->buhtnm", query_bhtnk, w_butnmk)
    value_grad_butmv = einsum("buhtnm,bhtnv->butmv", scores_buhtnm, grad_bhtnv)
    value_grad_butmv = value_grad_butmv + einsum("butmk,butkv->butmv", to_border_butmk, d_butkv)

    within_butnmk = einsum("bhtnk,buhtnm->butnmk", query_bhtnk, products_buhtnm) - delta_butnk[:, :, :, :, None]
    later_butmk = einsum("butkv,butmv->butmk", d_butkv, value_butmv) - o_butk[:, :, :, None]
    key_grad_butmk = (w_butnmk * within_butnmk).sum(3) + to_border_butmk * later_butmk
    return p_buhtnk.sum(1), key_grad_butmk, value_grad_butmv, sums_buikw[:, :, :1]


# y (b, h, n, v), contiguous, of queries (b, h, n, k), keys (b, u, n, k) before their softmax and values (b, u, n, v). A
# key of -inf, as where masked, has no weight; NaN and inf are for ``terms/finite.py``.
CAUSAL_CONTENT_OP = Op(
    "causal_content_term",
    _forward,
    _backward,
    tensors=("query", "key", "value"),
    nonlinear=(
        "the content term in causal order has first derivatives in reverse mode only; kernel='reference' and "
        "kernel='portable' have all of them"
    ),
)
