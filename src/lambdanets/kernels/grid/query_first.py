"""Query first ("attention order"): S = q·E, then y = S·V. No softmax stands between, so S is cut into rows.

For one row of the grid, the scores of all its queries with all that the row sees are one batched product with a slice
of the Toeplitz operand (see ``toeplitz.py``), a batch for each place x of the row:

    S_y[x, (b, h), (y', u, x')] = q[x, (b, h)] · T[x][(y' - y, u, x'), :].

One copy puts the examples in front, and one more batched product with V finishes the row: y = S·V. The content term
q·λc is added while the row is in the cache, then one copy takes it to its place in the output. Backward makes S again.
A sequence is folded into an image; a small grid of any rank goes through as one row. A large batch goes through some
examples at a time, so that S of a row stays small whatever the batch is.

Multiply-adds: b·h·n·m·u·(k + v); kept for backward: the inputs.

Axes in names: y row and x place of a query, b batch, h heads, c context places of a row (rows, u, places),
k query depth, v value depth, u intra-depth.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lambdanets.kernels.autograd.layout import empty_in_order
from lambdanets.kernels.autograd.memory import Workspace, front_of
from lambdanets.kernels.grid.contract import Gradients, GridInputs, GridKernel, GridProblem, Work
from lambdanets.kernels.grid.folding import Folding, fold, in_one_row
from lambdanets.kernels.grid.toeplitz import Toeplitz, elements

__all__ = ["KERNEL"]

# The operand grows with the square of the number of positions along the axes after the first.
MAX_ELEMENTS = 1 << 24
# Elements of the operand up to which a grid goes through as one row, a depth below LEAST_DEPTH counted as that: the
# operand's index is kept for each shape.
ONE_ROW_ELEMENTS = 1 << 20
LEAST_DEPTH = 16
# Elements that S of a row may have, unless a single example has more.
SCORE_ELEMENTS = 1 << 21


def _fits_one_row(problem: GridProblem) -> bool:
    depth = max(1, problem.dim_key)
    return elements(in_one_row(problem)) // depth * max(depth, LEAST_DEPTH) <= ONE_ROW_ELEMENTS


def _arrange(problem: GridProblem) -> GridProblem:
    return in_one_row(problem) if _fits_one_row(problem) else fold(problem)


def check(problem: GridProblem) -> str | None:
    """Return the reason why this kernel cannot run on ``problem``, or None."""
    count = elements(_arrange(problem))
    if count > MAX_ELEMENTS:
        return f"its Toeplitz operand would have {count:,} elements, more than {MAX_ELEMENTS:,}"
    return None


@functools.lru_cache(maxsize=1024)
def _examples(problem: GridProblem) -> int:
    """Number of examples that are computed at a time."""
    image = _arrange(problem)
    rows = image.grid[0]
    seen = min(image.extents[0], rows) * image.intra_depth * (image.num_positions // rows) ** 2
    return max(1, min(problem.batch, SCORE_ELEMENTS // max(1, problem.heads * seen)))


def work(problem: GridProblem, backward: bool) -> Work:
    """Multiply-adds, elements of S and of the Toeplitz operand, and calls."""
    parts = math.ceil(problem.batch / _examples(problem))
    problem = _arrange(problem)
    rows = problem.grid[0]
    context = min(problem.extents[0], rows) * problem.num_positions // rows * problem.intra_depth
    scores = problem.batch * problem.heads * problem.num_positions * context
    operand = elements(problem)
    both = problem.dim_key + problem.dim_value
    if backward:
        return Work(scores * (2 * both + problem.dim_key), 4 * scores + 4 * operand * parts, (20 + rows * 14) * parts)
    return Work(scores * both, 2 * scores + operand * parts, (14 + rows * 6) * parts)


@dataclass(frozen=True)
class _QueryFirstStep:
    """A row of queries.

    Args:
        row: its number.
        offsets: of the rows that it sees, as entries of the operand.
        context: places of those rows among all values.
        span: positions of its queries; the last row of a sequence may not be full.
    """

    row: int
    offsets: slice
    context: slice
    span: slice


class _QueryFirstLayout:
    """Sizes of one call, and its tensors by row."""

    def __init__(self, problem: GridProblem):
        self.batch, self.heads = problem.batch, problem.heads
        self.dim_key, self.dim_value, self.intra_depth = problem.dim_key, problem.dim_value, problem.intra_depth
        self.folding = Folding(problem, one_row=_fits_one_row(problem))
        self.toeplitz = Toeplitz(self.folding.image)
        self.rows, self.row_size = self.folding.image.grid[0], math.prod(self.folding.image.grid[1:])
        self.steps = tuple(self._steps())
        self.most_context = max(step.context.stop - step.context.start for step in self.steps)

    def operand(self, table: Tensor, workspace: Workspace) -> Tensor:
        """T of the call's table, (x, y, u, c, k)."""
        return self.toeplitz.expand(self.folding.table(table), workspace)

    def table_gradient(self, grad: Tensor) -> Tensor:
        """Undo :meth:`operand`."""
        return self.folding.table_gradient(self.toeplitz.collect(grad))

    def queries_by_place(self, query: Tensor, workspace: Workspace) -> Tensor:
        """(b, h, n, k) -> (y, x, b h, k)."""
        return workspace.contiguous(self._by_row(query).permute(2, 3, 0, 1, 4)).flatten(2, 3)

    def queries_by_example(self, query: Tensor, workspace: Workspace) -> Tensor:
        """(b, h, n, k) -> (y, b, h x, k)."""
        return workspace.contiguous(self._by_row(query).permute(2, 0, 1, 3, 4)).flatten(2, 3)

    def queries_gradient(self, by_place: Tensor, by_example: Tensor | None, query: Tensor) -> Tensor:
        """Undo both, in the query's memory order."""
        out = empty_in_order(query, self.dim_key)
        split = by_place.unflatten(2, (self.batch, self.heads)).permute(2, 3, 0, 1, 4)
        out.copy_(self.folding.cut(split.flatten(2, 3)))
        if by_example is not None:
            split = by_example.unflatten(2, (self.heads, self.row_size)).permute(1, 2, 0, 3, 4)
            out += self.folding.cut(split.flatten(2, 3))
        return out

    def values(self, value: Tensor, workspace: Workspace) -> Tensor:
        """(b, u, n, v) -> (b, y u x, v), as it lies in memory where that is possible."""
        if self.intra_depth == 1:
            return self.folding.padded(value)[:, 0]
        return workspace.contiguous(self._by_row(value).transpose(1, 2)).flatten(1, 3)

    def values_gradient(self, grad_bvc: Tensor) -> Tensor:
        """Undo :meth:`values`, from (b, v, y u x)."""
        if self.intra_depth == 1:
            return self.folding.cut(grad_bvc[:, None].transpose(2, 3))
        rows = grad_bvc.unflatten(2, (self.rows, self.intra_depth, self.row_size)).permute(0, 3, 2, 4, 1)
        return self.folding.cut(rows.flatten(2, 3))

    def _by_row(self, tensor: Tensor) -> Tensor:
        """(b, c, n, depth) -> (b, c, y, x, depth)."""
        return self.folding.padded(tensor).unflatten(2, (self.rows, self.row_size))

    def _steps(self) -> Iterator[_QueryFirstStep]:
        """Each row of queries with what it sees."""
        extent, origin = self.folding.image.extents[0], self.folding.image.origin[0]
        each = self.intra_depth * self.row_size
        for row in range(self.rows):
            low, high = max(0, row - origin), min(self.rows, row + extent - origin)
            first, start = low - row + origin, row * self.row_size
            yield _QueryFirstStep(
                row,
                offsets=slice(first, first + high - low),
                context=slice(low * each, high * each),
                span=slice(start, min(start + self.row_size, self.folding.num_positions)),
            )


