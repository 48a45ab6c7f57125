"""What is measured of whole models: costs, memory, and times that take turns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psutil
import timm
import torch
from torch import Tensor, nn

from lambdanets.experiments.bench.measure import PASSES, passes, peak_bytes, saved_bytes
from lambdanets.experiments.bench.timing import Estimate, Turns
from lambdanets.models import model_cost

__all__ = [
    "PROCESS_BYTES",
    "available_memory",
    "build",
    "images",
    "measure_memory",
    "measure_speed",
    "step_bytes",
]

# PyTorch and this package in a process, beside the model.
PROCESS_BYTES = 600 << 20


def build(model: str, kwargs: Mapping[str, Any], shape: Mapping[str, int]) -> nn.Module:
    """Make a model with random weights.

    Args:
        model: a name of timm's registry.
        kwargs: its further arguments.
        shape: ``channels`` of the images and number of ``classes``.
    """
    torch.manual_seed(0)
    return timm.create_model(model, num_classes=shape["classes"], in_chans=shape["channels"], **kwargs)


def images(shape: Mapping[str, int], batch: int) -> Tensor:
    """Return random images (batch, channels, image_size, image_size)."""
    size = shape["image_size"]
    return torch.randn(batch, shape["channels"], size, size, generator=torch.Generator().manual_seed(0))


def measure_memory(model: str, kwargs: Mapping[str, Any], shape: Mapping[str, int], batch: int) -> dict[str, Any]:
    """Count and measure a model: parameters, multiply-adds of an image, bytes of a training step.

    Args:
        model: a name of timm's registry.
        kwargs: its further arguments.
        shape: ``image_size``, ``channels`` and ``classes``.
        batch: images of the step.

    Returns:
        ``parameters``, ``multiply_adds``, and bytes an image: ``saved_bytes`` kept between the forward and the backward
        pass, ``peak_bytes`` the most that both passes allocate at once.
    """
    cost = model_cost(model, shape["image_size"], num_classes=shape["classes"], in_chans=shape["channels"], **kwargs)
    module, x = build(model, kwargs, shape), images(shape, batch)
    step = passes(module, x)["forward+backward"]
    step()
    return {
        "parameters": cost.parameters,
        "multiply_adds": cost.multiply_adds,
        "saved_bytes": saved_bytes(module, x) // batch,
        "peak_bytes": peak_bytes(step) // batch,
    }


def measure_speed(models: Mapping[str, tuple[nn.Module, Tensor]], seconds: float, most: float) -> dict[str, Any]:
    """Time models that take turns.

    Args:
        models: name -> model and the batch of images of a call; the others are compared with the first.
        seconds: least time for the turns of a pass.
        most: most time for them.

    Returns:
        For each pass, for each model: images a second (median, low, high) and ``ratio``, how many times as many images
        a second as the first (median, low, high), from the ratios of the turns, and ``seconds``, an image's in each
        turn, None where the model did not take part.
    """
    calls = {name: passes(*model) for name, model in models.items()}
    sizes = [len(x) for _, x in models.values()]
    found: dict[str, Any] = {}
    for way in PASSES:
        turns = Turns([call[way] for call in calls.values()])
        turns.take(seconds, most)
        found[way] = {
            name: {
                "images_per_second": _per(size, timing.seconds),
                "ratio": _per(size / sizes[0], timing.ratio),
                "turns": timing.turns,
                "seconds": [None if value is None else float(f"{value / size:.5g}") for value in turns.seconds(index)],
            }
            for index, (name, size, timing) in enumerate(zip(calls, sizes, turns.timings(), strict=True))
        }
    return found


def _per(count: float, seconds: Estimate) -> list[float]:
    """Median, low and high of a rate from those of a time."""
    return [round(count / value, 4) for value in (seconds.median, seconds.high, seconds.low)]


def step_bytes(model: str, kwargs: Mapping[str, Any], shape: Mapping[str, int], batch: int) -> int:
    """Estimate the bytes of a training in one process: measured steps of two and of four images, scaled to a batch.

    Weights and the optimizer's two moments are added; gradients are part of a step.
    """
    module = build(model, kwargs, shape)
    two, four = (peak_bytes(passes(module, images(shape, count))["forward+backward"]) for count in (2, 4))
    weights = sum(parameter.nbytes for parameter in module.parameters())
    return PROCESS_BYTES + 3 * weights + two + (batch - 2) * (four - two) // 2


def available_memory() -> int:
    """Bytes of memory that this machine has left."""
    return psutil.virtual_memory().available
