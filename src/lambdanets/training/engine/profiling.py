"""A profile of a training: some of its steps under PyTorch's profiler.

The first steps of a training are slower than the others and are not measured. The profiler itself takes time, so the
figures are shares of a step, and not what ``images/s`` shows without it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from lambdanets.files import make_folder, replacing
from lambdanets.training.display.profile import Profile

FOLDER = "profile"
# Steps before the measured ones, and these.
WARM, STEPS = 3, 10
_OPERATORS = 10
_PARTS = ("images", "forward", "backward", "optimizer")
_MARK = "lambdanets: "


class ProfiledBatches:
    """Batches of a training of which some steps are profiled.

    Args:
        batches: the training's batches.
        model: the model as it is called.
        run: the run folder; ``profile/trace.json`` is written there.
        device: where the model is.
        report: called with what was found.
    """

    def __init__(
        self, batches: Any, model: nn.Module, run: Path, device: torch.device, report: Callable[[Profile], None]
    ) -> None:
        self._batches, self._model, self._run, self._device, self._report = batches, model, run, device, report
        self._done = False

    def __len__(self) -> int:
        return len(self._batches)

    @property
    def waited(self) -> float:
        """Seconds that the device waited for batches."""
        return self._batches.waited

    @waited.setter
    def waited(self, seconds: float) -> None:
        self._batches.waited = seconds

    def of_epoch(self, epoch: int, first: int = 0) -> Iterator[Any]:
        """The batches of an epoch; the steps between them are profiled, once."""
        batches = self._batches.of_epoch(epoch, first)
        if self._done or first >= len(self):
            yield from batches
            return
        self._done = True
        steps = min(STEPS, max(1, len(self) - first - 1))
        for _ in range(min(WARM, len(self) - first - steps)):
            yield next(batches)
        yield from self._profiled(batches, steps)
        yield from batches

    def _profiled(self, batches: Iterator[Any], steps: int) -> Iterator[Any]:
        # Else the profiler prints that it has found no GPU.
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")
        activities = [ProfilerActivity.CPU]
        if self._device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        with ExitStack() as stack:
            profiler = stack.enter_context(profile(activities=activities))
            stack.callback(_marking_forward(self._model))
            done, started = 0, time.monotonic()
            while done < steps:
                with record_function(f"{_MARK}images"):
                    batch = next(batches, None)
                if batch is None:
                    break
                yield batch
                done += 1
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            seconds = time.monotonic() - started
        if done:
            self._report(self._summary(profiler, done, seconds))

    def _summary(self, profiler: profile, steps: int, seconds: float) -> Profile:
        make_folder(self._run / FOLDER)
        trace = self._run / FOLDER / "trace.json"
        with replacing(trace) as temporary:
            profiler.export_chrome_trace(str(temporary))
        events = profiler.key_averages()
        parts = dict.fromkeys(_PARTS, 0.0)
        for event in events:
            part = _part(event.key)
            if part is not None:
                parts[part] += event.cpu_time_total / 1e6 / steps
        parts["other"] = max(0.0, seconds / steps - sum(parts.values()))
        on_gpu = self._device.type == "cuda"
        spent = {event.key: (event.self_device_time_total if on_gpu else event.self_cpu_time_total) for event in events}
        calls = {event.key: event.count / steps for event in events}
        longest = sorted((name for name in spent if _part(name) is None), key=lambda name: -spent[name])[:_OPERATORS]
        operators = [(name, calls[name], spent[name] / 1e6 / steps) for name in longest if spent[name]]
        return Profile(steps, seconds / steps, parts, operators, trace)


def _part(name: str) -> str | None:
    """The part of a step that an event of the profiler stands for as a whole."""
    if name.startswith(_MARK):
        return name.removeprefix(_MARK)
    if name.startswith("autograd::engine::evaluate_function"):
        return "backward"
    return "optimizer" if name.startswith("Optimizer.step") else None


def _marking_forward(model: nn.Module) -> Callable[[], None]:
    """Mark the model's forward pass for the profiler; return the function that removes the marks."""
    marks: list[Any] = []

    def begin(*_: Any) -> None:
        marks.append(record_function(f"{_MARK}forward"))
        marks[-1].__enter__()

    def end(*_: Any) -> None:
        marks.pop().__exit__(None, None, None)

    handles = [model.register_forward_pre_hook(begin), model.register_forward_hook(end)]

    def remove() -> None:
        for handle in handles:
            handle.remove()

    return remove
