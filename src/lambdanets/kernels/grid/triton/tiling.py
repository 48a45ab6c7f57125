"""Cut of a problem into tiles: the arguments of the kernels, as plain integers.

A tile is B places of one row of the grid; see ``kernels.py`` for what a program does with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from lambdanets.kernels.grid.contract import GridProblem

__all__ = ["Config", "QueryFirstTiling", "as_image", "candidates", "power_of_2", "tile"]

# Channels of the values that one program holds at most; deeper values go through in parts.
MAX_DEPTH = 128
# Tensor cores multiply depths of 16; the places of a tile are one of them.
LEAST_DEPTH = LEAST_BLOCK = 16
# Heads in one group of rows.
MAX_HEADS = 4


@dataclass(frozen=True)
class Config:
    """One way to run a kernel.

    Args:
        block: places of a row in a tile, 16 or more and a power of 2.
        warps: warps of a program.
        stages: loads in flight, in Triton's software pipeline.
    """

    block: int
    warps: int
    stages: int


@dataclass(frozen=True)
class QueryFirstTiling:
    """A problem cut into tiles of one size.

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


def as_image(problem: GridProblem) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Grid, extents and origin of a problem of rank 1 or 2; a sequence is an image of one row."""
    if len(problem.grid) == 1:
        return (1, problem.grid[0]), (1, problem.extents[0]), (0, problem.origin[0])
    return (
        (problem.grid[0], problem.grid[1]),
        (problem.extents[0], problem.extents[1]),
        (problem.origin[0], problem.origin[1]),
    )


def tile(problem: GridProblem, block: int) -> QueryFirstTiling:
    """Cut a problem of rank 1 or 2 into tiles of ``block`` places."""
    (height, width), extents, origin = as_image(problem)
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


def power_of_2(least: int) -> int:
    """The smallest power of 2 that is at least ``least``."""
    return 1 << max(0, least - 1).bit_length()


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def _relative_tiles(extent: int, block: int) -> int:
    """Context tiles that a query tile sees when they start at its first offset."""
    return _ceil_div(extent + block - 1, block)
