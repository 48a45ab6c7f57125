"""Spectral along the second axis of an image, exact Toeplitz products along the first: all of it matrix products.

E depends on m - n, so λp is a correlation of V with the table. Along x it is done in frequencies f, where a
correlation is a product; along y it stays a Toeplitz matrix T̂_f of complex numbers, one for each f:

    λ̂_f = T̂_f V̂_f,       T̂_f[(y, k), (u, y')] = table^_f[u, k, y' - y].

Transforms of a few dozen points are matrix products too. λp is made for some rows y and some examples at a time,
applied to their queries and dropped; of T̂_f those rows have only the columns y' that they see. A sequence is folded
into an image. The content lambda is the same at all places of a row, so it joins λ̂ in the frequency 0.
``row_spectral_plan.py`` has the sizes of all parts.

**T̂ without an index.** Rows y' of the context are counted in reverse, z = H - 1 - y', and so are the table's offsets
along y: entry o of the transformed table holds the offset ``ahead`` - o. Then row y and column z of T̂ is the entry

    o = y + z + (ahead + 1 - H),    since its offset is  y' - y = (H - 1 - z) - y = ahead - o.

o grows by 1 with z and with y: the columns of a row of T̂ stand side by side in the table, and the next row starts one
entry further on. So T̂ of some rows is a view of the table, copied once for the product.

Multiply-adds for H x W, L >= 2W - 1 points and M <= H the rows seen: 2·L·k·H·M·u·b·v in the products, and L·W·k·H·b·v
in the inverse transform: W / 4 times fewer than lambda first. Kept for backward: the inputs. Backward is spectral as
well.

Axes in names: f frequencies, p real and imaginary part, y rows, z rows of the context in reverse, x places of a row,
b batch, h heads, k query depth, v value depth, u intra-depth, o the table's entries along y, in reverse.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from lambdanets.kernels.autograd.memory import Workspace, front_of
from lambdanets.kernels.grid.contract import Gradients, GridInputs, GridKernel, GridProblem
from lambdanets.kernels.grid.folding import Folding
from lambdanets.kernels.grid.row_spectral_plan import (
    RowSpectralStep,
    check,
    examples_per_group,
    num_frequencies,
    reach,
    row_steps,
    sides,
    transform_length,
    work,
)
from lambdanets.kernels.slices import slices

__all__ = ["KERNEL"]

# Elements of a transform's matrix up to which it is kept.
KEPT_ELEMENTS = 1 << 18


@functools.lru_cache(maxsize=16)
def _transforms(
    length: int, columns: int, before: int, after: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """The three transforms of L = ``length`` points as matrices, made in float64.

    With F[f, x] = exp(-2πi f x / L) for the frequencies f = 0 .. L // 2 that real numbers need:

    - ``to_frequency``, (4 f, x), for V at the places x: the rows (Re F, -Im F, Im F, Re F). λ̂ = T̂ V̂ is a product of
      complex numbers, which in real ones is

          Re λ̂ = [Re T̂, Im T̂] · [Re V̂, -Im V̂],      Im λ̂ = [Re T̂, Im T̂] · [Im V̂, Re V̂],

      two products with the same left operand; the four blocks of rows make their right operands.
    - ``table_to_frequency``, (2 f, offsets), for the table at the offsets o = -before .. after: the rows (Re, Im) of
      conj(F[f, o]). Conjugate, since λ[x] = Σ_o t[o] V[x + o] is a correlation: λ̂ = conj(F) t · F V.
    - ``from_frequency``, (x, 2 f), back to places: the columns (w Re F, w Im F), since

          λ[x] = Σ_f w_f Re(λ̂_f conj(F[f, x])) = Σ_f w_f (Re F[f, x] · Re λ̂_f + Im F[f, x] · Im λ̂_f)

      with w_f = 2 / L for f and L - f together; w_f = 1 / L for f = 0 and for f = L / 2, which have no other.

    Args:
        length: L.
        columns: number of places.
        before: largest offset back.
        after: largest offset ahead.
        dtype: of the result.
        device: of the result.

    Returns:
        ``to_frequency``, ``table_to_frequency`` and ``from_frequency``.
    """
    exact = torch.device("cpu") if device.type == "mps" else device  # Apple's GPUs have no float64
    with torch.inference_mode(False), torch.no_grad():
        f = torch.arange(length // 2 + 1, dtype=torch.float64, device=exact)[:, None]
        x = torch.arange(columns, dtype=torch.float64, device=exact)
        o = torch.arange(-before, after + 1, dtype=torch.float64, device=exact)
        # 2π f x / L, reduced to one turn first: large products of integers keep their digits.
        angle_x, angle_o = ((f * place) % length * (2 * math.pi / length) for place in (x, o))
        weight = torch.full_like(f, 2 / length)
        weight[0] = 1 / length
        if length % 2 == 0:
            weight[-1] = 1 / length
        real, imaginary = angle_x.cos(), -angle_x.sin()  # of F
        to_frequency = torch.cat([real, -imaginary, imaginary, real])
        table_to_frequency = torch.cat([angle_o.cos(), angle_o.sin()])
        from_frequency = torch.cat([weight * real, weight * imaginary]).T
        to_frequency, table_to_frequency, from_frequency = (
            matrix.to(dtype).to(device) for matrix in (to_frequency, table_to_frequency, from_frequency)
        )
        return to_frequency, table_to_frequency, from_frequency


class _RowSpectralLayout:
    """The folded image, its transforms, how tensors get there and back, and the scratch buffers of one call.

    Steps and groups share each buffer; the first of them needs the most of it.

    Attributes:
        entries: number of entries of the transformed table along y.
        table_entries: those that the table has; the others are zeros.
        corner: entry at row 0 and column 0 of T̂.
    """

    def __init__(self, problem: GridProblem, like: Tensor, workspace: Workspace, backward: bool = False):
        self.workspace = workspace
        self.folding = Folding(problem)
        image = self.folding.image
        self.batch, self.dim_key = problem.batch, problem.dim_key
        self.intra_depth, self.dim_value = problem.intra_depth, problem.dim_value
        self.rows, self.columns = image.grid
        self.extents = image.extents
        self.steps, self.group = row_steps(image), examples_per_group(image)
        self.frequencies = num_frequencies(image)
        self.length = transform_length(image)
        back, ahead = reach(image)
        self.entries = back + ahead + 1
        self.corner = ahead + 1 - self.rows
        first = ahead - (image.extents[0] - 1 - image.origin[0])  # of the table's largest offset
        self.table_entries = slice(first, first + image.extents[0])
        # On a GPU what is kept would belong to one stream or graph.
        is_kept = like.device.type == "cpu" and 2 * self.frequencies * self.columns <= KEPT_ELEMENTS
        make = _transforms if is_kept else _transforms.__wrapped__  # the function without its cache
        self.to_frequency, self.table_to_frequency, self.from_frequency = make(
            self.length, self.columns, *sides(image, 1), problem.dtype, like.device
        )
        self._take_buffers(like, backward)

    def _take_buffers(self, like: Tensor, backward: bool) -> None:
        rows = self.steps[0].num_rows * self.dim_key
        values = min(self.group, self.batch) * self.dim_value
        seen = max(step.num_rows * step.num_seen for step in self.steps)
        toeplitz, lambdas = self.frequencies * self.dim_key * seen * 2 * self.intra_depth, rows * self.columns * values
        scratch = self.workspace.scratch
        self._toeplitz, self._products = scratch(like, toeplitz), scratch(like, 2 * self.frequencies * rows * values)
        self._lambdas = scratch(like, lambdas)
        self._grad_toeplitz = scratch(like, toeplitz if backward else 0)
        self._grad_lambdas = scratch(like, lambdas if backward else 0)

    def per_example(self, tensor: Tensor) -> Tensor:
        """(b, h, n, depth) -> (b, y, x, h, depth)."""
        return self.workspace.contiguous(self.folding.rows(tensor).permute(0, 2, 3, 1, 4))

    def from_per_example(self, tensor: Tensor) -> Tensor:
        """Undo :meth:`per_example`."""
        return self.folding.cut(tensor.flatten(1, 2).transpose(1, 2))

    def groups(self) -> Iterator[slice]:
        """Examples that go through together."""
        return slices(self.batch, self.group)

    def values_by_frequency(self, value: Tensor) -> Tensor:
        """The factors of [Re T̂, Im T̂] for Re λ̂ and for Im λ̂, (2, f, z, p, u, b, v)."""
        rows = self.folding.rows(value).permute(3, 2, 1, 0, 4).flip(1)  # (x, z, u, b, v)
        parts = self.workspace.scratch(value, 2, 2, self.frequencies, *rows.shape[1:])
        rows = self.workspace.contiguous(rows).view(self.columns, -1)
        torch.mm(self.to_frequency, rows, out=parts.view(4 * self.frequencies, -1))
        return self.workspace.contiguous(parts.permute(0, 2, 3, 1, 4, 5, 6))

    def values_gradient(self, grad: Tensor) -> Tensor:
        """Undo :meth:`values_by_frequency`: (b, u, n, v)."""
        parts = self.workspace.contiguous(grad.permute(0, 3, 1, 2, 4, 5, 6))
        rows = self.to_frequency.T @ parts.view(4 * self.frequencies, -1)
        rows = rows.view(self.columns, *parts.shape[3:]).flip(1).permute(3, 2, 1, 0, 4)
        return self.folding.cut(rows.flatten(2, 3))

    def table_by_frequency(self, table: Tensor) -> Tensor:
        """Transformed table with zeros for the entries that it lacks: (f, k, o, p, u)."""
        image = self.folding.table(table).flip(2).permute(3, 1, 2, 0)  # (offsets along x, k, o, u)
        parts = self.workspace.scratch(table, 2, self.frequencies, *image.shape[1:])
        torch.mm(self.table_to_frequency, image.reshape(len(image), -1), out=parts.view(2 * self.frequencies, -1))
        out = self.workspace.scratch(table, self.frequencies, self.dim_key, self.entries, 2, self.intra_depth).zero_()
        out[:, :, self.table_entries] = parts.permute(1, 2, 3, 0, 4)
        return out

    def table_gradient(self, grad: Tensor) -> Tensor:
        """Undo :meth:`table_by_frequency`."""
        parts = self.workspace.contiguous(grad[:, :, self.table_entries].permute(3, 0, 1, 2, 4))
        image = self.table_to_frequency.T @ parts.view(2 * self.frequencies, -1)
        image = image.view(self.extents[1], *parts.shape[2:]).permute(3, 1, 2, 0).flip(2)
        return self.folding.table_gradient(image)

    def toeplitz(self, table_f: Tensor, step: RowSpectralStep) -> Tensor:
        """[Re T̂, Im T̂] for some rows: (f, y k, z p u); overwritten by the next call."""
        each = 2 * self.intra_depth
        by_frequency, by_key = table_f.stride()[:2]
        shape = (self.frequencies, step.num_rows, self.dim_key, step.num_seen * each)
        strides = (by_frequency, each, by_key, 1)
        first = table_f.storage_offset() + self._first_entry(step) * each
        out = front_of(self._toeplitz, self._toeplitz_shape(step))
        out.view(shape).copy_(table_f.as_strided(shape, strides, first))
        return out

    def toeplitz_zeros(self, step: RowSpectralStep) -> Tensor:
        """Zeros for the gradient of :meth:`toeplitz`."""
        return front_of(self._grad_toeplitz, self._toeplitz_shape(step)).zero_()

    def _toeplitz_shape(self, step: RowSpectralStep) -> tuple[int, ...]:
        return self.frequencies, step.num_rows * self.dim_key, step.num_seen * 2 * self.intra_depth

    def _first_entry(self, step: RowSpectralStep) -> int:
        """Entry o at the step's first row and column."""
        return self.corner + step.rows.start + step.seen.start

    def add_toeplitz(self, grad_table_f: Tensor, grad: Tensor, step: RowSpectralStep) -> None:
        """Add the gradient of :meth:`toeplitz` to where each entry came from."""
        grad = grad.view(self.frequencies, step.num_rows, self.dim_key, step.num_seen, 2, self.intra_depth)
        for row in range(step.num_rows):
            first = self._first_entry(step) + row
            grad_table_f[:, :, first : first + step.num_seen] += grad[:, row]

    def seen(self, values: Tensor, step: RowSpectralStep, group: slice) -> Tensor:
        """Values of a group's examples that some rows see, (2, f, z p u, b v): a view."""
        return values[:, :, step.seen].flatten(2, 4)[:, :, :, group].flatten(3)

    def lambdas(self, toeplitz: Tensor, values: Tensor, content: Tensor | None, step: RowSpectralStep) -> Tensor:
        """λp + λc of some rows and examples, (y x, k, b, v), overwritten by the next call.

        Args:
            toeplitz: see :meth:`toeplitz`.
            values: see :meth:`seen`.
            content: λc, (b, k, v), or None for zero.
            step: the rows.
        """
        products = front_of(self._products, (2, *toeplitz.shape[:2], values.shape[3]))
        for part, value in zip(products, values, strict=True):
            torch.bmm(toeplitz, value, out=part)
        if content is not None:
            self._constant(products, step).add_(content.transpose(0, 1), alpha=self.length)
        by_row = products.view(2 * self.frequencies, step.num_rows, -1).transpose(0, 1)
        rows = front_of(self._lambdas, (step.num_rows, self.columns, by_row.shape[2]))
        torch.bmm(self.from_frequency.expand(step.num_rows, -1, -1), by_row, out=rows)
        return rows.view(-1, self.dim_key, values.shape[3] // self.dim_value, self.dim_value)

    def _constant(self, products: Tensor, step: RowSpectralStep) -> Tensor:
        """The real part of λ̂ at the frequency 0, whose transform back is divided by the length: (y, k, b, v)."""
        return products[0, 0].view(step.num_rows, self.dim_key, -1, self.dim_value)

    def content_gradient(self, spectrum: Tensor, step: RowSpectralStep) -> Tensor:
        """Gradient of λc, (b, k, v), from that of λ̂."""
        return self._constant(spectrum, step).sum(0).mul_(self.length).transpose(0, 1)

    def lambdas_gradient(self, grad: Tensor, step: RowSpectralStep) -> Tensor:
        """Gradient of λ̂, (p, f, y k, b v), from that of λp, (b, y x, k, v); overwritten by the next call."""
        examples, dim_value = grad.shape[0], grad.shape[3]
        by_place = front_of(self._lambdas, (self.columns, step.num_rows, self.dim_key, examples, dim_value))
        by_place.copy_(grad.view(examples, step.num_rows, self.columns, *grad.shape[2:]).permute(2, 1, 3, 0, 4))
        shape = (2, self.frequencies, step.num_rows * self.dim_key, examples * self.dim_value)
        spectrum = front_of(self._products, shape)
        by_place = by_place.view(self.columns, -1)
        torch.mm(self.from_frequency.T, by_place, out=spectrum.view(2 * self.frequencies, -1))
        return spectrum

    def empty_gradient(self, lambdas: Tensor) -> Tensor:
        """Uninitialised memory for the gradient of λp, (b, y x, k, v), of the sizes of ``lambdas``, (y x, k, b, v)."""
        places, dim_key, examples, dim_value = lambdas.shape
        return front_of(self._grad_lambdas, (examples, places, dim_key, dim_value))


def forward(inputs: GridInputs, workspace: Workspace) -> Tensor:
    """Forward pass, as in ``contract.py``."""
    layout, content = _RowSpectralLayout(inputs.problem, inputs.query, workspace), inputs.content
    queries, values = layout.per_example(inputs.query), layout.values_by_frequency(inputs.value)
    table_f = layout.table_by_frequency(inputs.table)
    out = queries.new_empty(*queries.shape[:4], layout.dim_value)
    for step in layout.steps:
        toeplitz = layout.toeplitz(table_f, step)
        for group in layout.groups():
            part = None if content is None else content[group]
            lambdas = layout.lambdas(toeplitz, layout.seen(values, step, group), part, step)
            some = zip(out[group, step.rows], queries[group, step.rows], lambdas.unbind(2), strict=True)
            for out_yxhv, query_yxhk, lambda_nkv in some:
                torch.bmm(query_yxhk.flatten(0, 1), lambda_nkv, out=out_yxhv.flatten(0, 1))
    return layout.from_per_example(out)


def backward(grad: Tensor, inputs: GridInputs, workspace: Workspace) -> Gradients:
    """Backward pass, as in ``contract.py``."""
    layout, content = _RowSpectralLayout(inputs.problem, inputs.query, workspace, backward=True), inputs.content
    queries, grads = layout.per_example(inputs.query), layout.per_example(grad)
    values, table_f = layout.values_by_frequency(inputs.value), layout.table_by_frequency(inputs.table)
    grad_queries, grad_table_f = torch.empty_like(queries), workspace.scratch(table_f, *table_f.shape).zero_()
    grad_values = workspace.scratch(values, *values.shape).zero_()
    grad_content = None if content is None else torch.zeros_like(content)
    for step in layout.steps:
        toeplitz = layout.toeplitz(table_f, step)
        grad_toeplitz = layout.toeplitz_zeros(step)
        for group in layout.groups():
            seen, some = layout.seen(values, step, group), (group, step.rows)
            lambdas = layout.lambdas(toeplitz, seen, None if content is None else content[group], step)
            grad_lambdas = _apply_gradients(grads[some], queries[some], lambdas, grad_queries[some], layout)
            spectrum = layout.lambdas_gradient(grad_lambdas, step)
            if grad_content is not None:
                grad_content[group] += layout.content_gradient(spectrum, step)
            for part, value_fcv, total in zip(spectrum, seen, layout.seen(grad_values, step, group), strict=True):
                grad_toeplitz.baddbmm_(part, value_fcv.transpose(1, 2))
                total += torch.bmm(toeplitz.transpose(1, 2), part)
        layout.add_toeplitz(grad_table_f, grad_toeplitz, step)
    return (
        layout.from_per_example(grad_queries),
        layout.values_gradient(grad_values),
        layout.table_gradient(grad_table_f),
        grad_content,
    )


def _apply_gradients(
    grad: Tensor, query: Tensor, lambdas: Tensor, grad_query: Tensor, layout: _RowSpectralLayout
) -> Tensor:
    """Gradients of applying λp to some rows' queries: those of the queries in place, that of λp as (b, y x, k, v).

    Args:
        grad: (b, y, x, h, v).
        query: (b, y, x, h, k).
        lambdas: (y x, k, b, v).
        grad_query: as ``query``.
        layout: of the call.
    """
    grad_lambdas = layout.empty_gradient(lambdas)
    for example, lambda_nkv in enumerate(lambdas.unbind(2)):
        grad_nhv, query_nhk = grad[example].flatten(0, 1), query[example].flatten(0, 1)
        torch.bmm(grad_nhv, lambda_nkv.transpose(1, 2), out=grad_query[example].flatten(0, 1))
        torch.bmm(query_nhk.transpose(1, 2), grad_nhv, out=grad_lambdas[example])
    return grad_lambdas


KERNEL = GridKernel(
    "row_spectral",
    forward,
    backward,
    check,
    work,
    adds_content=True,
    spreads_errors=True,
    spreads_nonfinite_entries=True,
)