# Geometry alone, so calls of one shape share it.
_layout = functools.lru_cache(maxsize=64)(_QueryFirstLayout)


class _QueryFirstScores:
    """S of one row after the other, in scratch buffers that all of them share."""

    def __init__(self, layout: _QueryFirstLayout, like: Tensor, workspace: Workspace):
        self.places = (layout.row_size, layout.batch, layout.heads)
        count = math.prod(self.places) * layout.most_context
        self.by_place, self.by_example = workspace.scratch(like, count), workspace.scratch(like, count)

    def make(self, query_xak: Tensor, operand_xck: Tensor) -> Tensor:
        """(b, h x, c)."""
        by_place, by_example = self._views(operand_xck.shape[1])
        torch.bmm(query_xak, operand_xck.transpose(1, 2), out=by_place.flatten(1, 2))
        by_example.copy_(by_place.permute(1, 2, 0, 3))
        return by_example.flatten(1, 2)

    def make_gradient(self, grad_bav: Tensor, value_bcv: Tensor) -> Tensor:
        """(x, b h, c); S is overwritten."""
        by_place, by_example = self._views(value_bcv.shape[1])
        torch.bmm(grad_bav, value_bcv.transpose(1, 2), out=by_example.flatten(1, 2))
        by_place.copy_(by_example.permute(2, 0, 1, 3))
        return by_place.flatten(1, 2)

    def _views(self, context: int) -> tuple[Tensor, Tensor]:
        x, b, h = self.places
        return front_of(self.by_place, (x, b, h, context)), front_of(self.by_example, (b, h, x, context))


