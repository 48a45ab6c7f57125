"""Means over seeds with their intervals, and paired differences with their tests."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

__all__ = ["Mean", "Paired", "mean_of", "paired_difference", "pareto_front"]

CONFIDENCE = 0.95
# Values that differ by less are equal: means of the same accuracies in another order.
TIE = 1e-9
_RESAMPLES = 9999


@dataclass(frozen=True)
class Mean:
    """A mean with its interval at 95 %; one value, or equal ones, have no interval: None."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Paired:
    """A mean of paired differences.

    Args:
        difference: the mean of the differences with its bootstrap interval.
        p: two-sided p-value of a permutation test of the signs; None for one pair. Of n pairs it is at least 2^(1 - n).
        bounds: between which the mean difference is for a verdict: all of the bootstrap interval, which is too narrow
            of few seeds, and of Student's t interval at 95 %, which is not (of folds it is widened). None for one pair
            or equal differences.
    """

    difference: Mean
    p: float | None
    bounds: tuple[float, float] | None


def mean_of(values: Sequence[float]) -> Mean:
    """Return the mean with the BCa bootstrap interval of scipy (Efron 1987).

    Args:
        values: at least one.
    """
    sample = np.asarray(values, dtype=np.float64)
    mean = float(sample.mean())
    if len(sample) < 2 or np.ptp(sample) < TIE:
        return Mean(mean, None, None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a degenerate distribution, found out below
        interval = stats.bootstrap(
            (sample,), np.mean, confidence_level=CONFIDENCE, n_resamples=_RESAMPLES, method="BCa", rng=0
        ).confidence_interval
    low, high = float(interval.low), float(interval.high)
    if not (np.isfinite(low) and np.isfinite(high)):
        low, high = float(sample.min()), float(sample.max())
    return Mean(mean, low, high)


def paired_difference(
    values: Mapping[int, float], baseline: Mapping[int, float], overlap: float = 0.0
) -> Paired | None:
    """Return the mean difference to a baseline over the seeds that both have, with a permutation test.

    Args:
        values: by seed.
        baseline: by seed.
        overlap: of k folds, the examples to test on over those to train on. The variance of their mean is larger by
            the factor 1 + k · overlap (Nadeau and Bengio 2003, "Inference for the generalization error", section 3).

    Returns:
        The difference, or None without a common seed.
    """
    seeds = sorted(values.keys() & baseline.keys())
    if not seeds:
        return None
    differences = np.array([values[seed] - baseline[seed] for seed in seeds])
    mean = mean_of(differences.tolist())
    if len(seeds) < 2:
        return Paired(mean, None, None)
    test = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", vectorized=False, n_resamples=_RESAMPLES, rng=0
    )
    bounds = None
    if mean.low is not None and mean.high is not None:
        student = stats.ttest_1samp(differences, 0).confidence_interval(CONFIDENCE)
        half = float(student.high - student.low) / 2 * math.sqrt(1 + len(seeds) * overlap)
        bounds = min(mean.low, mean.mean - half), max(mean.high, mean.mean + half)
    return Paired(mean, float(test.pvalue), bounds)


def pareto_front(points: Sequence[tuple[float, float]], x_is: str) -> list[int]:
    """Return the points that no other point beats, by their numbers, in the order of x.

    Args:
        points: (x, y); a high y is good.
        x_is: "low" if a low x is good, "high" if a high one is.
    """
    sign = 1 if x_is == "low" else -1
    order = sorted(range(len(points)), key=lambda i: (sign * points[i][0], -points[i][1]))
    front: list[int] = []
    for i in order:
        if not front or points[i][1] > points[front[-1]][1] + TIE:
            front.append(i)
    return front if x_is == "low" else front[::-1]
