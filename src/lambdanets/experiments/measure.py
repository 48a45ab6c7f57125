"""Interleaved timing, memory and the check of outputs."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor, nn

from lambdanets.experiments.contenders import Contender
from lambdanets.kernels.memory import release

__all__ = ["Timing", "check_outputs", "interleaved", "passes", "peak_bytes", "saved_bytes"]


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: median and quartiles over the repeats."""

    median: float
    low: float
    high: float
    repeats: int


def passes(module: nn.Module, x: Tensor) -> dict[str, Callable[[], object]]:
    """The two things that are timed: inference, and a training step's forward and backward pass."""

    def forward() -> Tensor:
        module.eval()
        with torch.inference_mode():
            return module(x)

    leaf = x.clone().requires_grad_()

    def forward_backward() -> None:
        module.train()
        leaf.grad = None
        for parameter in module.parameters():
            parameter.grad = None
        out = module(leaf)
        out.backward(torch.ones_like(out))

    return {"forward": forward, "forward+backward": forward_backward}


def interleaved(calls: Sequence[Callable[[], object]], *, seconds: float, least: int = 3) -> list[Timing]:
    """Time all calls turn by turn, so that what disturbs the machine disturbs all of them.

    Each turn has another order: a call finds the caches as the one before it has left them.

    Args:
        calls: what to time; each is called once before.
        seconds: about how long each of them is timed.
        least: repeats at the least.
    """
    for call in calls:
        call()
    taken: list[list[float]] = [[] for _ in calls]
    order, random = list(range(len(calls))), Random(0)
    gc.collect()
    gc.disable()
    try:
        while any(_wants_more(times, seconds, least) for times in taken):
            random.shuffle(order)
            for index in order:
                if _wants_more(taken[index], seconds, least):
                    start = time.perf_counter()
                    calls[index]()
                    taken[index].append(time.perf_counter() - start)
    finally:
        gc.enable()
    return [_timing(times) for times in taken]


def _wants_more(times: list[float], seconds: float, least: int) -> bool:
    return len(times) < least or sum(times) < seconds


def _timing(times: list[float]) -> Timing:
    low, median, high = statistics.quantiles(times, n=4) if len(times) > 1 else times * 3
    return Timing(median, low, high, len(times))


def saved_bytes(module: nn.Module, x: Tensor) -> int:
    """Bytes kept for the backward pass: unique storages, beyond the input and the parameters."""
    module.train()
    leaf = x.clone().requires_grad_()
    known = {t.untyped_storage().data_ptr() for t in (leaf, *module.parameters(), *module.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = module(leaf)
    del out
    return sum(kept.values())


def peak_bytes(call: Callable[[], object]) -> int:
    """The most memory that a call has allocated at once, by the profiler's record of allocations.

    Kernels start without memory from calls before, so that what they use counts.
    """
    release()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    result = profiler.profiler.kineto_results if profiler.profiler else None
    events = [event for event in result.events() if event.name() == "[memory]"] if result else []
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@torch.no_grad()
def check_outputs(group: Sequence[Contender]) -> None:
    """Stop unless every contender that computes the same function gives the same numbers.

    Raises:
        RuntimeError: naming the contender and the difference.
    """
    expected = None
    for contender in group:
        if not contender.checked:
            continue
        out = contender.module.eval()(contender.x)
        if expected is None:
            expected = out
        error = ((out - expected).abs().max() / expected.abs().max()).item()
        if not error < 1e-4:
            raise RuntimeError(
                f"{contender.name} differs from {group[0].name} by {error:.1e} of the largest output; "
                "a benchmark of different functions would mean nothing"
            )
