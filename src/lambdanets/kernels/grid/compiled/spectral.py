"""Spectral, compiled: λ_k = F⁻¹(Σ_u T̂_uk·V̂_u) for many channels side by side, applied to the queries at once.

``cpp/spectral.cpp`` has the algorithm; ``docs/compiled.md`` compares its work with that of matrix products.
"""

from __future__ import annotations

import functools
import math

from lambdanets.kernels.grid.compiled import binding
from lambdanets.kernels.grid.contract import GridKernel, GridProblem, Work

__all__ = ["KERNEL"]

# Points of a transform above which its two buffers, with the vectors of AVX2, do not fit a second-level cache of
# 512 KiB; those of AVX-512 are twice as large.
LONG = 4096
# Cost of a pass over one point by its factor, in the order in which a length is split: ``factor_cost`` of fft.h.
FACTOR_COSTS = {7: 18, 5: 14, 3: 10, 4: 11, 2: 7}


def work(problem: GridProblem, backward: bool) -> Work:
    """Operations of transforms as multiply-adds; elements of spectra, of λ and of outputs; calls."""
    lengths = [
        good_length(size + max(origin, extent - 1 - origin))
        for size, extent, origin in zip(problem.grid, problem.extents, problem.origin, strict=True)
    ]
    height, width = lengths if len(lengths) == 2 else (1, lengths[0])
    rows = problem.grid[0] if len(lengths) == 2 else 1
    values = problem.batch * padded_channels(problem.dim_value)
    transform = width * _passes(height) * height + rows * _passes(width) * width
    pointwise = height * width * problem.intra_depth + problem.num_positions * problem.heads
    tables = problem.intra_depth * problem.dim_key * height * width * (_passes(height) + _passes(width))
    times = 2 if backward else 1
    return Work(
        values * (problem.dim_key * times + problem.intra_depth) * transform + times * tables,
        values * problem.dim_key * pointwise * times,
        3 if backward else 2,
    )


def padded_channels(dim_value: int) -> int:
    """Channels of whole points, of two vectors each: AVX2's at AVX-512 too where these hold them (``kernel_at``)."""
    channels = 2 * binding.lanes()
    if dim_value <= 16:
        channels = min(channels, 16)
    return -(-dim_value // channels) * channels


@functools.lru_cache(maxsize=4096)
def good_length(least: int) -> int:
    """The length >= ``least`` that is the fastest to transform: ``good_length`` of ``cpp/fft.h``."""
    best, best_cost, length = 1, math.inf, least
    while length > 1 and length * FACTOR_COSTS[2] < best_cost:
        cost = _cost(length)
        if cost < best_cost:
            best, best_cost = length, cost
        length += 1
    return best


def _cost(length: int) -> float:
    total, rest = 0, length
    for factor, cost in FACTOR_COSTS.items():
        while rest % factor == 0:
            total, rest = total + length * cost, rest // factor
    return total if rest == 1 else math.inf


def _passes(length: int) -> float:
    """Operations for one point of a transform; one that does not fit the nearest caches pays for its passes."""
    if length == 1:
        return 0
    return (3 + math.log2(length)) * (2 if length > LONG else 1)


KERNEL = GridKernel(
    "spectral_compiled",
    functools.partial(binding.forward, binding.SPECTRAL),
    functools.partial(binding.backward, binding.SPECTRAL),
    binding.check,
    work,
    adds_content=True,
    spreads_errors=True,
    mixes_channels=True,
    spreads_nonfinite_entries=True,
    device="cpu",
    compiled=True,
)
