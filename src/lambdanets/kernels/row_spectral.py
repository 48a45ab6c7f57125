"""Spectral along the first axis of an image, exact Toeplitz products along the second: all of it matrix products.

E depends on m - n, so λp is a correlation of V with the table. Along y it is done in frequencies f, where a
correlation is a product; along x it stays a Toeplitz matrix T̂_f of complex numbers, one for each f:

    λ̂_f = T̂_f V̂_f,       T̂_f[(x, k), (u, x')] = table^_f[u, k, x' - x].

Transforms of a few dozen points are matrix products too. λp is made for one example at a time, and a few k where
that is much, applied to the queries and dropped. A sequence is folded into an image.

Multiply-adds for H x W: 2·L·k·W²·u·b·v in the products with L >= 2H - 1 points, and L·H·k·W·b·v in the inverse
transform: H / 4 times fewer than lambda first. Kept for backward: the inputs. Backward is spectral as well.

Axes in names: f frequencies, p real and imaginary part, y and x places, b batch, h heads, k query depth, v value
depth, u intra-depth, o offsets.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from lambdanets.kernels.folding import Folding, fold
from lambdanets.kernels.memory import contiguous, room, scratch
from lambdanets.kernels.problem import SMALL_PRODUCT, GridProblem, Work

__all__ = ["backward", "check", "forward", "work"]

# Elements of one example's λ̂ that one chunk of k may have.
BLOCK_ELEMENTS = 1 << 20
# Elements that it may have for one k: the square of a row's places, for each frequency.
MAX_ELEMENTS = 1 << 26


def check(problem: GridProblem) -> str | None:
    """Why this kernel cannot run on ``problem``, or None."""
    if len(problem.grid) > 2:
        return f"it is for sequences and images, and this grid has rank {len(problem.grid)}"
    count = _elements(fold(problem))
    if count > MAX_ELEMENTS:
        return f"its matrices for one k would have {count:,} elements, more than {MAX_ELEMENTS:,}"
    return None


def _length(image: GridProblem) -> int:
    """Points of the transform along the first axis: no offset may wrap around into the grid.

    Any number will do, since the transform is a matrix product.
    """
    before = image.origin[0]
    return image.grid[0] + max(before, image.extents[0] - 1 - before)


def _elements(image: GridProblem) -> int:
    """Elements of one example's λ̂ or of T̂, whichever has more, for one k."""
    columns = image.grid[1]
    return (_length(image) + 2) * columns * max(image.dim_value, image.intra_depth * columns)


def _chunk(image: GridProblem) -> int:
    """How many k at a time, in even chunks."""
    chunks = math.ceil(image.dim_key * _elements(image) / BLOCK_ELEMENTS)
    return math.ceil(image.dim_key / chunks)


