"""Choice of a kernel's configuration: the fastest of a small list, found once for shapes that are alike.

Warps and stages are chosen by measured times, since they do not change the order of the sums. The width of a tile does,
so it follows from the shape: with measured times two processes could return different bits.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from triton.runtime.errors import OutOfResources
from triton.runtime.interpreter import InterpretedFunction
from triton.testing import do_bench

from lambdanets.kernels.grid.contract import GridProblem
from lambdanets.kernels.grid.triton.tiling import LEAST_BLOCK, Config, power_of_2

__all__ = ["forget", "interpreted", "run_best"]

Result = TypeVar("Result")

_best: dict[Hashable, Config | None] = {}


def interpreted(kernel: Any) -> bool:
    """True if a kernel was made for Triton's interpreter, which runs it on the CPU."""
    return isinstance(kernel, InterpretedFunction)


def forget() -> None:
    """Try again from now on."""
    _best.clear()


def run_best(
    name: str, problem: GridProblem, candidates: Sequence[Config], launch: Callable[[Config], Result]
) -> Result:
    """Launch with the best of ``candidates``, and return what that launch returns.

    A shape is tried the first time that one like it comes (see :func:`_key`): each candidate with the tile of the first
    runs some times, which only rewrites the outputs. Nothing is timed, and the first candidate that the device has room
    for runs, while a CUDA graph is recorded, in the interpreter, whose times mean nothing, and under
    ``torch.use_deterministic_algorithms(True)``. That is also what happens where there is room for none of those that
    are timed.

    Raises:
        triton.runtime.errors.OutOfResources: if the device has room for none of them.
    """
    if not _can_time(problem):
        return _run_first(candidates, launch)
    key = _key(name, problem)
    if key not in _best:
        alike = [config for config in candidates if config.block == candidates[0].block]
        seconds = [_seconds(launch, config) for config in alike]
        _best[key] = alike[seconds.index(min(seconds))] if min(seconds) < float("inf") else None
    best = _best[key]
    return _run_first(candidates if best is None else (best, *candidates), launch)


def _key(name: str, problem: GridProblem) -> Hashable:
    """Shapes that share a choice: sizes of the grid in sixteens, batches and extents in powers of 2."""
    like = replace(
        problem,
        batch=power_of_2(problem.batch),
        grid=tuple(-(-size // LEAST_BLOCK) * LEAST_BLOCK for size in problem.grid),
        extents=tuple(map(power_of_2, problem.extents)),
        origin=tuple(map(power_of_2, problem.origin)),
    )
    return name, like, torch.backends.cuda.matmul.fp32_precision, _device(problem)


def _run_first(candidates: Sequence[Config], launch: Callable[[Config], Result]) -> Result:
    for config in candidates[:-1]:
        try:
            return launch(config)
        except OutOfResources:  # shared memory or registers of a smaller device
            continue
    return launch(candidates[-1])


def _seconds(launch: Callable[[Config], Any], config: Config) -> float:
    try:
        return do_bench(lambda: launch(config), warmup=5, rep=20, return_mode="median")
    except OutOfResources:
        return float("inf")


def _device(problem: GridProblem) -> int | None:
    return torch.cuda.current_device() if problem.device == "cuda" else None


def _can_time(problem: GridProblem) -> bool:
    return (
        problem.device == "cuda"
        and not torch.are_deterministic_algorithms_enabled()
        and not torch.cuda.is_current_stream_capturing()
    )
