"""Turns, the intervals of their medians, and when they end."""

import itertools
import math

import numpy as np
import pytest

from lambdanets.experiments.bench import timing
from lambdanets.experiments.bench.timing import Estimate, Timing, Turns, bootstrap_median

pytestmark = pytest.mark.smoke


@pytest.mark.parametrize("n", [7, 8, 25, 40])
def test_the_interval_is_that_of_a_bootstrap(n):
    """The quantiles of 20,000 drawn medians, up to the next sample."""
    samples = np.sort(np.random.default_rng(n).lognormal(size=n))
    draws = np.random.default_rng(0).choice(samples, (20_000, n))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    estimate = bootstrap_median(samples)
    assert estimate.median == np.median(samples)
    assert abs(np.searchsorted(samples, low) - np.searchsorted(samples, estimate.low)) <= 1
    assert abs(np.searchsorted(samples, high) - np.searchsorted(samples, estimate.high)) <= 1


def test_the_interval_of_seven_is_the_second_to_the_sixth():
    assert bootstrap_median([7, 1, 2, 6, 3, 5, 4]) == Estimate(4, 2, 6)
    assert bootstrap_median([3]) == Estimate(3, 3, 3)


@pytest.mark.parametrize(
    ("low", "high", "noisy"), [(9.1, 10.9, False), (8.9, 10, True), (10, 11.1, True), (9, 11, False)]
)
def test_noisy_is_an_interval_beyond_a_tenth(low, high, noisy):
    assert Estimate(10, low, high).noisy is noisy


def test_calls_take_turns_in_changing_order():
    order = []
    # A clock of its own: on a busy machine one of them would be counted as the slower one.
    turns = Turns([lambda: order.append("a"), lambda: order.append("b")], lambda call: (call(), 1.0)[1])
    turns.take(0, least=8)
    pairs = ["".join(turn) for turn in zip(order[::2], order[1::2], strict=True)]
    assert len(pairs) == 9  # one to warm up, eight timed
    assert set(pairs) == {"ab", "ba"}
    assert [timing.turns for timing in turns.timings()] == [8, 8]


def scripted(*times):
    """Calls, and a clock that gives each the next of its times, over and over."""
    calls = [lambda number=number: number for number in range(len(times))]
    series = {call: itertools.cycle(values) for call, values in zip(calls, times, strict=True)}
    return calls, lambda call: next(series[call])


def test_ratios_are_of_runs_of_the_same_turn():
    """A disturbance that meets both calls of a turn moves the medians of the times, not that of the ratios."""
    turns = Turns(*scripted([1.0, 10.0, 100.0], [2.0, 20.0, 200.0]))
    turns.take(0, least=9)
    first, second = turns.timings()
    assert (second.ratio.low, second.ratio.median, second.ratio.high) == (2, 2, 2)
    assert first.seconds.low < first.seconds.high
    assert second.noisy  # its own seconds are


def test_turns_go_on_until_the_medians_are_known():
    """The second call's times are two to one: a few turns leave open which is the median."""
    turns = Turns(*scripted([1.0], [1.0, 1.0, 2.0], [3.0]))
    turns.take(0, most=10)
    first, second, third = turns.timings()
    assert not second.noisy
    assert timing.LEAST_TURNS < first.turns == second.turns == third.turns


def test_seconds_are_of_the_turns_of_the_ratios():
    """The machine becomes half as fast when the others are known: medians that were divided would miss the ratio."""
    slower = [1.0] * 8 + [2.0] * 1000
    turns = Turns(*scripted(slower, [1.0, 1.0, 2.0] * 3 + [4.0, 2.0, 2.0] * 400, [3 * time for time in slower]))
    turns.take(0, most=10)
    first, second, third = turns.timings()
    assert second.turns > 20
    assert third.seconds.median / first.seconds.median == third.ratio.median == 3


def test_a_ratio_that_is_not_that_of_the_medians_is_noisy():
    close = Estimate(2.0, 1.9, 2.1)
    assert [Timing(close, close, quotient, 9).noisy for quotient in (1.79, 1.81, 2.19, 2.21)] == [
        True,
        False,
        False,
        True,
    ]


def test_slow_calls_take_fewer_turns_and_short_ones_run_more_often_in_each():
    counts = [0, 0, 0]
    times = [1.0, 35.0, 1000.0]

    def clock(call):
        counts[call()] += 1
        return times[call()]

    turns = Turns([lambda: 0, lambda: 1, lambda: 2], clock)
    turns.take(0, least=3)
    assert [timing.turns for timing in turns.timings()] == [17, 5, 3]  # of all turns, every fourth, every eighth
    # In every turn the shortest one runs five times, whoever takes part; of the first turn nothing is known before.
    assert counts == [1 + 16 * 5, 5, 3]
    assert all(timing.ratio.median == time for timing, time in zip(turns.timings(), times, strict=True))


@pytest.mark.parametrize("times", [(1.0, 65.0, 75.0), (1.0, 25.0, 35.0), (1.0, 12.0, 25.0), (1.0, 1000.0, 15.0)])
def test_turns_of_a_slower_call_are_turns_of_a_less_slow_one(times):
    """So that the ratio of any two of them has as many turns as the slower one."""
    turns = Turns([lambda: 0, lambda: 1, lambda: 2], lambda call: times[call()])
    turns.take(0, least=7)
    common = [one and other for one, other in zip(turns.seconds(1), turns.seconds(2), strict=True)]
    assert sum(map(bool, common)) == min(timing.turns for timing in turns.timings()) >= 7


def test_turns_end_when_the_time_is_up():
    turns = Turns(*scripted([1.0], [1.0, 2.0]))
    turns.take(0.05, most=0.2)
    noisy = turns.timings()[1]
    assert noisy.noisy
    assert noisy.turns >= timing.LEAST_TURNS


def test_a_second_visit_adds_to_the_first():
    turns = Turns(*scripted([1.0], [4.0]))
    turns.take(0, least=3)
    turns.take(0, least=4)
    assert [timing.turns for timing in turns.timings()] == [7, 7]
    assert math.isclose(turns.timings()[1].ratio.median, 4)