def work(problem: GridProblem, backward: bool) -> Work:
    """Multiply-adds, elements of λp and of the Toeplitz matrices, and calls."""
    problem = fold(problem)
    rows, columns = problem.grid
    values = problem.batch * problem.dim_value
    points = 2 * (_length(problem) // 2 + 1)
    toeplitz = 2 * points * problem.dim_key * columns * columns * problem.intra_depth
    inverse = points * rows * problem.dim_key * columns
    apply = problem.num_positions * problem.heads * problem.dim_key
    lambdas = points * problem.dim_key * columns * values
    products = SMALL_PRODUCT * problem.num_positions * problem.batch
    steps = math.ceil(problem.dim_key / _chunk(problem)) * problem.batch
    if backward:
        return Work(
            (3 * toeplitz + 2 * inverse + 2 * apply) * values,
            4 * lambdas + 4 * toeplitz + 2 * products,
            60 + 14 * steps,
        )
    return Work((toeplitz + inverse + apply) * values, 2 * lambdas + toeplitz + products, 30 + 5 * steps)


@functools.lru_cache(maxsize=64)
def _transforms(
    length: int, rows: int, before: int, after: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Transforms of ``length`` points as matrices of real and imaginary parts, made in float64.

    Returns:
        Of rows, (p f, y); of the table's offsets, conjugate, (p f, o); and back to rows, (y, p f).
    """
    with torch.inference_mode(False), torch.no_grad():
        f = torch.arange(length // 2 + 1, dtype=torch.float64, device=device)[:, None]
        y = torch.arange(rows, dtype=torch.float64, device=device)
        o = torch.arange(-before, after + 1, dtype=torch.float64, device=device)
        # Angles are reduced to one turn first: large products of integers keep their digits.
        angle_y, angle_o = ((f * place) % length * (2 * math.pi / length) for place in (y, o))
        weight = torch.full_like(f, 2 / length)
        weight[0] = 1 / length
        if length % 2 == 0:
            weight[-1] = 1 / length
        to_frequency = torch.cat([angle_y.cos(), -angle_y.sin()])
        table_to_frequency = torch.cat([angle_o.cos(), angle_o.sin()])
        from_frequency = torch.cat([weight * angle_y.cos(), -weight * angle_y.sin()]).T
        return to_frequency.to(dtype), table_to_frequency.to(dtype), from_frequency.to(dtype)


class _Layout:
    """The folded image, its transforms, and how tensors get there and back."""

    def __init__(self, problem: GridProblem, device: torch.device):
        self.folding = Folding(problem)
        image = self.folding.image
        self.batch, self.dim_key = problem.batch, problem.dim_key
        self.intra_depth, self.dim_value = problem.intra_depth, problem.dim_value
        self.rows, self.columns = image.grid
        self.before, self.after = image.origin[0], image.extents[0] - 1 - image.origin[0]
        # Zeros for the offsets along x that the table lacks.
        behind = image.extents[1] - 1 - image.origin[1]
        self.pads = (self.columns - 1 - image.origin[1], self.columns - 1 - behind)
        self.chunk = _chunk(image)
        self.offset_columns = 2 * self.columns - 1
        length = _length(image)
        self.frequencies = length // 2 + 1
        self.rooms: dict[str, Tensor] = {}
        # On a GPU what is kept would belong to one stream or graph.
        make = _transforms if device.type == "cpu" else _transforms.__wrapped__
        self.to_frequency, self.table_to_frequency, self.from_frequency = make(
            length, self.rows, self.before, self.after, problem.dtype, device
        )

    def per_example(self, tensor: Tensor) -> Tensor:
        """(b, h, n, depth) -> (b, y x, h, depth)."""
        return contiguous(self.folding.rows(tensor).flatten(2, 3).transpose(1, 2))

    def from_per_example(self, tensor: Tensor) -> Tensor:
        """Undo :meth:`per_example`."""
        return self.folding.cut(tensor.transpose(1, 2))

    def values_by_frequency(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """What [Re T̂, Im T̂] is multiplied with for Re λ̂ and for Im λ̂, each (f, p u x', b v)."""
        rows = self.folding.rows(value).permute(2, 1, 3, 0, 4).flip(2)  # (y, u, x', b, v)
        places = self.intra_depth * self.columns
        parts = scratch(value, 2, self.frequencies, places, self.batch * self.dim_value)
        torch.mm(self.to_frequency, contiguous(rows).view(self.rows, -1), out=parts.view(2 * self.frequencies, -1))
        real, imaginary = parts
        for_real, for_imaginary = scratch(value, 2, self.frequencies, 2 * places, parts.shape[3])
        torch.cat([real, imaginary.neg()], dim=1, out=for_real)
        torch.cat([imaginary, real], dim=1, out=for_imaginary)
        return for_real, for_imaginary

    def values_gradient(self, grad_real: Tensor, grad_imaginary: Tensor) -> Tensor:
        """Undo :meth:`values_by_frequency`: (b, u, n, v)."""
        half = self.intra_depth * self.columns
        parts = scratch(grad_real, 2, self.frequencies, half, grad_real.shape[2])
        torch.add(grad_real[:, :half], grad_imaginary[:, half:], out=parts[0])
        torch.sub(grad_imaginary[:, :half], grad_real[:, half:], out=parts[1])
        rows = self.to_frequency.T @ parts.view(2 * self.frequencies, -1)
        shape = (self.rows, self.intra_depth, self.columns, self.batch, self.dim_value)
        rows = rows.view(shape).flip(2).permute(3, 1, 0, 2, 4).flatten(2, 3)
        return self.folding.cut(rows)

    def table_by_frequency(self, table: Tensor) -> Tensor:
        """Transformed table, columns in reverse: (p, f, u, k, 2 · columns - 1)."""
        image = F.pad(self.folding.table(table), self.pads).flip(3).movedim(2, 0)
        shape = (2, self.frequencies, self.intra_depth, self.dim_key, self.offset_columns)
        out = scratch(table, *shape)
        torch.mm(self.table_to_frequency, image.reshape(len(image), -1), out=out.view(2 * self.frequencies, -1))
        return out

    def table_gradient(self, grad: Tensor) -> Tensor:
        """Undo :meth:`table_by_frequency`."""
        image = self.table_to_frequency.T @ grad.view(2 * self.frequencies, -1)
        image = image.view(-1, *grad.shape[2:]).movedim(0, 2).flip(3)
        before, behind = self.pads
        return self.folding.table_gradient(image[..., before : self.offset_columns - behind])

    def toeplitz(self, table_pf: Tensor, keys: slice) -> Tensor:
        """[Re T̂, Im T̂] for a chunk of k: (f, x k, p u x')."""
        view = table_pf[:, :, :, keys].unfold(4, self.columns, 1)  # (p, f, u, k, x, x')
        view = view.permute(1, 4, 3, 0, 2, 5)
        self.room("toeplitz", *view.shape, like=table_pf).copy_(view)
        return self.room("toeplitz", *self._toeplitz_shape(keys), like=table_pf)

    def _toeplitz_shape(self, keys: slice) -> tuple[int, int, int]:
        return self.frequencies, self.columns * (keys.stop - keys.start), 2 * self.intra_depth * self.columns

    def toeplitz_zeros(self, keys: slice, like: Tensor) -> Tensor:
        """For the gradient of :meth:`toeplitz`."""
        return self.room("toeplitz gradient", *self._toeplitz_shape(keys), like=like).zero_()

    def add_toeplitz(self, grad_table_pf: Tensor, grad: Tensor, keys: slice) -> None:
        """Add the gradient of :meth:`toeplitz` to where each entry came from."""
        target = grad_table_pf[:, :, :, keys]
        grad = grad.view(self.frequencies, self.columns, -1, 2, self.intra_depth, self.columns)
        grad = grad.permute(1, 3, 0, 4, 2, 5)  # (x, p, f, u, k, x')
        for x in range(self.columns):
            target[..., x : x + self.columns] += grad[x]

    def lambdas(self, toeplitz: Tensor, values: tuple[Tensor, Tensor], example: int) -> Tensor:
        """λp of an example for a chunk of k: (n, k, v), overwritten by the next call."""
        products = self.room("products", 2, *toeplitz.shape[:2], self.dim_value, like=toeplitz)
        for part, value in zip(products, values, strict=True):
            torch.bmm(toeplitz, self.of(value, example), out=part)
        rows = self.room("lambdas", self.rows, math.prod(products.shape[2:]), like=toeplitz)
        torch.mm(self.from_frequency, products.view(2 * self.frequencies, -1), out=rows)
        return rows.view(self.rows * self.columns, -1, self.dim_value)

    def lambdas_gradient(self, grad: Tensor, toeplitz: Tensor) -> Tensor:
        """Gradient of λ̂, (p, f, x k, v), from that of λp; overwritten by the next call."""
        spectrum = self.room("products", 2, *toeplitz.shape[:2], self.dim_value, like=toeplitz)
        torch.mm(self.from_frequency.T, grad.view(self.rows, -1), out=spectrum.view(2 * self.frequencies, -1))
        return spectrum

    def of(self, values: Tensor, example: int) -> Tensor:
        """An example's columns, (f, p u x', v)."""
        return values[:, :, example * self.dim_value : (example + 1) * self.dim_value]

    def chunks(self) -> Iterator[slice]:
        """Which k go through together."""
        for first in range(0, self.dim_key, self.chunk):
            yield slice(first, min(first + self.chunk, self.dim_key))

    def room(self, name: str, *shape: int, like: Tensor) -> Tensor:
        """Memory that all chunks share."""
        if name not in self.rooms:
            self.rooms[name] = scratch(like, math.prod(shape))
        return room(self.rooms[name], shape)


def forward(query: Tensor, value: Tensor, table: Tensor, problem: GridProblem) -> Tensor:
    """Position term, (b, h, n, v); arguments as for ``query_first.forward``."""
    layout = _Layout(problem, query.device)
    queries, values = layout.per_example(query), layout.values_by_frequency(value)
    table_pf = layout.table_by_frequency(table)
    out = queries.new_zeros(*queries.shape[:3], layout.dim_value)
    for keys in layout.chunks():
        toeplitz = layout.toeplitz(table_pf, keys)
        for example, (out_nhv, query_nhk) in enumerate(zip(out, queries[..., keys], strict=True)):
            out_nhv.baddbmm_(query_nhk, layout.lambdas(toeplitz, values, example))
    return layout.from_per_example(out)


def backward(
    grad: Tensor, query: Tensor, value: Tensor, table: Tensor, problem: GridProblem
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, value and table; arguments as for ``query_first.backward``."""
    layout = _Layout(problem, query.device)
    queries, grads = layout.per_example(query), layout.per_example(grad)
    values, table_pf = layout.values_by_frequency(value), layout.table_by_frequency(table)
    grad_queries, grad_table_pf = torch.empty_like(queries), scratch(table_pf, *table_pf.shape).zero_()
    grad_values = tuple(scratch(part, *part.shape).zero_() for part in values)
    for keys in layout.chunks():
        toeplitz = layout.toeplitz(table_pf, keys)
        grad_toeplitz = layout.toeplitz_zeros(keys, table_pf)
        for example, grad_nhv in enumerate(grads):
            query_nhk = queries[example, ..., keys]
            # λp gives the gradient of q, then makes place for its own.
            lambdas = layout.lambdas(toeplitz, values, example)
            grad_queries[example, ..., keys] = torch.bmm(grad_nhv, lambdas.transpose(1, 2))
            torch.bmm(query_nhk.transpose(1, 2), grad_nhv, out=lambdas)
            for part, value_fcv, total in zip(
                layout.lambdas_gradient(lambdas, toeplitz), values, grad_values, strict=True
            ):
                grad_toeplitz.baddbmm_(part, layout.of(value_fcv, example).transpose(1, 2))
                layout.of(total, example).baddbmm_(toeplitz.transpose(1, 2), part)
        layout.add_toeplitz(grad_table_pf, grad_toeplitz, keys)
    return (
        layout.from_per_example(grad_queries),
        layout.values_gradient(*grad_values),
        layout.table_gradient(grad_table_pf),
    )
