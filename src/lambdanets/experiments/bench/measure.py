"""Measurements of a contender: its two passes, memory, and the check of its outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lambdanets.experiments.bench.contenders import Contender
from lambdanets.kernels.autograd.memory import release

__all__ = ["INFERENCE", "PASSES", "TRAINING", "check_results", "passes", "peak_bytes", "saved_bytes"]

PASSES = INFERENCE, TRAINING = ("forward", "forward+backward")


def passes(module: nn.Module, x: Tensor, input_gradient: bool = True) -> dict[str, Callable[[], object]]:
    """Return the two calls that are timed: inference, and a training step's forward and backward pass.

    Args:
        module: what is timed.
        x: its input.
        input_gradient: the backward pass computes the gradient of ``x`` too, as a layer inside of a network does.
            False for a whole model, whose images need none. Default True.
    """

    def forward() -> Tensor:
        if module.training:  # the switch visits every submodule, which a small layer's time would show
            module.eval()
        with torch.inference_mode():
            return module(x)

    leaf = x.clone().requires_grad_(input_gradient)

    def forward_backward() -> None:
        if not module.training:
            module.train()
        out = module(leaf)
        out.backward(torch.ones_like(out))
        # Here, not before the next pass: what a call has allocated is freed within it, as the count of memory needs.
        leaf.grad = None
        for parameter in module.parameters():
            parameter.grad = None

    return dict(zip(PASSES, (forward, forward_backward), strict=True))


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
        return tensor.detach()  # an output that is saved would hold itself, and never be freed

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
    """Return the results of a contender with its own parameters and running statistics, which stay as they are.

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
