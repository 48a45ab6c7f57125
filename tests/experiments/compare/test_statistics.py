"""Means with intervals, paired differences, Pareto fronts."""

import numpy as np
import pytest

from lambdanets.experiments.compare.statistics import mean_of, paired_difference, pareto_front


def test_a_mean_and_its_interval():
    found = mean_of([1.0, 2.0, 3.0, 4.0, 10.0])
    assert found.mean == 4
    assert 1 < found.low < 4 < found.high < 10
    assert (mean_of([2.0]).low, mean_of([2.0]).high) == (None, None)
    assert (mean_of([2.0, 2.0]).low, mean_of([2.0, 2.0]).high) == (None, None)


def test_intervals_cover_the_mean():
    """Of 12 normal values a BCa interval at 95 % covers the mean in about 90 % of the cases."""
    random = np.random.default_rng(0)
    found = [mean_of(random.normal(size=12).tolist()) for _ in range(60)]
    covered = sum(mean.low <= 0 <= mean.high for mean in found)
    assert 48 <= covered <= 60


@pytest.mark.smoke
def test_differences_are_paired_by_seed():
    base = {0: 10.0, 1: 20.0, 2: 30.0, 7: 1.0}
    found = paired_difference({0: 11.0, 1: 21.0, 2: 31.0, 3: 0.0}, base)
    assert found.difference.mean == 1
    # Of three pairs that all point one way a test of the signs has p = 2 / 2³.
    assert found.p == pytest.approx(0.25)
    assert found.bounds is None  # equal differences tell nothing of their spread
    assert paired_difference({5: 1.0}, base) is None
    assert paired_difference({0: 1.0}, base).p is None


def test_bounds_allow_for_few_seeds():
    """Of three differences Student's t interval is that of the tables: 4.303 standard errors to either side."""
    found = paired_difference({0: 1.0, 1: 2.0, 2: 3.0}, dict.fromkeys(range(3), 0.0))
    assert found.bounds == pytest.approx((2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5), abs=1e-3)
    assert 1 <= found.difference.low < found.difference.high <= 3


def test_bounds_of_folds_allow_for_the_examples_that_they_share():
    """Of 10 folds, eight of them to train on: the variance of the mean is 1 + 10 / 8 times as large."""
    values, base = {fold: float(fold) for fold in range(10)}, dict.fromkeys(range(10), 0.0)
    seeds, folds = (paired_difference(values, base, overlap).bounds for overlap in (0.0, 1 / 8))
    assert folds[1] - 4.5 == pytest.approx(1.5 * 2.262 * np.std(range(10), ddof=1) / 10**0.5, abs=1e-3)
    assert folds[0] < seeds[0] < 4.5 < seeds[1] < folds[1]


def test_the_pareto_front():
    points = [(1, 1), (2, 3), (3, 2), (4, 4), (4, 1)]
    assert pareto_front(points, "low") == [0, 1, 3]
    assert pareto_front(points, "high") == [3]
    assert pareto_front([(1, 4), (2, 3), (3, 2)], "high") == [0, 1, 2]
    # Means of the same accuracies that differ by rounding are equal.
    assert pareto_front([(1, 86.2), (2, 86.2 + 1e-13)], "low") == [0]
