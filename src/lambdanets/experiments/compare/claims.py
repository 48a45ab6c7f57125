"""Claims of a study: what it expected and what its rows say of it, a sentence with a verdict each.

A verdict is given by a whole interval: where what was expected is neither true nor false in all of it, there is none.
Of accuracies it is all of the bootstrap interval, which is shown, and of Student's t interval, which allows for few
seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from lambdanets.experiments.bench.measure import INFERENCE, TRAINING
from lambdanets.experiments.compare.accuracy import Scores, signed
from lambdanets.experiments.compare.outcome import Claim
from lambdanets.experiments.compare.statistics import paired_difference
from lambdanets.experiments.compare.summary import Summary, times_as_fast

__all__ = ["Expected", "memory_claim", "pair_claim", "rate_claim", "verdict"]

Expected = Literal["more than 0", "0 or more", "0 or less", "less than 0", "-0.5 or more"]


def verdict(low: float, high: float, expected: Expected) -> bool | None:
    """Return True if all values of an interval are as expected, False if none is, else None."""
    if expected == "-0.5 or more":
        low, high, expected = low + 0.5, high + 0.5, "0 or more"
    true = {"more than 0": low > 0, "0 or more": low >= 0, "0 or less": high <= 0, "less than 0": high < 0}
    false = {"more than 0": high <= 0, "0 or more": high < 0, "0 or less": low > 0, "less than 0": low >= 0}
    return True if true[expected] else False if false[expected] else None


def pair_claim(
    rows: Mapping[str, Scores], name: str, base: str, expected: Expected, unit: str = "seed", paper: str = ""
) -> list[Claim]:
    """Say how the accuracy of a row differs from another's; [] where one of them has no cell.

    Args:
        rows: of the study.
        name: of the row.
        base: name of the other.
        expected: of the difference.
        unit: what differences are paired by. Where a training of one diverged there is no verdict.
        paper: what the paper has, to be added.
    """
    if name not in rows or base not in rows:
        return []
    told = f"expected: {expected}{f' (paper: {paper})' if paper else ''}."
    diverged = {one: rows[one].diverged for one in (name, base)}
    bad = [f"{one} with {unit} {', '.join(map(str, seeds))}" for one, seeds in diverged.items() if seeds]
    difference = paired_difference(rows[name].accuracies, rows[base].accuracies, rows[name].overlap)
    if difference is None:
        why = f"diverged: {'; '.join(bad)}" if bad else "not trained yet"
        return [Claim(f"{name}: points of accuracy against {base}: {why}; {told}", None)]
    text = f"{name}: {signed(difference)} points of accuracy against {base}"
    if bad:
        return [Claim(f"{text} without those that diverged ({'; '.join(bad)}); {told}", None)]
    held = None if difference.bounds is None else verdict(*difference.bounds, expected)
    return [Claim(f"{text}; {told}", held)]


def rate_claim(rows: Mapping[str, Summary], name: str, others: Sequence[str], way: str) -> list[Claim]:
    """Say how many times as many images a second a row computes as another; expected: more than 1.

    Where the paper has the rates of both, of training, their ratio is added.

    Args:
        rows: of the study.
        name: of the row.
        others: forms of the other row, of which the fastest is taken.
        way: the pass.

    Returns:
        The claim; [] if they were not measured in one run.
    """
    found = {other: times_as_fast(rows.get(name), rows.get(other), way) for other in others}
    ratios = {other: ratio for other, ratio in found.items() if ratio is not None}
    if not ratios:
        return []
    other = min(ratios, key=lambda form: ratios[form].median)
    ratio = ratios[other]
    does = "classifies" if way == INFERENCE else "trains"
    own = rows[name].spec.paper.get("rate")
    theirs = next((rate for form in others if form in rows and (rate := rows[form].spec.paper.get("rate"))), None)
    paper = f" (paper: {own / theirs:.2f})" if way == TRAINING and own and theirs else ""
    text = (
        f"{name} {does} {ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f}) times as many images a second as "
        f"{other}; expected: more than 1{paper}."
    )
    return [Claim(text, verdict(ratio.low - 1, ratio.high - 1, "more than 0"))]


def memory_claim(rows: Mapping[str, Summary], name: str, others: Sequence[str]) -> list[Claim]:
    """Say how much of the memory for backward that another row keeps a row keeps; expected is less.

    Args:
        rows: of the study.
        name: of the row.
        others: forms of the other row, of which the one that keeps least is taken.

    Returns:
        The claim; [] if one was not measured.
    """
    row, measured = rows.get(name), [other for other in others if other in rows and rows[other].saved_bytes]
    if row is None or not row.saved_bytes or not measured:
        return []
    other = min(measured, key=lambda form: rows[form].saved_bytes or 0)
    share = row.saved_bytes / (rows[other].saved_bytes or 1)
    text = f"{name} keeps {share:.2f} times as many bytes for backward as {other}; expected: less than 1."
    return [Claim(text, share < 1)]
