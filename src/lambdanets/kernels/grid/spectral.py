"""Spectral: E depends on m - n, so λp is a correlation of V with the table, done with FFTs.

    λ̂p[k] = Σ_u conj(table^[u, k]) · V̂[u],      y_n = Σ_k q_n[k] · λp_n[k].

A few k at a time are transformed back, applied to the queries and dropped: λp is never there as a whole. The spectra
of all u are summed before the inverse transform. Transforms are only as long as the reachable offsets need, rounded
up to a product of 2, 3, 5 and 7.

A transform along each axis copies between the axes. Where a grid is small it is one line instead: rows stand after
one another with as many zeros between them as the table reaches over, so that the offset of two positions is one number
and a transform of one axis does it all.

Operations: about 2.5 · b·k·v · L log2 L for the inverse transforms of L points; kept for backward: the inputs.
Backward is spectral as well: λp once more, and the gradient of λp transformed forth.

Axes in names: b batch, h heads, n positions, k query depth, v value depth, u intra-depth, f frequencies.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lambdanets.kernels.autograd.memory import Workspace
from lambdanets.kernels.grid.contract import Gradients, GridInputs, GridKernel, GridProblem, Work
from lambdanets.kernels.slices import slices

__all__ = ["KERNEL", "fft_length"]

# Elements of padded λp that one chunk of k may have.
BLOCK_ELEMENTS = 1 << 18
# Points up to which a grid is one line: longer ones leave the innermost cache, and less arithmetic counts for more.
LINE_POINTS = 1 << 13
# The product of two spectra is divided by L, here half of it in each: multiplied first, they would overflow for numbers
# whose result has room.
FORTH, BACK = "ortho", "forward"
# Cost of a point of a transform by how often its length is divisible by 2; 1 from four times on (measured on CPUs).
_COST_BY_TWOS = (2.5, 1.4, 1.25, 1.1)


@functools.lru_cache(maxsize=4096)
def fft_length(least: int) -> int:
    """The length >= ``least`` that is the fastest to transform.

    Its prime factors are 2, 3, 5 and 7. Odd lengths take more than twice the time of even ones, so that a few points
    more are often less work.
    """
    best, length = (math.inf, 0), max(1, least)
    while length < best[0]:  # a point costs at least 1
        rest, twos = length, 0
        for prime in (2, 3, 5, 7):
            while rest % prime == 0:
                rest //= prime
                twos += prime == 2
        if rest == 1:
            cost = length * (_COST_BY_TWOS[twos] if twos < len(_COST_BY_TWOS) else 1.0)
            best = min(best, (cost, length))
        length += 1
    return best[1]


def check(problem: GridProblem) -> str | None:
    """Return the reason why this kernel cannot run on ``problem``, or None: it runs on every grid."""
    return None


def _reach(problem: GridProblem) -> tuple[int, ...]:
    """The largest offset along each axis."""
    return tuple(max(o, extent - 1 - o) for extent, o in zip(problem.extents, problem.origin, strict=True))


def _lengths(problem: GridProblem) -> tuple[int, ...]:
    """Points of the transform along each axis, or those of one line: no offset may wrap around into the grid."""
    sizes = [size + reach for size, reach in zip(problem.grid, _reach(problem), strict=True)]
    line = fft_length(_line_points(problem, sizes[1:]))
    return (line,) if line <= LINE_POINTS else tuple(map(fft_length, sizes))


def _line_points(problem: GridProblem, rows: Sequence[int]) -> int:
    """Points that one line needs, its rows with the zeros after them being of the sizes ``rows``."""
    strides = _strides(rows)
    last = sum((size - 1) * stride for size, stride in zip(problem.grid, strides, strict=True))
    before = sum(o * stride for o, stride in zip(problem.origin, strides, strict=True))
    span = sum((extent - 1) * stride for extent, stride in zip(problem.extents, strides, strict=True))
    return last + 1 + max(before, span - before)


def _strides(rows: Sequence[int]) -> list[int]:
    return [math.prod(rows[axis:]) for axis in range(len(rows) + 1)]


def _chunk(problem: GridProblem) -> int:
    """Number of k that are computed at a time."""
    each = problem.batch * problem.dim_value * math.prod(_lengths(problem))
    return max(1, min(problem.dim_key, BLOCK_ELEMENTS // each))


def work(problem: GridProblem, backward: bool) -> Work:
    """Operations of the transforms, elements of λp, and calls."""
    points = math.prod(_lengths(problem))
    planes = problem.batch * problem.dim_key * problem.dim_value
    transform = 1.25 * planes * points * math.log2(max(2, points))
    apply = problem.batch * problem.heads * problem.num_positions * problem.dim_key * problem.dim_value
    product = planes * points * problem.intra_depth
    # Each further axis is a transform of complex numbers with a copy before and after it.
    moved = planes * points * (3 * len(_lengths(problem)) - 2)
    chunks = math.ceil(problem.dim_key / _chunk(problem))
    if backward:
        return Work(2 * transform, 2 * apply + 3 * product + 2 * moved, 20 + 24 * chunks)
    return Work(transform, apply + product + moved, 12 + 6 * chunks + problem.dim_key)


class _SpectralLayout:
    """Transforms of one call and the way there and back.

    On one line (see the module) all axes but the first are filled up with zeros to ``rows``.
    """

    def __init__(self, problem: GridProblem):
        self.grid, self.extents = list(problem.grid), list(problem.extents)
        self.lengths = list(_lengths(problem))
        self.axes = list(range(-len(self.lengths), 0))
        self.dim_key, self.chunk = problem.dim_key, _chunk(problem)
        self.is_line = len(self.lengths) < len(self.grid)
        self.rows = [size + reach for size, reach in zip(problem.grid, _reach(problem), strict=True)][1:]
        strides = _strides(self.rows)
        origin = list(problem.origin)
        self.shifts = [sum(o * s for o, s in zip(origin, strides, strict=True))] if self.is_line else origin

    def to_grid(self, rows: Tensor) -> Tensor:
        """(..., n, depth) -> (..., depth, *grid)."""
        return rows.transpose(-1, -2).unflatten(-1, self.grid)

    def transform(self, planes: Tensor) -> Tensor:
        """(..., *grid) -> (..., *frequencies)."""
        if self.is_line:
            planes = self._to_line(planes)
        return torch.fft.rfftn(planes, s=self.lengths, dim=self.axes, norm=FORTH)

    def back(self, spectrum: Tensor) -> Tensor:
        """Inverse transform, cut to the grid. Rows outside it are dropped before the last axis is done."""
        if self.is_line:
            return self._from_line(torch.fft.irfft(spectrum, n=self.lengths[0], norm=BACK), self.grid)
        *front, _ = self.axes
        for axis, size in zip(front, self.grid, strict=False):
            spectrum = torch.fft.ifft(spectrum, dim=axis, norm=BACK).narrow(axis, 0, size)
        return torch.fft.irfft(spectrum, n=self.lengths[-1], dim=-1, norm=BACK)[..., : self.grid[-1]]

    def table_spectrum(self, table: Tensor) -> Tensor:
        """(u, k, f): offset o of the table stands at o modulo the length."""
        if self.is_line:
            table = self._to_line(table)
        pads = [
            pad
            for axis, length in zip(reversed(self.axes), reversed(self.lengths), strict=True)
            for pad in (0, length - table.shape[axis])
        ]
        shifts = [-shift for shift in self.shifts]
        padded = F.pad(table, pads).roll(shifts, self.axes)
        return torch.fft.rfftn(padded, s=self.lengths, dim=self.axes, norm=FORTH)

    def table_gradient(self, spectrum: Tensor) -> Tensor:
        """Undo :meth:`table_spectrum`."""
        table = torch.fft.irfftn(spectrum, s=self.lengths, dim=self.axes, norm=BACK).roll(self.shifts, self.axes)
        if self.is_line:
            return self._from_line(table, self.extents)
        for axis, extent in zip(self.axes, self.extents, strict=True):
            table = table.narrow(axis, 0, extent)
        return table

    def _to_line(self, planes: Tensor) -> Tensor:
        """(..., *sizes) -> (..., points), up to the last that is not filled up."""
        rank = len(self.grid)
        sizes = planes.shape[-rank:]
        pads = [
            pad for row, size in zip(reversed(self.rows), reversed(sizes[1:]), strict=True) for pad in (0, row - size)
        ]
        points = sum((size - 1) * stride for size, stride in zip(sizes, _strides(self.rows), strict=True)) + 1
        return F.pad(planes, pads).flatten(-rank)[..., :points]

    def _from_line(self, line: Tensor, sizes: Sequence[int]) -> Tensor:
        """Undo :meth:`_to_line`: a view."""
        strides = [stride * line.stride(-1) for stride in _strides(self.rows)]
        return line.as_strided((*line.shape[:-1], *sizes), (*line.stride()[:-1], *strides))

    def chunks(self) -> Iterator[slice]:
        """The k that are computed at a time."""
        return slices(self.dim_key, self.chunk)

    def position_lambdas(self, conjugate_ukf: Tensor, value_buvf: Tensor, depths: slice) -> Tensor:
        """λp for a chunk of k, (b, k, v, n), from the conjugate of the table's spectrum."""
        return self.back(_sum_over_u(conjugate_ukf[:, depths], value_buvf)).flatten(3)


