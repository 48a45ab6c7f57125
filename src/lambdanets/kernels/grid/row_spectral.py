"""Spectral along the second axis of an image, exact Toeplitz products along the first: all of it matrix products.

E depends on m - n, so λp is a correlation of V with the table. Along x it is done in frequencies f, where a
correlation is a product; along y it stays a Toeplitz matrix T̂_f of complex numbers, one for each f:

    λ̂_f = T̂_f V̂_f,       T̂_f[(y, k), (u, y')] = table^_f[u, k, y' - y].

Transforms of a few dozen points are matrix products too. λp is made for some rows y and some examples at a time,
applied to their queries and dropped; of T̂_f those rows have only the columns y' that they see. A sequence is folded
into an image. The content lambda is the same at all places of a row, so it joins λ̂ in the frequency 0.

Multiply-adds for H x W, L >= 2W - 1 points and M <= H the rows seen: 2·L·k·H·M·u·b·v in the products, and L·W·k·H·b·v
in the inverse transform: W / 4 times fewer than lambda first. Kept for backward: the inputs. Backward is spectral as
well.

Axes in names: f frequencies, p real and imaginary part, y rows, z rows of the context in reverse, x places of a row,
b batch, h heads, k query depth, v value depth, u intra-depth, o offsets along y in reverse.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lambdanets.kernels.autograd.memory import Workspace, room
from lambdanets.kernels.grid.contract import SMALL_PRODUCT, GridKernel, GridProblem, Work
from lambdanets.kernels.grid.folding import Folding, fold
from lambdanets.kernels.slices import slices

__all__ = ["KERNEL"]

# Elements of λ̂ that some rows of some examples may have, unless one row of one example has more.
BLOCK_ELEMENTS = 1 << 20
# Columns from which products are not faster for more: so many examples' values go through at a time.
COLUMNS = 128
# Elements that T̂ of some rows may have, unless that of one row has more.
TOEPLITZ_ELEMENTS = 1 << 22
# Rows that a step may have whatever their scope is.
LEAST_ROWS = 8
# Elements that λ̂ of one row and example, the table in frequencies or the matrix of a transform may have.
MAX_ELEMENTS = 1 << 26
# Elements of a transform's matrix up to which it is kept.
KEPT_ELEMENTS = 1 << 18


def check(problem: GridProblem) -> str | None:
    """Why this kernel cannot run on ``problem``, or None."""
    if len(problem.grid) > 2:
        return f"it is for sequences and images, and this grid has rank {len(problem.grid)}"
    image = fold(problem)
    table = sum(_reach(image)) + 1
    depth = max(image.dim_key * image.dim_value, image.dim_key * image.intra_depth * table, 2 * image.grid[1])
    count = 2 * _frequencies(image) * depth
    if count > MAX_ELEMENTS:
        return f"its largest matrix would have {count:,} elements, more than {MAX_ELEMENTS:,}"
    return None


def _length(image: GridProblem) -> int:
    """Points of the transform along the second axis: no offset may wrap around into the grid.

    Any number will do, since the transform is a matrix product.
    """
    return image.grid[1] + max(_sides(image, 1))


def _frequencies(image: GridProblem) -> int:
    return _length(image) // 2 + 1


def _group(image: GridProblem) -> int:
    """Number of examples of a group."""
    return max(1, min(image.batch, COLUMNS // max(1, image.dim_value)))


@dataclass(frozen=True)
class _Step:
    """Some rows of queries and the rows of the context that they see.

    Args:
        rows: of the queries.
        seen: rows of the context, in reverse order.
    """

    rows: slice
    seen: slice

    @property
    def num_rows(self) -> int:
        return self.rows.stop - self.rows.start

    @property
    def num_seen(self) -> int:
        return self.seen.stop - self.seen.start


def _step_size(image: GridProblem) -> int:
    """Rows of a step; the last may have fewer.

    Not many more than one of them sees, since the others' columns of T̂ are zeros to it.
    """
    rows, extent = image.grid[0], image.extents[0]
    depth = 2 * _frequencies(image) * image.dim_key
    by_lambdas = BLOCK_ELEMENTS // max(1, depth * image.dim_value * _group(image))
    # rows · (rows + extent) places of T̂ for each number of depth, where they do not see all rows.
    places = TOEPLITZ_ELEMENTS // max(1, depth * image.intra_depth)
    by_toeplitz = max(places // max(1, rows), (math.isqrt(extent * extent + 4 * places) - extent) // 2)
    most = max(1, min(rows, by_lambdas, by_toeplitz, max(extent * 5 // 4, LEAST_ROWS)))
    return math.ceil(rows / math.ceil(rows / most))


def _sides(image: GridProblem, axis: int) -> tuple[int, int]:
    """The largest offsets back and ahead along an axis."""
    return image.origin[axis], image.extents[axis] - 1 - image.origin[axis]


def _reach(image: GridProblem) -> tuple[int, int]:
    """Largest distances back and ahead that the rows of a step see together, counted from any of them."""
    back, ahead = (min(image.grid[0] - 1, side + _step_size(image) - 1) for side in _sides(image, 0))
    return back, ahead


@functools.lru_cache(maxsize=1024)
def _steps(image: GridProblem) -> tuple[_Step, ...]:
    rows, size = image.grid[0], _step_size(image)
    back, ahead = _sides(image, 0)
    steps = []
    for some in slices(rows, size):
        seen = slice(rows - min(rows, some.stop + ahead), rows - max(0, some.start - back))
        steps.append(_Step(some, seen))
    return tuple(steps)


def work(problem: GridProblem, backward: bool) -> Work:
    """Multiply-adds, elements of λp and of the Toeplitz matrices, and calls."""
    image = fold(problem)
    columns, steps, groups = image.grid[1], _steps(image), math.ceil(image.batch / _group(image))
    values, points = image.batch * image.dim_value, 2 * _frequencies(image)
    seen = sum(step.num_rows * step.num_seen for step in steps)
    toeplitz = points * image.dim_key * seen * 2 * image.intra_depth
    # Back from frequencies; those of V and of the table are a small part of it.
    inverse = points * columns * image.dim_key * image.grid[0]
    apply = image.num_positions * image.heads * image.dim_key
    lambdas = points * image.dim_key * image.grid[0] * values
    products = SMALL_PRODUCT * image.num_positions * image.batch
    calls = len(steps) * groups
    if backward:
        return Work(
            (3 * toeplitz + 2 * inverse + 2 * apply) * values,
            4 * lambdas + 2 * toeplitz + 2 * products,
            60 + calls * 16 + len(steps) * image.batch * 5 + image.grid[0] * 2,
        )
    return Work(
        (toeplitz + inverse + apply) * values,
        2 * lambdas + toeplitz // 2 + products,
        30 + calls * 8 + len(steps) * image.batch * 3,
    )


@functools.lru_cache(maxsize=16)
def _transforms(
    length: int, columns: int, before: int, after: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Transforms of ``length`` points as matrices, made in float64.

    Returns:
        Of places, the factors of [Re T̂, Im T̂] for Re λ̂ and for Im λ̂: real, -imaginary, imaginary and real
        parts, (4 f, x); of the table's offsets, conjugate, (p f, offsets); and back to places, (x, p f).
    """
    with torch.inference_mode(False), torch.no_grad():
        f = torch.arange(length // 2 + 1, dtype=torch.float64, device=device)[:, None]
        x = torch.arange(columns, dtype=torch.float64, device=device)
        o = torch.arange(-before, after + 1, dtype=torch.float64, device=device)
        # Angles are reduced to one turn first: large products of integers keep their digits.
        angle_x, angle_o = ((f * place) % length * (2 * math.pi / length) for place in (x, o))
        weight = torch.full_like(f, 2 / length)
        weight[0] = 1 / length
        if length % 2 == 0:
            weight[-1] = 1 / length
        real, imaginary = angle_x.cos(), -angle_x.sin()
        to_frequency = torch.cat([real, -imaginary, imaginary, real])
        table_to_frequency = torch.cat([angle_o.cos(), angle_o.sin()])
        from_frequency = torch.cat([weight * real, weight * imaginary]).T
        return to_frequency.to(dtype), table_to_frequency.to(dtype), from_frequency.to(dtype)


class _Layout:
    """The folded image, its transforms, and how tensors get there and back."""

    def __init__(self, problem: GridProblem, device: torch.device, workspace: Workspace):
        self.workspace = workspace
        self.folding = Folding(problem)
        image = self.folding.image
        self.batch, self.dim_key = problem.batch, problem.dim_key
        self.intra_depth, self.dim_value = problem.intra_depth, problem.dim_value
        self.rows, self.columns = image.grid
        self.extents = image.extents
        self.steps, self.group = _steps(image), _group(image)
        self.length, self.frequencies = _length(image), _frequencies(image)
        back, ahead = _reach(image)
        self.offsets = back + ahead + 1
        # Where the table stands among them, and the offset 0 of the first row.
        first = ahead + 1 + image.origin[0] - image.extents[0]
        self.inside, self.zero = slice(first, first + image.extents[0]), ahead + 1 - self.rows
        self.most_seen = max(step.num_rows * step.num_seen for step in self.steps)
        self.rooms: dict[str, Tensor] = {}
        # On a GPU what is kept would belong to one stream or graph.
        is_kept = device.type == "cpu" and 2 * self.frequencies * self.columns <= KEPT_ELEMENTS
        make = _transforms if is_kept else _transforms.__wrapped__
        self.to_frequency, self.table_to_frequency, self.from_frequency = make(
            self.length, self.columns, *_sides(image, 1), problem.dtype, device
        )

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
        """Transformed table with zeros for the offsets along y that it lacks: (f, k, o, p, u)."""
        image = self.folding.table(table).flip(2).permute(3, 1, 2, 0)  # (offsets along x, k, o, u)
        parts = self.workspace.scratch(table, 2, self.frequencies, *image.shape[1:])
        torch.mm(self.table_to_frequency, image.reshape(len(image), -1), out=parts.view(2 * self.frequencies, -1))
        out = self.workspace.scratch(table, self.frequencies, self.dim_key, self.offsets, 2, self.intra_depth).zero_()
        out[:, :, self.inside] = parts.permute(1, 2, 3, 0, 4)
        return out

    def table_gradient(self, grad: Tensor) -> Tensor:
        """Undo :meth:`table_by_frequency`."""
        parts = self.workspace.contiguous(grad[:, :, self.inside].permute(3, 0, 1, 2, 4))
        image = self.table_to_frequency.T @ parts.view(2 * self.frequencies, -1)
        image = image.view(self.extents[1], *parts.shape[2:]).permute(3, 1, 2, 0).flip(2)
        return self.folding.table_gradient(image)

    def toeplitz(self, table_f: Tensor, step: _Step) -> Tensor:
        """[Re T̂, Im T̂] for some rows: (f, y k, z p u).

        A row's entries stand side by side in the table, and a place further on for the next row.
        """
        each = 2 * self.intra_depth
        by_frequency, by_key = table_f.stride()[:2]
        shape = (self.frequencies, step.num_rows, self.dim_key, step.num_seen * each)
        strides = (by_frequency, each, by_key, 1)
        first = table_f.storage_offset() + (self.zero + step.rows.start + step.seen.start) * each
        out = self._toeplitz_room("toeplitz", step, table_f)
        out.view(shape).copy_(table_f.as_strided(shape, strides, first))
        return out

    def toeplitz_zeros(self, step: _Step, like: Tensor) -> Tensor:
        """For the gradient of :meth:`toeplitz`."""
        return self._toeplitz_room("toeplitz gradient", step, like).zero_()

    def _toeplitz_room(self, name: str, step: _Step, like: Tensor) -> Tensor:
        each = 2 * self.intra_depth
        most = self.frequencies * self.dim_key * self.most_seen * each
        shape = (self.frequencies, step.num_rows * self.dim_key, step.num_seen * each)
        return room(self.room(name, most, like=like), shape)

    def add_toeplitz(self, grad_table_f: Tensor, grad: Tensor, step: _Step) -> None:
        """Add the gradient of :meth:`toeplitz` to where each entry came from."""
        grad = grad.view(self.frequencies, step.num_rows, self.dim_key, step.num_seen, 2, self.intra_depth)
        for row in range(step.num_rows):
            first = self.zero + step.rows.start + row + step.seen.start
            grad_table_f[:, :, first : first + step.num_seen] += grad[:, row]

    def seen(self, values: Tensor, step: _Step, group: slice) -> Tensor:
        """Values of a group's examples that some rows see, (2, f, z p u, b v): a view."""
        return values[:, :, step.seen].flatten(2, 4)[:, :, :, group].flatten(3)

    def lambdas(self, toeplitz: Tensor, values: Tensor, content: Tensor | None, step: _Step) -> Tensor:
        """λp + λc of some rows and examples, (y x, k, b, v), overwritten by the next call.

        Args:
            toeplitz: see :meth:`toeplitz`.
            values: see :meth:`seen`.
            content: λc, (b, k, v), or None for zero.
            step: the rows.
        """
        products = self.room("products", 2, *toeplitz.shape[:2], values.shape[3], like=toeplitz)
        for part, value in zip(products, values, strict=True):
            torch.bmm(toeplitz, value, out=part)
        if content is not None:
            self._constant(products, step).add_(content.transpose(0, 1), alpha=self.length)
        by_row = products.view(2 * self.frequencies, step.num_rows, -1).transpose(0, 1)
        rows = self.room("lambdas", step.num_rows, self.columns, by_row.shape[2], like=toeplitz)
        torch.bmm(self.from_frequency.expand(step.num_rows, -1, -1), by_row, out=rows)
        return rows.view(-1, self.dim_key, values.shape[3] // self.dim_value, self.dim_value)

    def _constant(self, products: Tensor, step: _Step) -> Tensor:
        """Of λ̂ the real part of the frequency 0, whose transform back is divided by the length: (y, k, b, v)."""
        return products[0, 0].view(step.num_rows, self.dim_key, -1, self.dim_value)

    def content_gradient(self, spectrum: Tensor, step: _Step) -> Tensor:
        """Gradient of λc, (b, k, v), from that of λ̂."""
        return self._constant(spectrum, step).sum(0).mul_(self.length).transpose(0, 1)

    def lambdas_gradient(self, grad: Tensor, step: _Step) -> Tensor:
        """Gradient of λ̂, (p, f, y k, b v), from that of λp, (b, y x, k, v); overwritten by the next call."""
        examples = len(grad)
        by_place = self.room("lambdas", self.columns, step.num_rows, self.dim_key, *grad.shape[::3], like=grad)
        by_place.copy_(grad.view(examples, step.num_rows, self.columns, *grad.shape[2:]).permute(2, 1, 3, 0, 4))
        shape = (2, self.frequencies, step.num_rows * self.dim_key, examples * self.dim_value)
        spectrum = self.room("products", *shape, like=grad)
        by_place = by_place.view(self.columns, -1)
        torch.mm(self.from_frequency.T, by_place, out=spectrum.view(2 * self.frequencies, -1))
        return spectrum

    def room(self, name: str, *shape: int, like: Tensor) -> Tensor:
        """Memory that all steps share, of which the first needs the most."""
        if name not in self.rooms:
            self.rooms[name] = self.workspace.scratch(like, math.prod(shape))
        return room(self.rooms[name], shape)


def forward(
    query: Tensor,
    value: Tensor,
    table: Tensor,
    problem: GridProblem,
    workspace: Workspace,
    content: Tensor | None = None,
) -> Tensor:
    """Forward pass, as in ``contract.py``."""
    layout = _Layout(problem, query.device, workspace)
    queries, values = layout.per_example(query), layout.values_by_frequency(value)
    table_f = layout.table_by_frequency(table)
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


def backward(
    grad: Tensor,
    query: Tensor,
    value: Tensor,
    table: Tensor,
    problem: GridProblem,
    workspace: Workspace,
    content: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Backward pass, as in ``contract.py``."""
    layout = _Layout(problem, query.device, workspace)
    queries, grads = layout.per_example(query), layout.per_example(grad)
    values, table_f = layout.values_by_frequency(value), layout.table_by_frequency(table)
    grad_queries, grad_table_f = torch.empty_like(queries), workspace.scratch(table_f, *table_f.shape).zero_()
    grad_values = workspace.scratch(values, *values.shape).zero_()
    grad_content = None if content is None else torch.zeros_like(content)
    for step in layout.steps:
        toeplitz = layout.toeplitz(table_f, step)
        grad_toeplitz = layout.toeplitz_zeros(step, toeplitz)
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


def _apply_gradients(grad: Tensor, query: Tensor, lambdas: Tensor, grad_query: Tensor, layout: _Layout) -> Tensor:
    """Gradients of applying λp to some rows' queries: those of the queries in place, that of λp as (b, y x, k, v).

    Args:
        grad: (b, y, x, h, v).
        query: (b, y, x, h, k).
        lambdas: (y x, k, b, v).
        grad_query: as ``query``.
        layout: of the call.
    """
    places, examples = lambdas.shape[0], len(grad)
    grad_lambdas = layout.room("lambdas gradient", examples, places, *lambdas.shape[1::2], like=lambdas)
    for example, lambda_nkv in enumerate(lambdas.unbind(2)):
        grad_nhv, query_nhk = grad[example].flatten(0, 1), query[example].flatten(0, 1)
        torch.bmm(grad_nhv, lambda_nkv.transpose(1, 2), out=grad_query[example].flatten(0, 1))
        torch.bmm(query_nhk.transpose(1, 2), grad_nhv, out=grad_lambdas[example])
    return grad_lambdas


KERNEL = GridKernel("row_spectral", forward, backward, check, work, adds_content=True, spreads_errors=True)
