"""The parts of a step's time, as a table on the console."""

from __future__ import annotations

from rich.console import Console

from lambdanets.console import one_line, print_whole
from lambdanets.training.engine.profiling import Profile

_NAME = 40


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
