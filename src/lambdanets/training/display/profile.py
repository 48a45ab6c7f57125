"""The parts of a step's time, as a table on the console."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from lambdanets.console import one_line, print_whole

_NAME = 40


@dataclass(frozen=True)
class Profile:
    """Parts of a step.

    Attributes:
        steps: how many were measured.
        seconds: of one step.
        parts: seconds a step of waiting for images, forward pass, backward pass, optimizer, and all else, by name.
        operators: the operators that take longest: name, calls a step, seconds a step, on the GPU if there is one.
        trace: the file for a viewer of traces.
    """

    steps: int
    seconds: float
    parts: dict[str, float]
    operators: list[tuple[str, float, float]]
    trace: Path


def print_profile(console: Console, profile: Profile) -> None:
    """The parts of a step, the operators that take longest, and the file of the trace."""
    print_whole(console, f"A step takes {_time(profile.seconds)} under the profiler (mean of {profile.steps}):")
    for name, seconds in profile.parts.items():
        print_whole(console, f"  {name:<{_NAME}} {_time(seconds)}  {seconds / profile.seconds:6.1%}")
    print_whole(console, "Operators that take longest, without what they call:")
    for name, calls, seconds in profile.operators:
        word = one_line(name)[:_NAME]
        print_whole(console, f"  {word:<{_NAME}} {_time(seconds)}  {seconds / profile.seconds:6.1%}  {calls:g} calls")
    print_whole(console, f"Trace (for https://ui.perfetto.dev): {one_line(profile.trace)}")


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:9.2f} ms"