def _sum_over_u(table_ukf: Tensor, value_buvf: Tensor) -> Tensor:
    """Σ_u table[u, k] · value[b, u, v], (b, k, v, f), without a tensor that has both u and the rest."""
    total = table_ukf[0, None, :, None] * value_buvf[:, 0, None]
    for table_kf, value_bvf in zip(table_ukf[1:], value_buvf.transpose(0, 1)[1:], strict=True):
        total.addcmul_(table_kf[None, :, None], value_bvf[:, None])
    return total


def forward(inputs: GridInputs, workspace: Workspace) -> Tensor:
    """Forward pass, as in ``contract.py``."""
    layout, query, value = _SpectralLayout(inputs.problem), inputs.query, inputs.value
    value_buvf = layout.transform(layout.to_grid(value))
    conjugate_ukf = torch.conj_physical(layout.table_spectrum(inputs.table))
    query_bhkn = query.transpose(2, 3).contiguous()
    b, h, n = query.shape[:3]
    out_bhvn = query.new_zeros(b, h, value.shape[3], n)
    for depths in layout.chunks():
        lambda_bkvn = layout.position_lambdas(conjugate_ukf, value_buvf, depths)
        for query_bhn, lambda_bvn in zip(query_bhkn[:, :, depths].unbind(2), lambda_bkvn.unbind(1), strict=True):
            out_bhvn.addcmul_(query_bhn[:, :, None], lambda_bvn[:, None])
    return out_bhvn.transpose(2, 3)


