"""The interval between checkpoints: after a number of steps or of minutes."""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass

DEFAULT = "10m"
_PATTERN = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(m|min|minutes?|steps?|)\s*", re.ASCII)


@dataclass
class Interval:
    """A number of steps or of seconds.

    Attributes:
        steps: steps between two checkpoints, or None.
        seconds: seconds between two checkpoints, or None.
    """

    steps: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        self.restart()

    @classmethod
    def parse(cls, text: str) -> Interval:
        """The interval that a text means: ``"500"`` steps, ``"10m"`` minutes.

        Raises:
            ValueError: it means none.
        """
        match = _PATTERN.fullmatch(text) if isinstance(text, str) else None
        number = float(match[1]) if match else math.nan
        unit = match[2] if match else ""
        if unit.startswith("m") and 0 < number <= 1e6:
            return cls(seconds=60 * number)
        if match and not unit.startswith("m") and 1 <= number <= 1e12 and number == int(number):
            return cls(steps=int(number))
        raise ValueError(f"checkpoint_every is {text!r}; use a number of steps (500) or of minutes (10m)")

    def restart(self) -> None:
        """Count from now on, as after a checkpoint."""
        self._since = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since the last restart."""
        return time.monotonic() - self._since

    def due_at(self, step: int) -> bool:
        """True if a checkpoint is due after ``step`` steps; the same in all processes."""
        return self.steps is not None and step % self.steps == 0

    def due_now(self) -> bool:
        """True if a checkpoint is due by the clock of this process."""
        return self.seconds is not None and self.elapsed >= self.seconds
