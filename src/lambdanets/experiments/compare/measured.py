"""Measurements of whole models: costs, memory, and times that take turns."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import timm
import torch
from torch import Tensor, nn

from lambdanets.experiments.bench.measure import PASSES, TRAINING, passes, peak_bytes, saved_bytes
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
    "turns_bytes",
    "weights_bytes",
]

# PyTorch, this package and a training in a process, beside what a step allocates; and how many times that the process
# grows by, as the allocator cannot give back all that is freed. Peaks of the resident size of processes that trained:
# 895 to 898 MiB with steps of 12 MiB (digits, batch 32), 950 with 50, 967 with 59, 1005 with 64, 1164 with 166, 1309
# with 281 (32x32 images, batch 64), which is 880 + 1.5 times the step within 4 %; up to 1385 in hours on CIFAR-10.
PROCESS_BYTES = 1000 << 20
HELD = 1.5


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
    step = passes(module, x, input_gradient=False)[TRAINING]
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
    calls = {name: passes(module, x, input_gradient=False) for name, (module, x) in models.items()}
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
    weights, step = _weights_and_step(json.dumps([model, kwargs, shape, batch]))
    return PROCESS_BYTES + 3 * weights + int(HELD * step)


def weights_bytes(model: str, kwargs: Mapping[str, Any], shape: Mapping[str, int], batch: int) -> int:
    """Return the bytes of the weights of a model; arguments as of ``step_bytes``."""
    return _weights_and_step(json.dumps([model, kwargs, shape, batch]))[0]


def turns_bytes(models: Mapping[str, Mapping[str, Any]], shape: Mapping[str, int], batch: int) -> int:
    """Estimate the bytes of models in one process of which one at a time does a step, as ``step_bytes`` does.

    Args:
        models: by name, each with its ``model`` and ``model_kwargs``.
        shape: ``image_size``, ``channels`` and ``classes``.
        batch: images of a step.
    """
    found = [
        _weights_and_step(json.dumps([row["model"], row["model_kwargs"], shape, batch])) for row in models.values()
    ]
    return PROCESS_BYTES + sum(weights for weights, _ in found) + int(HELD * max(step for _, step in found))


@functools.cache
def _weights_and_step(arguments: str) -> tuple[int, int]:
    """Bytes of the weights of a model and of a step; cached, as all seeds of a row ask for the same."""
    model, kwargs, shape, batch = json.loads(arguments)
    module = build(model, kwargs, shape)
    steps = (passes(module, images(shape, count), input_gradient=False)[TRAINING] for count in (2, 4))
    two, four = map(peak_bytes, steps)
    return sum(parameter.nbytes for parameter in module.parameters()), two + (batch - 2) * (four - two) // 2


def available_memory() -> int:
    """Bytes of memory that this process may still allocate: what the machine has left, and its control groups."""
    return min(psutil.virtual_memory().available, _left_in_groups(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")))


def _left_in_groups(groups: Path, mount: Path) -> int:
    """Bytes that the control groups of this process may still allocate, as of a container or of a job of Slurm.

    A group is held to the limits of those above it, too. Memory that holds files counts as free, as the system takes it
    back when it is wanted.

    Args:
        groups: a line for each hierarchy, ``NUMBER:CONTROLLERS:/PATH``; the second version has no controllers.
        mount: where the hierarchies are, those of the first version in a folder each.

    Returns:
        The bytes; a number larger than any memory where there is no limit.
    """
    left = sys.maxsize
    try:
        lines = groups.read_text().splitlines()
    except OSError:  # not Linux
        return left
    for line in lines:
        _, controllers, path = line.split(":", 2)
        first = "memory" in controllers.split(",")
        if controllers and not first:
            continue
        top = mount / "memory" if first else mount
        limit, used = ("memory.limit_in_bytes", "memory.usage_in_bytes") if first else ("memory.max", "memory.current")
        prefix = "total_" if first else ""
        names = path.strip("/").split("/")
        # In a container the path may be the one outside of it; its own group is at the top then.
        for folder in (top.joinpath(*names[:depth]) for depth in range(len(names) + 1)):
            try:
                most = int((folder / limit).read_text())
                held = int((folder / used).read_text())
                counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):  # no such group here, no limit ("max")
                continue
            files = sum(int(counts.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
            left = min(left, max(0, most - held + files))
    return left
