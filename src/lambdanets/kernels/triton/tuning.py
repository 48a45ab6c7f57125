"""Which configuration a kernel runs with: the fastest of a small list, found once for each shape and kept."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any

import torch
from triton.runtime.errors import OutOfResources
from triton.runtime.interpreter import InterpretedFunction
from triton.testing import do_bench

from lambdanets.kernels.problem import GridProblem
from lambdanets.kernels.triton.tiling import Config, power_of_2

__all__ = ["forget", "interpreted", "run_best"]

_best: dict[Hashable, Config] = {}


def interpreted(kernel: Any) -> bool:
    """Whether a kernel was made for Triton's interpreter, which runs it on the CPU."""
    return isinstance(kernel, InterpretedFunction)


def forget() -> None:
    """Try again from now on."""
    _best.clear()


def run_best(name: str, problem: GridProblem, candidates: Sequence[Config], launch: Callable[[Config], None]) -> None:
    """Launch with the best of ``candidates``.

    A shape is tried the first time that it comes, batches counted in powers of 2: each candidate runs some times,
    which only rewrites the outputs. While a CUDA graph is recorded nothing can be timed, and the interpreter has no
    times that mean anything: there the first candidate that the device has room for runs, and nothing is kept.

    Raises:
        triton.runtime.errors.OutOfResources: if the device has room for none of them.
    """
    key = (name, replace(problem, batch=power_of_2(problem.batch)), _device(problem))
    best = _best.get(key)
    if best is None and _can_time(problem):
        best = _best[key] = min(candidates, key=lambda config: _seconds(launch, config))
    _run_first(candidates if best is None else (best,), launch)


def _run_first(candidates: Sequence[Config], launch: Callable[[Config], None]) -> None:
    for config in candidates[:-1]:
        try:
            launch(config)
        except OutOfResources:  # shared memory or registers of a smaller device
            continue
        return
    launch(candidates[-1])


def _seconds(launch: Callable[[Config], None], config: Config) -> float:
    try:
        return do_bench(lambda: launch(config), warmup=5, rep=20, return_mode="median")
    except OutOfResources:
        return float("inf")


def _device(problem: GridProblem) -> int | None:
    return torch.cuda.current_device() if problem.device == "cuda" else None


def _can_time(problem: GridProblem) -> bool:
    return problem.device == "cuda" and not torch.cuda.is_current_stream_capturing()
