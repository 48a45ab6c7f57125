"""The paper's equations in plain PyTorch: the one oracle that every other kernel is held against.

Nothing here is fast or lean; it is meant to be read beside section 3 of the paper. Axes in names:
b batch, h heads, n queries, m context positions, k query depth, v value depth, u intra-depth.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lambdanets.kernels.call import Call
from lambdanets.positions import EdgePositions, GridPositions

__all__ = ["reference"]


def reference(call: Call) -> Tensor:
    """y_n = (λc + λp_n)ᵀ q_n, computed in that order, with every intermediate kept: (b, h, n, v)."""
    query_bhnk, key_bumk, value_bumv, mask_bm = call.query, call.key, call.value, call.mask
    positions, causal = call.positions, call.causal
    b, _, n, _ = query_bhnk.shape
    m = value_bumv.shape[2]

    # Which context positions a query sees: masked contexts are left out of both sums, the softmax included.
    visible_bnm = torch.ones(b, n, m, dtype=torch.bool, device=query_bhnk.device)
    if mask_bm is not None:
        visible_bnm = visible_bnm & mask_bm[:, None, :]
    if causal:
        visible_bnm = visible_bnm & torch.ones(n, m, dtype=torch.bool, device=query_bhnk.device).tril()

    values_bumv = value_bumv
    if mask_bm is not None:
        values_bumv = torch.where(mask_bm[:, None, :, None], value_bumv, 0.0)

    lambda_bnkv = query_bhnk.new_zeros(b, n, query_bhnk.shape[3], value_bumv.shape[3])
    if key_bumk is not None:
        # λc = Σ_mu K̄_mu V_muᵀ. It is shared by all queries, unless each sees another part of the context.
        keys_bunmk = _normalised_keys(key_bumk, visible_bnm)
        lambda_bnkv = lambda_bnkv + torch.einsum("bunmk,bumv->bnkv", keys_bunmk, values_bumv)

    if positions is not None:
        # λp_n = Σ_mu E_nmu V_muᵀ.
        # First in the dtype of the sums: an entry that stands in E more than once adds up in its gradient.
        name = "table" if isinstance(positions, GridPositions) else "embedding"
        positions = replace(positions, **{name: getattr(positions, name).to(value_bumv.dtype)})
        dense_nmku = positions.dense(n, m) if isinstance(positions, EdgePositions) else positions.dense()
        if causal:
            past_nm = torch.ones(n, m, dtype=torch.bool, device=dense_nmku.device).tril()
            dense_nmku = dense_nmku.masked_fill(~past_nm[:, :, None, None], 0.0)
        lambda_bnkv = lambda_bnkv + torch.einsum("nmku,bumv->bnkv", dense_nmku, values_bumv)

    # y_n^h = (λc + λp_n)ᵀ q_n^h: the same lambda for every head.
    return torch.einsum("bhnk,bnkv->bhnv", query_bhnk, lambda_bnkv)


def _normalised_keys(key_bumk: Tensor, visible_bnm: Tensor) -> Tensor:
    """K̄, (b, u, n, m, k): softmax over the visible context positions, for each of the k·u channels.

    Hidden positions may hold anything, NaN too, so they are replaced before they are used; a query that sees nothing
    gets zeros.
    """
    score_bunmk = torch.where(visible_bnm[:, None, :, :, None], key_bumk[:, :, None], float("-inf"))
    if score_bunmk.shape[3] == 0:
        return score_bunmk
    largest_bun1k = score_bunmk.detach().amax(dim=3, keepdim=True)
    largest_bun1k = torch.where(largest_bun1k > float("-inf"), largest_bun1k, 0.0)
    weight_bunmk = torch.exp(score_bunmk - largest_bun1k)
    total_bun1k = weight_bunmk.sum(dim=3, keepdim=True)
    return weight_bunmk / torch.where(total_bun1k > 0, total_bun1k, 1.0)
