"""Times of calls that take turns, with bootstrap intervals of their medians."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from scipy.stats import binom

__all__ = [
    "LEAST_TURNS",
    "TOLERANCE",
    "Call",
    "Clock",
    "Estimate",
    "Timing",
    "Turns",
    "bootstrap_median",
    "ratio_of_turns",
    "wall_clock",
]

Call = Callable[[], object]
Clock = Callable[[Call], float]

# Of fewer runs than this the interval of a median says little.
LEAST_TURNS = 7
# A median is noisy if its interval reaches further from it than this share of it.
TOLERANCE = 0.10
CONFIDENCE = 0.95
# A call that takes ``SLOW`` times as long as the first one takes part in every second turn, three times that in every
# fourth, and so on to every ``LONGEST_PERIOD``-th: else a few slow calls would leave the others too few turns to be
# known. By powers of two, so that the turns of a slower call are turns of a less slow one too.
SLOW, LONGEST_PERIOD = 10, 8
# A short call runs up to ``REPEATS`` times in a turn, as long as that takes less than ``SHARE`` of a turn of all calls.
SHARE, REPEATS = 0.05, 5


@dataclass(frozen=True)
class Estimate:
    """A median and the interval of it at 95 %."""

    median: float
    low: float
    high: float

    @property
    def noisy(self) -> bool:
        """True if the interval reaches more than 10 % of the median away from it."""
        return not (1 - TOLERANCE) * self.median <= self.low <= self.high <= (1 + TOLERANCE) * self.median


def bootstrap_median(samples: Sequence[float] | np.ndarray) -> Estimate:
    """Return the median of samples with its percentile bootstrap interval.

    The median of n draws with replacement is at most the k-th smallest sample where at least half of the draws are,
    which has a binomial probability: the interval is exact, without drawing. Of an even number of draws the median lies
    between two of them, and the interval reaches from the lower one's to the upper one's: wider than the bootstrap's.

    Args:
        samples: at least one.
    """
    ordered = np.sort(np.asarray(samples, dtype=np.float64))
    n = len(ordered)
    share = np.arange(1, n + 1) / n
    # With an even number of samples the lower middle one bounds the median below, the upper one above.
    lower, upper = (binom.sf(middle - 1, n, share) for middle in ((n + 1) // 2, n // 2 + 1))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.argmax(lower >= tail), np.argmax(upper >= 1 - tail)
    return Estimate(float(np.median(ordered)), float(ordered[low]), float(ordered[high]))


@dataclass(frozen=True)
class Timing:
    """The seconds of one call, and their ratio to the first call's of the same turn.

    Args:
        seconds: of the turns that the call took part in.
        ratio: of the same turns.
        quotient: the median of the call's seconds over that of the first call's, as a reader of both divides them.
        turns: that the call took part in.
    """

    seconds: Estimate
    ratio: Estimate
    quotient: float
    turns: int

    @property
    def noisy(self) -> bool:
        """True if one of the two intervals is too wide, or the ratio is not that of the medians to within 10 %."""
        apart = abs(self.quotient - self.ratio.median) > TOLERANCE * self.ratio.median
        return self.seconds.noisy or self.ratio.noisy or apart


def ratio_of_turns(seconds: Sequence[float | None], others: Sequence[float | None]) -> Estimate:
    """Return the median ratio of two calls' seconds in the turns that both took part in, with its interval.

    Args:
        seconds: by turn; None where the call did not take part.
        others: those of the call to compare with, by the same turns.
    """
    return bootstrap_median([a / b for a, b in zip(seconds, others, strict=True) if a is not None and b is not None])


def wall_clock(call: Call) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


class Turns:
    """Calls that are timed turn by turn, so that a disturbance of the machine meets all of them.

    The order changes in each turn: a call finds the caches as the one before left them. A call whose time is short
    beside the whole turn runs several times in it, and the median of these counts; one that takes far longer than the
    first takes part in every few turns only.

    Args:
        calls: what to time; each is called once here, untimed. The first is what the others are compared with.
        clock: returns the seconds of one call.
    """

    def __init__(self, calls: Sequence[Call], clock: Clock = wall_clock):
        self._calls, self._clock, self._random = list(calls), clock, Random(0)
        self._rows: list[list[float]] = []  # seconds by turn and call; NaN where a call did not take part
        self._least = [math.inf] * len(self._calls)  # seconds by call
        for call in self._calls:
            call()

    def take(self, seconds: float, most: float = 0.0, least: int = LEAST_TURNS) -> None:
        """Take turns until every median is known well enough, or the time is up.

        All calls go on until the last one is known: the medians of their seconds are of the same turns, so that they
        divide to the ratios.

        Args:
            seconds: the least time for all calls together.
            most: the most time, but for the least turns.
            least: turns of each call at the least.
        """
        start, before, check = time.perf_counter(), len(self._rows), least
        enabled = gc.isenabled()
        gc.collect()
        gc.disable()
        try:
            while self._calls:
                self._turn()
                elapsed, done = time.perf_counter() - start, len(self._rows) - before
                taken = np.count_nonzero(~np.isnan(self._rows[before:]), axis=0)
                if min(taken) < least or elapsed < seconds:
                    continue
                if elapsed >= most:
                    break
                if done >= check:
                    if not any(timing.noisy for timing in self.timings()):
                        break
                    # Looked at too often, an interval would be narrow once by chance.
                    check = math.ceil(1.25 * done)
        finally:
            if enabled:
                gc.enable()

    def timings(self) -> list[Timing]:
        """Return what all turns so far tell of each call."""
        return [self._timing(index) for index in range(len(self._calls))]

    def seconds(self, index: int) -> list[float | None]:
        """Return the seconds of a call in each turn, None where it did not take part."""
        return [None if math.isnan(row[index]) else row[index] for row in self._rows]

    def _turn(self) -> None:
        due = [index for index in range(len(self._calls)) if len(self._rows) % self._period(index) == 0]
        # Of all calls, due or not: a call that runs more often in some turns than in others finds other caches in them.
        whole = sum(self._least)
        row = [math.nan] * len(self._calls)
        for index in self._random.sample(due, len(due)):
            times = [self._clock(self._calls[index]) for _ in range(self._repeats(index, whole))]
            row[index] = statistics.median(times)
            self._least[index] = min(self._least[index], row[index])
        self._rows.append(row)

    def _period(self, index: int) -> int:
        """Of how many turns a call takes part in one; of the first turn all do."""
        ratio = self._least[index] / self._least[0] if self._rows else 1
        return min(LONGEST_PERIOD, 2 ** int(math.log2(1 + ratio / SLOW)))

    def _repeats(self, index: int, whole: float) -> int:
        """Number of runs of a call in a turn, if one of all calls takes so many seconds."""
        return max(1, min(REPEATS, int(SHARE * whole / self._least[index]))) if math.isfinite(whole) else 1

    def _timing(self, index: int) -> Timing:
        table = np.array(self._rows)
        own, first = table[:, index], table[:, 0]
        taken = ~np.isnan(own)
        seconds, ratio = bootstrap_median(own[taken]), bootstrap_median(own[taken] / first[taken])
        return Timing(seconds, ratio, seconds.median / float(np.median(first)), int(np.count_nonzero(taken)))
