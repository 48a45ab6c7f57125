"""A request to stop, by Ctrl-C (SIGINT) or SIGTERM, that is met at the next good moment and not at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any


class StopSignal:
    """While active, the first SIGINT or SIGTERM only sets ``number``; a second SIGINT interrupts at once.

    A signal that is ignored, as SIGINT is in the background of a shell, stays so. Where one is active within another,
    the outer one has the number too when the inner one ends: a training may end before it looks.

    Args:
        first: called with the number of the first signal, in the main thread; what it raises is raised there. Default:
            nothing is called.

    Attributes:
        number: the signal that came, or None.
    """

    def __init__(self, first: Callable[[int], None] | None = None) -> None:
        self.number: int | None = None
        self._first = first
        self._previous: dict[int, Any] = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.number is None:
            self.number = number
            if self._first is not None:
                self._first(number)
        # Launchers follow a SIGINT with a SIGTERM, which must not cut short the clean end.
        elif number == signal.SIGINT:
            raise KeyboardInterrupt

    def __enter__(self) -> StopSignal:
        # Python allows handlers in the main thread alone; elsewhere the caller has its own way to stop.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
            outer = getattr(handler, "__self__", None)
            if isinstance(outer, StopSignal) and outer.number is None:
                outer.number = self.number
