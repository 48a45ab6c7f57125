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

from lambdanets.experiments.bench.contenders import Contender
from lambdanets.kernels.autograd.memory import release

__all__ = ["Timing", "check_results", "interleaved", "passes", "peak_bytes", "saved_bytes"]


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


def check_results(group: Sequence[Contender]) -> None:
    """Stop unless every contender that computes the same function gives the same numbers: outputs, the gradients of
    the input and, among layers of one class, those of the parameters.

    Raises:
        RuntimeError: naming the contender, what differs and by how much.
    """
    expected: dict[str, Tensor] = {}
    for contender in group:
        if not contender.checked:
            continue
        results = _results(contender)
        if not expected:
            expected = results
        for name, result in results.items():
            if name not in expected or (type(contender.module) is not type(group[0].module) and "parameter" in name):
                continue
            error = ((result - expected[name]).abs().max() / expected[name].abs().max()).item()
            if not error < 1e-4:
                raise RuntimeError(
                    f"{contender.name} differs from {group[0].name} in its {name} by {error:.1e} of the largest; "
                    "a benchmark of different functions would mean nothing"
                )


def _results(contender: Contender) -> dict[str, Tensor]:
    """What a contender computes, with the parameters and running statistics that it has and keeps.

    A single example is taken twice: of one alone PyTorch's batch-norms on CPUs misread the strides in backward, and the
    gradients of the peers are wrong by themselves.
    """
    module, x = contender.module, contender.x if len(contender.x) > 1 else torch.cat([contender.x] * 2)
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    with torch.no_grad():
        results = {"output": module.eval()(x)}
    x = x.clone().requires_grad_()
    out = module.train()(x)
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(0))
    parameters = dict(module.named_parameters())
    gradients = torch.autograd.grad(out, [x, *parameters.values()], direction)
    with torch.no_grad():
        for name, buffer in module.named_buffers():
            buffer.copy_(before[name])
    names = ["gradient of the input", *(f"gradient of parameter {name}" for name in parameters)]
    return results | dict(zip(names, gradients, strict=True))
