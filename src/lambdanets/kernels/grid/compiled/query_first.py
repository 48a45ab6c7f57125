"""Query first, compiled: S = q·E for one query, four heads and a part of the context at a time, then y += S·V at once.

E is never built: the scores of a query with a row of the context are a correlation with a row of the table, read from
where the query stands. ``cpp/query_first.cpp`` has the algorithm; ``docs/compiled.md`` derives its blocks.
"""

from __future__ import annotations

import functools

from lambdanets.kernels.grid.compiled import binding
from lambdanets.kernels.grid.contract import GridKernel, GridProblem, Work

__all__ = ["KERNEL"]


def work(problem: GridProblem, backward: bool) -> Work:
    """Multiply-adds of S, y and their gradients; elements that are packed; calls."""
    rows = problem.visible(0) if len(problem.grid) == 2 else (1,)
    columns = problem.visible(-1)
    lanes = binding.lanes()
    pairs = sum(rows) * sum(columns)
    padded = sum(rows) * sum(-(-width // lanes) * lanes for width in columns)
    # A group of four heads takes little longer for four than for two.
    heads = problem.heads + -(-problem.heads // 4)
    k, v = (-(-depth // lanes) * lanes for depth in (problem.dim_key, problem.dim_value))
    depth = padded * (problem.dim_key + problem.dim_value) + pairs * (2 * k + v) if backward else 0
    products = depth + padded * problem.dim_key + pairs * v
    moved = problem.batch * problem.num_positions * (problem.heads * (k + v) + problem.intra_depth * v)
    return Work(problem.batch * problem.intra_depth * heads * products, moved, 3 if backward else 2)


KERNEL = GridKernel(
    "query_first_compiled",
    functools.partial(binding.forward, binding.QUERY_FIRST),
    functools.partial(binding.backward, binding.QUERY_FIRST),
    binding.check,
    work,
    adds_content=True,
    device="cpu",
    compiled=True,
)