class _ContentGradients:
    """Gradients of the content term, row after row.

    Args:
        layout: of the call.
        query: (b, h, n, k).
        content: λc, (b, k, v), or None where there is no such term: then both gradients are None.
        workspace: scratch memory for the gradient of the queries.
    """

    def __init__(self, layout: _QueryFirstLayout, query: Tensor, content: Tensor | None, workspace: Workspace):
        self.content = content
        self.grad_queries = self.grad_content = None
        if content is not None:
            self.given = layout.queries_by_example(query, workspace)
            self.grad_queries, self.grad_content = (
                workspace.scratch(query, *self.given.shape),
                torch.zeros_like(content),
            )

    def add(self, row: int, grad_bav: Tensor) -> None:
        """Add the gradients of a row."""
        if self.content is None or self.grad_queries is None or self.grad_content is None:
            return
        torch.bmm(grad_bav, self.content.transpose(1, 2), out=self.grad_queries[row])
        self.grad_content.baddbmm_(self.given[row].transpose(1, 2), grad_bav)


def forward(inputs: GridInputs, workspace: Workspace) -> Tensor:
    """Forward pass, as in ``contract.py``."""
    out, examples = empty_in_order(inputs.query, inputs.problem.dim_value), _examples(inputs.problem)
    if examples >= inputs.problem.batch:
        _forward_into(out, inputs, workspace)
        return out
    for part, some in inputs.parts(examples):
        with workspace:
            _forward_into(out[part], some, workspace)
    return out


def _forward_into(out: Tensor, inputs: GridInputs, workspace: Workspace) -> None:
    layout = _layout(inputs.problem)
    query, value, content = inputs.query, inputs.value, inputs.content
    operand, values = layout.operand(inputs.table, workspace), layout.values(value, workspace)
    by_place = layout.queries_by_place(query, workspace)
    by_example = None if content is None else layout.queries_by_example(query, workspace)
    scores = _QueryFirstScores(layout, value, workspace)
    row_bav = workspace.scratch(value, layout.batch, layout.heads * layout.row_size, layout.dim_value)
    for step in layout.steps:
        y = step.row
        scores_bac = scores.make(by_place[y], operand[:, step.offsets].flatten(1, 3))
        torch.bmm(scores_bac, values[:, step.context], out=row_bav)
        if content is not None and by_example is not None:
            row_bav.baddbmm_(by_example[y], content)
        target = out[:, :, step.span]
        target.copy_(row_bav.unflatten(1, (layout.heads, -1))[:, :, : target.shape[2]])


def backward(grad: Tensor, inputs: GridInputs, workspace: Workspace) -> Gradients:
    """Backward pass, as in ``contract.py``."""
    examples = _examples(inputs.problem)
    if examples >= inputs.problem.batch:
        return _gradients(grad, inputs, workspace)
    parts = []
    for part, some in inputs.parts(examples):
        with workspace:
            parts.append(_gradients(grad[part], some, workspace))
    queries, values, tables, contents = zip(*parts, strict=True)
    grad_content = None if inputs.content is None else torch.cat(contents)
    return _together(queries), _together(values), torch.stack(tables).sum(0), grad_content


def _together(parts: Sequence[Tensor]) -> Tensor:
    """Examples that went through apart, (b, c, n, depth), depth before the positions in memory."""
    return torch.cat([part.transpose(2, 3) for part in parts]).transpose(2, 3)


def _gradients(grad: Tensor, inputs: GridInputs, workspace: Workspace) -> Gradients:
    layout, scratch, query, value = _layout(inputs.problem), workspace.scratch, inputs.query, inputs.value
    operand, values = layout.operand(inputs.table, workspace), layout.values(value, workspace)
    by_place = layout.queries_by_place(query, workspace)
    grad_by_place, grad_operand = scratch(by_place, *by_place.shape), scratch(operand, *operand.shape).zero_()
    grad_values = value.new_zeros(layout.batch, layout.dim_value, values.shape[1])
    of_content = _ContentGradients(layout, query, inputs.content, workspace)
    scores = _QueryFirstScores(layout, value, workspace)
    row_bhxv = scratch(value, layout.batch, layout.heads, layout.row_size, layout.dim_value)
    for step in layout.steps:
        y, length = step.row, step.span.stop - step.span.start
        operand_xck, value_bcv = operand[:, step.offsets].flatten(1, 3), values[:, step.context]
        row_bhxv[:, :, :length] = grad[:, :, step.span]
        if length < layout.row_size:
            row_bhxv[:, :, length:] = 0
        grad_bav = row_bhxv.flatten(1, 2)
        of_content.add(y, grad_bav)
        grad_values[:, :, step.context].baddbmm_(grad_bav.transpose(1, 2), scores.make(by_place[y], operand_xck))
        grad_xac = scores.make_gradient(grad_bav, value_bcv)
        torch.bmm(grad_xac, operand_xck, out=grad_by_place[y])
        grad_operand[:, step.offsets].flatten(1, 3).baddbmm_(grad_xac.transpose(1, 2), by_place[y])
    return (
        layout.queries_gradient(grad_by_place, of_content.grad_queries, query),
        layout.values_gradient(grad_values),
        layout.table_gradient(grad_operand),
        of_content.grad_content,
    )


# A folded sequence has places without a position, whose value is 0 and whose entries of the table are not.
KERNEL = GridKernel("query_first", forward, backward, check, work, adds_content=True, spreads_nonfinite_entries=True)
