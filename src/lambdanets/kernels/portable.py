"""The op in operations that every exporter and runtime knows, for models that leave Python.

The position lambdas of a grid are a convolution of the values with the table of offsets, zero-padded, whatever the
size of the grid (paper, section 3.2: the lambda convolution); the query is applied to them afterwards. The weights of
that convolution do not depend on the grid, so an exported file serves every batch size and image size. It costs what
lambda first costs, with the offsets that a small grid does not have multiplied by zeros, and all position lambdas are
kept: b · n · k · v. Gradients are PyTorch's own, second derivatives too.

Axes: b batch, h heads, n queries, k query depth, v value depth, u intra-depth.
"""

from __future__ import annotations

from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor

from lambdanets.kernels.call import Call
from lambdanets.kernels.reference import reference
from lambdanets.kernels.terms.content import content_term, normalise
from lambdanets.positions import GridPositions, lexicographic_past

__all__ = ["portable"]

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def portable(call: Call) -> Tensor:
    """Content and position term of a call whose mask is applied: (b, h, n, v).

    A causal content term, and positions that are not on a grid, are the reference's, which is plain too.
    """
    query, key, value, positions = call.query, call.key, call.value, call.positions
    call = replace(call, mask=None)
    if key is None:
        content = None
    elif call.causal:
        content = reference(replace(call, positions=None))
    else:
        content = content_term(query, normalise(key), value)
    if positions is None:
        return content  # type: ignore[return-value]
    if isinstance(positions, GridPositions):
        term = _grid_term(query, value, positions, call.causal)
    else:
        term = reference(replace(call, key=None))
    return term if content is None else content + term


def _grid_term(query: Tensor, value: Tensor, positions: GridPositions, causal: bool) -> Tensor:
    u, k, *extents = positions.table.shape
    centre = [extent // 2 for extent in extents]
    filters_uk = positions.table.to(query.dtype)
    if causal:
        filters_uk = filters_uk * lexicographic_past(extents, centre, filters_uk.device)
    b, _, n, v = value.shape
    # The value depth is one more batch axis, the offsets are the filter's taps: out[n] = Σ_o table[o] V[n + o].
    images_bvu = value.permute(0, 3, 1, 2).reshape(b * v, u, *positions.grid)
    lambda_bvkn = _CONV[len(extents)](images_bvu, filters_uk.transpose(0, 1), padding=centre).reshape(b, v, k, n)
    return (query.transpose(1, 2) @ lambda_bvkn.permute(0, 3, 2, 1)).transpose(1, 2)