def backward(grad: Tensor, inputs: GridInputs, workspace: Workspace) -> Gradients:
    """Backward pass, as in ``contract.py``."""
    layout, query, value = _SpectralLayout(inputs.problem), inputs.query, inputs.value
    value_buvf = layout.transform(layout.to_grid(value))
    table_ukf = layout.table_spectrum(inputs.table)
    # Written out: lazy conjugation is resolved by the dispatcher, without which compiled graphs call this function.
    conjugate_ukf, conjugate_buvf = torch.conj_physical(table_ukf), torch.conj_physical(value_buvf)
    query_bhkn, grad_bhvn = (t.transpose(2, 3).contiguous() for t in (query, grad))
    grad_query_bhkn = torch.empty_like(query_bhkn)
    grad_value_buvf, grad_table_ukf = torch.zeros_like(value_buvf), torch.zeros_like(table_ukf)
    for depths in layout.chunks():
        lambda_bkvn = layout.position_lambdas(conjugate_ukf, value_buvf, depths)
        grad_lambda_bkvn = torch.empty_like(lambda_bkvn)
        for i, k in enumerate(range(depths.start, depths.stop)):
            torch.sum(grad_bhvn * lambda_bkvn[:, None, i], dim=2, out=grad_query_bhkn[:, :, k])
            torch.sum(query_bhkn[:, :, k, None] * grad_bhvn, dim=1, out=grad_lambda_bkvn[:, i])
        spectrum_bkvf = layout.transform(grad_lambda_bkvn.unflatten(3, layout.grid))
        for u in range(value.shape[1]):
            grad_value_buvf[:, u] += (spectrum_bkvf * table_ukf[u, None, depths, None]).sum(1)
            grad_table_ukf[u, depths] = (spectrum_bkvf * conjugate_buvf[:, None, u]).sum((0, 2))
    grad_value = layout.back(grad_value_buvf).flatten(3).transpose(2, 3)
    grad_table = layout.table_gradient(torch.conj_physical(grad_table_ukf))
    return grad_query_bhkn.transpose(2, 3), grad_value, grad_table, None


KERNEL = GridKernel("spectral", forward, backward, check, work, spreads_errors=True, spreads_nonfinite_entries=True)
