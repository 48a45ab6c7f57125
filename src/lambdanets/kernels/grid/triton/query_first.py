"""Query first on a GPU: S = q·E and y = S·V for one tile after the other, S never in memory.

Offsets along a row are few, so P = q·R over all offsets of two tiles is a matrix product, and S is P with each row
shifted by its place. No softmax stands between, so there is no running maximum and nothing to rescale; backward makes
S again and keeps nothing. ``docs/gpu.md`` derives tiles, bytes and operations.

Inputs may have any strides. Where the depth does not lie together (channels in front of the positions), tensors that
are read again and again are copied once: loads of single 16-bit numbers would take longer than everything else.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lambdanets.kernels.autograd.layout import empty_in_order
from lambdanets.kernels.autograd.memory import Workspace
from lambdanets.kernels.grid.contract import Gradients, GridInputs, GridKernel, GridProblem, Work
from lambdanets.kernels.grid.triton.launch import (
    addressable,
    check_call,
    current,
    depth_last,
    offsets_first,
    run,
    splits,
)
from lambdanets.kernels.grid.triton.tiling import LEAST_BLOCK, LEAST_DEPTH, Config, power_of_2

__all__ = ["KERNEL", "QueryFirstTiling", "candidates", "tile"]

# Channels of the values that one program holds at most; deeper values go through in parts.
MAX_DEPTH = 128
# Heads in one group of rows.
MAX_HEADS = 4

# The most bytes of k numbers: a program holds a table's 2B offsets and its queries with the whole depth in shared
# memory, 640 bytes for each k in float32 where it takes the least (``scripts/collect_ahead.py``), of the 227 KiB that
# an H100 has.
KEY_BYTES = 1024


@dataclass(frozen=True)
class QueryFirstTiling:
    """A problem cut into tiles of one size, each B places of one row of the grid; see ``query_kernels.py``.

    Args:
        height: rows of the grid; 1 for a sequence.
        width: places of a row.
        extents: of the table, (rows, columns).
        origin: offset 0 in the table.
        block: places of a tile.
        heads: heads of one group of rows.
        rows_paired: True if the two groups of a program are two rows of the grid; else two sets of heads.
        relative: True if context tiles start at the first offset of a query tile; else they lie on the grid's.
        key_depth: k, padded.
        value_depth: channels of the values in a program, padded.
    """

    height: int
    width: int
    extents: tuple[int, int]
    origin: tuple[int, int]
    block: int
    heads: int
    rows_paired: bool
    relative: bool
    key_depth: int
    value_depth: int

    @property
    def tiles_x(self) -> int:
        """Tiles of a row."""
        return _ceil_div(self.width, self.block)

    @property
    def tiles(self) -> int:
        """Tiles of queries that one program each takes: a pair of rows is one."""
        return self.tiles_x * _ceil_div(self.height, 2 if self.rows_paired else 1)

    @property
    def heads_per_program(self) -> int:
        """Heads of both groups."""
        return self.heads if self.rows_paired else 2 * self.heads

    @property
    def context_start(self) -> int:
        """Start of the context tiles, counted from a query tile."""
        return -self.origin[1] if self.relative else 0

    @property
    def query_start(self) -> int:
        """Start of the query tiles, counted from a context tile."""
        return -(self.extents[1] - 1 - self.origin[1]) if self.relative else 0

    @property
    def first_window(self) -> int:
        """Smallest distance of a context tile from ``context_start``, in tiles."""
        return 0 if self.relative else 1 - self.tiles_x

    @property
    def windows(self) -> int:
        """Number of such distances."""
        return _relative_tiles(self.extents[1], self.block) if self.relative else 2 * self.tiles_x - 1

    def constants(self) -> dict[str, Any]:
        """Compile-time arguments of the kernels."""
        return {
            "B": self.block,
            "HB": self.heads,
            "KP": self.key_depth,
            "DP": self.value_depth,
            "GY": int(self.rows_paired),
            "GH": 0 if self.rows_paired else self.heads,
        }


def tile(problem: GridProblem, block: int) -> QueryFirstTiling:
    """Cut a problem of rank 1 or 2 into tiles of ``block`` places."""
    (height, width), extents, origin = problem.as_image()
    heads = min(MAX_HEADS, power_of_2(problem.heads))
    rows_paired = height > 1 and problem.heads <= MAX_HEADS
    return QueryFirstTiling(
        height,
        width,
        extents,
        origin,
        block,
        heads if rows_paired else max(1, min(MAX_HEADS, power_of_2(problem.heads) // 2)),
        rows_paired,
        # Fewer tiles, then, than lie on the whole row.
        relative=_relative_tiles(extents[1], block) < _ceil_div(width, block),
        key_depth=max(LEAST_DEPTH, power_of_2(problem.dim_key)),
        value_depth=min(MAX_DEPTH, max(LEAST_DEPTH, power_of_2(problem.dim_value))),
    )


def candidates(problem: GridProblem) -> tuple[Config, ...]:
    """Configurations to try for a problem, the most promising first.

    They are the ones that keep (nearly) everything in registers when they are compiled
    (``scripts/collect_ahead.py``). They have not been timed on a GPU.
    """
    if problem.dtype == torch.float32:  # twice the registers and the shared memory
        return Config(16, 8, 1), Config(16, 4, 2), Config(16, 4, 1)
    narrow = (Config(16, 4, 3), Config(16, 4, 2), Config(16, 4, 1))
    return narrow if problem.grid[-1] <= LEAST_BLOCK else (Config(32, 8, 2), Config(32, 4, 2), *narrow)


def check(problem: GridProblem) -> str | None:
    """Return the reason why this kernel cannot run on ``problem``, or None."""
    deepest, depth = KEY_BYTES // problem.dtype.itemsize, problem.dim_key
    reason = check_call(problem)
    if reason is None and depth > deepest:
        return f"its programs hold queries up to a depth of {deepest} in this precision, and these have {depth}"
    return reason


def work(problem: GridProblem, backward: bool) -> Work:
    """Multiply-adds of whole tiles, elements that are shifted, and launches."""
    tiling = tile(problem, candidates(problem)[0].block)
    across = tiling.windows if tiling.relative else tiling.tiles_x
    reach = min(tiling.extents[0], tiling.height) * across * tiling.block
    rows = problem.batch * tiling.tiles_x * tiling.block * tiling.height
    scores = rows * max(problem.heads, tiling.heads_per_program) * reach * problem.intra_depth
    depth = 2 * tiling.key_depth + tiling.value_depth
    return Work(scores * depth * (3 if backward else 1), scores * (5 if backward else 1), 12 if backward else 3)


def forward(inputs: GridInputs, workspace: Workspace) -> Tensor:
    """Forward pass, as in ``contract.py``."""
    from lambdanets.kernels.grid.triton.query_kernels import output_kernel
    from lambdanets.kernels.grid.triton.tuning import run_best

    query, problem = inputs.query, inputs.problem
    out = empty_in_order(query, problem.dim_value)
    with current(query):
        tensors = addressable(query), depth_last(inputs.value), offsets_first(inputs.table), out
        launch = functools.partial(_launch, output_kernel, tensors, problem, _output_programs)
        run_best("output", problem, candidates(problem), launch)
    return out


def backward(grad: Tensor, inputs: GridInputs, workspace: Workspace) -> Gradients:
    """Backward pass, as in ``contract.py``."""
    from lambdanets.kernels.grid.triton.query_kernels import query_gradient_kernel, value_gradient_kernel
    from lambdanets.kernels.grid.triton.tuning import run_best

    query, value, problem = inputs.query, inputs.value, inputs.problem
    grad_query, grad_value = empty_in_order(query, problem.dim_key), empty_in_order(value, problem.dim_value)
    with current(query):
        g, q, v = (depth_last(tensor) for tensor in (grad, query, value))
        offsets, configs = offsets_first(inputs.table), candidates(problem)
        tensors = g, v, offsets, grad_query
        launch = functools.partial(_launch, query_gradient_kernel, tensors, problem, _query_programs)
        run_best("query", problem, configs, launch)
        tensors = g, q, offsets, grad_value
        launch = functools.partial(_launch, value_gradient_kernel, tensors, problem, _value_programs)
        run_best("value", problem, configs, launch)
        grad_table = run_best("table", problem, configs, functools.partial(_table_gradient, g, q, v, problem))
        grad_table = grad_table.reshape(inputs.table.shape)
    return grad_query, grad_value, grad_table, None


def _relative_tiles(extent: int, block: int) -> int:
    """Context tiles that a query tile sees when they start at its first offset."""
    return _ceil_div(extent + block - 1, block)


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


@dataclass(frozen=True)
class _Programs:
    """Programs of a kernel.

    Args:
        count: how many.
        tiles: tiles of the grid, one program each for every example and part of heads or depth.
        start: start of the tiles that a program visits, counted from its own tile.
    """

    count: int
    tiles: int
    start: int


def _output_programs(problem: GridProblem, tiling: QueryFirstTiling) -> _Programs:
    heads, depths = _chunks(problem, tiling)
    return _Programs(problem.batch * heads * depths * tiling.tiles, tiling.tiles, tiling.context_start)


def _query_programs(problem: GridProblem, tiling: QueryFirstTiling) -> _Programs:
    heads, _ = _chunks(problem, tiling)
    return _Programs(problem.batch * heads * tiling.tiles, tiling.tiles, tiling.context_start)


def _value_programs(problem: GridProblem, tiling: QueryFirstTiling) -> _Programs:
    _, depths = _chunks(problem, tiling)
    tiles = tiling.tiles_x * tiling.height
    return _Programs(problem.batch * problem.intra_depth * depths * tiles, tiles, tiling.query_start)


def _launch(
    kernel: Any,
    tensors: tuple[Tensor, Tensor, Tensor, Tensor],
    problem: GridProblem,
    programs_of: Callable[[GridProblem, QueryFirstTiling], _Programs],
    config: Config,
) -> None:
    """Launch the kernel of the output, or of the gradient of queries or values.

    Args:
        kernel: one of ``query_kernels.py``.
        tensors: its two operands, the table with its offsets first, and what it writes.
        problem: the shape of the call.
        programs_of: the programs for a tiling.
        config: width of a tile, warps and stages.
    """
    left, right, _, out = tensors
    tiling = tile(problem, config.block)
    programs = programs_of(problem, tiling)
    run(
        kernel,
        programs.count,
        tensors,
        (*left.stride(), *right.stride(), *out.stride()),
        (*_sizes(problem, tiling), programs.start, tiling.tiles_x, programs.tiles, *_chunks(problem, tiling)),
        tiling.constants(),
        config,
    )


def _table_gradient(grad: Tensor, query: Tensor, value: Tensor, problem: GridProblem, config: Config) -> Tensor:
    """(u, k, rows, columns) in float32, whose sum over examples has one order."""
    from lambdanets.kernels.grid.triton.query_kernels import table_gradient_kernel

    tiling = tile(problem, config.block)
    heads, depths = _chunks(problem, tiling)
    each = problem.intra_depth * tiling.extents[0] * tiling.windows
    count = splits(problem.batch, each)
    shape = (count, problem.intra_depth, tiling.extents[0], tiling.windows, tiling.key_depth, 2 * config.block)
    partial = torch.empty(shape, dtype=torch.float32, device=grad.device)
    start = (tiling.context_start, tiling.first_window, tiling.windows, count)
    run(
        table_gradient_kernel,
        count * each,
        (grad, query, value, partial),
        (*grad.stride(), *query.stride(), *value.stride(), problem.batch),
        (*_sizes(problem, tiling), *start, heads, depths),
        tiling.constants(),
        config,
    )
    return _joined(partial.sum(0), tiling, problem.dim_key)


def _joined(windows: Tensor, tiling: QueryFirstTiling, dim_key: int) -> Tensor:
    """(u, rows, windows, k, 2B) -> (u, k, rows, columns): neighbouring windows share half of their columns."""
    u, rows, count, _, _ = windows.shape
    halves = windows[:, :, :, :dim_key].permute(0, 3, 1, 2, 4).unflatten(4, (2, tiling.block))
    line = windows.new_zeros(u, dim_key, rows, count + 1, tiling.block)
    line[:, :, :, :count] += halves[..., 0, :]
    line[:, :, :, 1:] += halves[..., 1, :]
    first = tiling.context_start + (tiling.first_window - 1) * tiling.block + 1 + tiling.origin[1]
    return line.flatten(3)[..., -first : tiling.extents[1] - first]


def _chunks(problem: GridProblem, tiling: QueryFirstTiling) -> tuple[int, int]:
    """Programs that share the heads, and parts of the value depth."""
    return -(-problem.heads // tiling.heads_per_program), -(-problem.dim_value // tiling.value_depth)


def _sizes(problem: GridProblem, tiling: QueryFirstTiling) -> tuple[int, ...]:
    """Arguments from ``heads`` to ``OX``, which all kernels have."""
    return (
        problem.heads,
        problem.intra_depth,
        problem.dim_key,
        problem.dim_value,
        tiling.height,
        tiling.width,
        *tiling.extents,
        *tiling.origin,
    )


# An entry of the table that is not finite reaches outputs beside the grid's border that do not see it. To take such
# entries out would take further launches at every call; ``lambda_apply`` names the exception instead.
KERNEL = GridKernel("query_first_triton", forward, backward, check, work, device="cuda", half=True)
