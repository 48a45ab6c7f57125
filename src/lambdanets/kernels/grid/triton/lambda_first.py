"""Lambda first on a GPU: λp of a tile of queries is one product with E by computed addresses, λp never in memory.

Rows of the product are (n, k), its depth the context, its columns the value depth of several examples. So it is one
large product for tensor cores, b·n·m·u·k·v multiply-adds without a shift of scores, which ``query_first.py`` needs for
b·h·n·m·u·(2k + v): the shallower the values, the better. Queries are applied to λp in registers; backward makes it
again and keeps nothing. ``docs/gpu.md`` derives tiles, bytes and operations.

Inputs may have any strides; where the depth does not lie together they are copied once, as in ``query_first.py``.
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
    ADDRESSES,
    check_call,
    current,
    depth_last,
    example_elements,
    offsets_first,
    run,
    splits,
)
from lambdanets.kernels.grid.triton.tiling import LEAST_DEPTH, Config, power_of_2

__all__ = ["KERNEL", "LambdaFirstTiling", "candidates", "tile"]

# Rows (n, k) and columns (b, v) of a product.
ROWS = COLUMNS = 128


@dataclass(frozen=True)
class LambdaFirstTiling:
    """A problem cut into tiles.

    Args:
        positions: queries of a tile.
        key_depth: k, padded; their product is ``ROWS``.
        examples: that share a tile.
        value_depth: v, padded; their product is ``COLUMNS``, or less for a small batch.
        block: context positions of a step.
    """

    positions: int
    key_depth: int
    examples: int
    value_depth: int
    block: int

    def constants(self) -> dict[str, Any]:
        """Compile-time arguments of the kernels."""
        return {
            "NB": self.positions,
            "KP": self.key_depth,
            "BB": self.examples,
            "DP": self.value_depth,
            "BM": self.block,
        }

    def bands(self, rows: int, columns: int) -> tuple[int, int, int]:
        """Cover of a table by the table gradient's steps of ``block`` places.

        Returns:
            Bands of rows, windows of columns (from the first offset of a tile's first query to the last of its last),
            and columns of a window; as many of each as makes the fewest steps.
        """
        widths = [1 << power for power in range(self.block.bit_length()) if 1 << power >= LEAST_DEPTH]
        options = [
            (-(-rows * width // self.block), -(-(columns + self.positions - 1) // width), width) for width in widths
        ]
        return min(options, key=lambda option: (option[0] * option[1], -option[2]))


def tile(problem: GridProblem, block: int) -> LambdaFirstTiling:
    """Cut a problem into tiles with ``block`` context positions a step."""
    key_depth, value_depth = power_of_2(problem.dim_key), power_of_2(problem.dim_value)
    examples = min(COLUMNS // value_depth, power_of_2(problem.batch))
    while examples > 1 and examples * example_elements(problem) >= ADDRESSES:
        examples //= 2
    # A product has 16 columns at least; depth is padded to them, since examples are counted in 32 bits.
    return LambdaFirstTiling(ROWS // key_depth, key_depth, examples, max(value_depth, LEAST_DEPTH // examples), block)


def candidates(problem: GridProblem, for_gradient: bool = False) -> tuple[Config, ...]:
    """Configurations to try for a problem, the most promising first.

    Args:
        problem: its sizes.
        for_gradient: of value or table, where more context positions a step share the gradient of λp that is made for
            it; else of the output or the queries.
    """
    if problem.dtype == torch.float32:  # twice the registers and the shared memory
        return Config(16, 8, 1), Config(16, 4, 1)
    if for_gradient:
        return Config(128, 8, 1), Config(128, 16, 1), Config(64, 8, 1), Config(32, 8, 1)
    return Config(32, 8, 3), Config(32, 8, 2), Config(32, 4, 2), Config(32, 4, 1)


def check(problem: GridProblem) -> str | None:
    """Return the reason why this kernel cannot run on ``problem``, or None."""
    reason = check_call(problem)
    if reason is not None:
        return reason
    if problem.dim_key > ROWS or problem.dim_value > COLUMNS:
        return (
            f"its tiles hold queries up to a depth of {ROWS} and values up to {COLUMNS}, and these have "
            f"{problem.dim_key} and {problem.dim_value}"
        )
    return None


def work(problem: GridProblem, backward: bool) -> Work:
    """Multiply-adds of whole tiles, loads of E and what is done beside tensor cores in loads, and launches."""
    (height, width), (rows, columns), _ = problem.as_image()
    tiling = tile(problem, candidates(problem)[0].block)
    tiles = -(-problem.num_positions // tiling.positions)
    groups = -(-problem.batch // tiling.examples)
    across = min(width, columns + tiling.positions - 1) if tiling.positions < width else width
    context = min(height, rows + tiling.positions // width) * across
    context = -(-context // tiling.block) * tiling.block * problem.intra_depth
    operand = tiles * groups * ROWS * context
    products = operand * tiling.examples * tiling.value_depth
    # A multiply-add outside of tensor cores takes a quarter of a load.
    apply = tiles * groups * ROWS * tiling.examples * tiling.value_depth * problem.heads // 4
    if not backward:
        return Work(products, operand + apply, 3)
    tiling = tile(problem, candidates(problem, for_gradient=True)[0].block)
    bands, windows, _ = tiling.bands(rows, columns)
    again = -(-problem.num_positions // tiling.block) + bands * windows
    return Work(3 * products, 2 * operand + apply * (1 + problem.intra_depth * again), 12)


def forward(inputs: GridInputs, workspace: Workspace) -> Tensor:
    """Forward pass, as in ``contract.py``."""
    from lambdanets.kernels.grid.triton.lambda_kernels import lambda_output_kernel
    from lambdanets.kernels.grid.triton.tuning import run_best

    problem = inputs.problem
    examples = tile(problem, 1).examples
    with current(inputs.query):
        out = empty_in_order(inputs.query, problem.dim_value)
        q, v = depth_last(inputs.query, examples), depth_last(inputs.value, examples)
        tensors = q, v, offsets_first(inputs.table), out
        launch = functools.partial(_launch, lambda_output_kernel, tensors, problem, _programs_of_queries)
        run_best("lambda output", problem, candidates(problem), launch)
        return out


def backward(grad: Tensor, inputs: GridInputs, workspace: Workspace) -> Gradients:
    """Backward pass, as in ``contract.py``."""
    from lambdanets.kernels.grid.triton.lambda_kernels import lambda_query_gradient_kernel, lambda_value_gradient_kernel
    from lambdanets.kernels.grid.triton.tuning import run_best

    problem, configs = inputs.problem, candidates(inputs.problem, for_gradient=True)
    examples = tile(problem, 1).examples
    grad_query = empty_in_order(inputs.query, problem.dim_key)
    grad_value = empty_in_order(inputs.value, problem.dim_value)
    with current(inputs.query):
        g, q, v = (depth_last(tensor, examples) for tensor in (grad, inputs.query, inputs.value))
        offsets = offsets_first(inputs.table)
        tensors = g, v, offsets, grad_query
        launch = functools.partial(_launch, lambda_query_gradient_kernel, tensors, problem, _programs_of_queries)
        run_best("lambda query", problem, candidates(problem), launch)
        tensors = g, q, offsets, grad_value
        launch = functools.partial(_launch, lambda_value_gradient_kernel, tensors, problem, _programs_of_context)
        run_best("lambda value", problem, configs, launch)
        grad_table = run_best("lambda table", problem, configs, functools.partial(_table_gradient, g, q, v, problem))
        return grad_query, grad_value, grad_table.reshape(inputs.table.shape), None


def _programs_of_queries(problem: GridProblem, tiling: LambdaFirstTiling) -> tuple[int, int]:
    """Number of programs, one for each tile of queries and group of examples, and number of tiles."""
    tiles = -(-problem.num_positions // tiling.positions)
    return tiles * -(-problem.batch // tiling.examples), tiles


def _programs_of_context(problem: GridProblem, tiling: LambdaFirstTiling) -> tuple[int, int]:
    """Number of programs, one for each block of the context, u and group of examples, and number of blocks."""
    tiles = -(-problem.num_positions // tiling.block)
    return tiles * problem.intra_depth * -(-problem.batch // tiling.examples), tiles


def _launch(
    kernel: Any,
    tensors: tuple[Tensor, Tensor, Tensor, Tensor],
    problem: GridProblem,
    programs_of: Callable[[GridProblem, LambdaFirstTiling], tuple[int, int]],
    config: Config,
) -> None:
    """Launch the kernel of the output, or of the gradient of queries or values.

    Args:
        kernel: one of ``lambda_kernels.py``.
        tensors: its two operands, the table with its offsets first, and what it writes.
        problem: the shape of the call.
        programs_of: the number of programs and of tiles for a tiling.
        config: context positions of a step, warps and stages.
    """
    left, right, _, out = tensors
    tiling = tile(problem, config.block)
    programs, tiles = programs_of(problem, tiling)
    strides = (*left.stride(), *right.stride(), *out.stride())
    run(kernel, programs, tensors, strides, (*_sizes(problem), tiles), tiling.constants(), config)


def _table_gradient(grad: Tensor, query: Tensor, value: Tensor, problem: GridProblem, config: Config) -> Tensor:
    """(u, k, rows, columns) in float32, whose sum over examples has one order."""
    from lambdanets.kernels.grid.triton.lambda_kernels import lambda_table_gradient_kernel

    _, (rows, columns), _ = problem.as_image()
    tiling = tile(problem, config.block)
    bands, windows, width = tiling.bands(rows, columns)
    each = problem.intra_depth * bands * windows
    count = splits(-(-problem.batch // tiling.examples), each)
    tile_shape = (tiling.positions, tiling.key_depth, tiling.block // width, width)
    shape = (count, problem.intra_depth, bands, windows, *tile_shape)
    partial = torch.empty(shape, dtype=torch.float32, device=grad.device)
    run(
        lambda_table_gradient_kernel,
        count * each,
        (grad, query, value, partial),
        (*grad.stride(), *query.stride(), *value.stride()),
        (*_sizes(problem), bands, windows, count),
        {**tiling.constants(), "BX": width},
        config,
    )
    return _diagonals(partial.sum(0), columns)[:, : problem.dim_key, :rows]


def _diagonals(windows: Tensor, columns: int) -> Tensor:
    """(u, bands, windows, n, k, rows, m) -> (u, k, bands rows, columns): query n and context m give to column m - n."""
    line = windows.permute(3, 0, 4, 1, 5, 2, 6).flatten(5).flatten(3, 4).contiguous()
    shifted = (line.stride(0) + 1, *line.stride()[1:])
    return line.as_strided((*line.shape[:4], columns), shifted).sum(0)


def _sizes(problem: GridProblem) -> tuple[int, ...]:
    """Arguments from ``batch`` to ``OX``, which all kernels have."""
    grid, extents, origin = problem.as_image()
    depths = (problem.intra_depth, problem.dim_key, problem.dim_value)
    return (problem.batch, problem.heads, *depths, *grid, *extents, *origin)


KERNEL = GridKernel("lambda_first_triton", forward, backward, check, work, device="cuda", half=True)
