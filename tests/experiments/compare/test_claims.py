"""Verdicts on what was expected: by whole intervals, none where trainings are missing or diverged."""

from typing import get_args

import pytest

from lambdanets.experiments.bench.measure import INFERENCE, PASSES, TRAINING
from lambdanets.experiments.compare.cell import Done
from lambdanets.experiments.compare.claims import Expected, memory_claim, pair_claim, rate_claim, verdict
from lambdanets.experiments.compare.rows import Row
from lambdanets.experiments.compare.summary import summaries

ROWS = {"base": Row("CCCC"), "ours": Row("CCCC", paper={"rate": 8}), "other": Row("CCCC", paper={"rate": 2})}


def done(row, kind, result, date="2026-01-01", **config):
    return Done({"study": "toy", "kind": kind, "row": row, "lr": 0.1, **config}, {}, {}, result, {"date": date}, 1.0)


def trainings(row, tops):
    """None for one that diverged."""
    results = ({"diverged": "loss is nan"} if top is None else {"test_top1": top} for top in tops)
    return [done(row, "train", result, seed=seed) for seed, result in enumerate(results)]


@pytest.mark.parametrize(
    ("low", "high", "true"),
    [
        (1, 2, {"more than 0", "0 or more", "-0.5 or more"}),
        (-2, -1, {"less than 0", "0 or less"}),
        # All accuracies are equal: no difference is neither more nor less.
        (0, 0, {"0 or more", "0 or less", "-0.5 or more"}),
        (-0.3, -0.1, {"less than 0", "0 or less", "-0.5 or more"}),
    ],
)
def test_a_whole_interval_decides(low, high, true):
    kinds = get_args(Expected)
    assert {kind: verdict(low, high, kind) for kind in kinds} == {kind: kind in true for kind in kinds}
    assert {verdict(-1, 1, kind) for kind in kinds} == {None}


def test_of_accuracy():
    rows = summaries(ROWS, trainings("base", [0.5, 0.6, 0.5]) + trainings("ours", [0.6, 0.71, 0.62]))
    (claim,) = pair_claim(rows, "ours", "base", "more than 0", paper="0.8")
    assert claim.text.startswith("ours: +11.00 (10.00 to 12.00) points of accuracy against base; expected: more than")
    assert claim.text.endswith("(paper: 0.8).")
    assert claim.held is True
    assert pair_claim(rows, "other", "base", "more than 0") == []
    # Two seeds whose differences are 10 and 20 points: Student's t interval is as wide as all accuracies.
    few = summaries(ROWS, trainings("base", [0.5, 0.6]) + trainings("ours", [0.6, 0.8]))
    assert pair_claim(few, "ours", "base", "more than 0")[0].held is None
    # Equal accuracies of all seeds, as of few test images.
    equal = summaries(ROWS, trainings("base", [0.5] * 3) + trainings("ours", [0.5] * 3))
    assert pair_claim(equal, "ours", "base", "0 or more")[0].held is None
    one = summaries(ROWS, trainings("base", [0.5]) + trainings("ours", [0.6]))
    assert pair_claim(one, "ours", "base", "more than 0")[0].held is None


def test_what_is_missing_or_diverged_is_said_and_has_no_verdict():
    rows = summaries(ROWS, [*trainings("base", [0.5, 0.6]), done("ours", "memory", {"parameters": 5})])
    (claim,) = pair_claim(rows, "ours", "base", "more than 0")
    assert (claim.text, claim.held) == (
        "ours: points of accuracy against base: not trained yet; expected: more than 0.",
        None,
    )
    # The two that are left are better.
    rows = summaries(ROWS, trainings("base", [0.5, 0.6, 0.5]) + trainings("ours", [0.7, 0.8, None]))
    (claim,) = pair_claim(rows, "ours", "base", "more than 0")
    assert "without those that diverged (ours with seed 2)" in claim.text
    assert claim.held is None


def speed(seconds, date="2026-01-01"):
    """A run of which the ratios of medians differ from the medians of ratios."""
    result = {
        way: {
            name: {"images_per_second": [1 / sorted(own)[1]] * 3, "ratio": [1] * 3, "seconds": own}
            for name, own in seconds.items()
        }
        for way in PASSES
    }
    return done("all rows", "speed", result, date)


def test_rates_are_compared_turn_by_turn_and_with_the_fastest_form():
    run = speed({"base": [1, 1, 1], "ours": [1, 2, 4], "other": [3, 6, 5]})
    rows = summaries(ROWS, [run, *trainings("base", [0.5]), *trainings("ours", [0.5]), *trainings("other", [0.5])])
    (claim,) = rate_claim(rows, "ours", ["other"], TRAINING)
    said, expected = claim.text.split("; ")
    assert said == "ours trains 3.00 (1.25 to 3.00) times as many images a second as other"
    assert expected == "expected: more than 1 (paper: 4.00)."
    assert claim.held is True
    (claim,) = rate_claim(rows, "ours", ["other", "base"], INFERENCE)
    assert claim.text.startswith("ours classifies 0.50 (0.25 to 1.00) times as many images a second as base;")
    assert "paper" not in claim.text  # which has rates of training alone
    assert claim.held is False


def test_a_row_of_the_paper_that_had_no_room_has_no_rate_to_compare_with():
    rows = ROWS | {"full": Row("CCCC", paper={"rate": 0})}
    trained = [*trainings("ours", [0.5]), *trainings("full", [0.5])]
    found = summaries(rows, [speed({"ours": [1, 1, 1], "full": [2, 2, 2]}), *trained])
    (claim,) = rate_claim(found, "ours", ["full"], TRAINING)
    assert claim.text.endswith("expected: more than 1.")


def test_rates_are_of_the_latest_run_that_has_both():
    cells = [*trainings("base", [0.5]), *trainings("ours", [0.5])]
    old = speed({"base": [9, 9, 9], "ours": [1, 1, 1]}, "2026-01-01")
    apart = speed({"ours": [1, 1, 1]}, "2026-01-02")
    assert rate_claim(summaries(ROWS, [apart, *cells]), "ours", ["base"], TRAINING) == []
    (claim,) = rate_claim(summaries(ROWS, [apart, old, *cells]), "ours", ["base"], TRAINING)
    assert claim.text.startswith("ours trains 9.00 ")
    # A form that was timed in another run, in which all were faster, is not compared with.
    other = speed({"other": [0.1] * 3}, "2026-01-03")
    rows = summaries(ROWS, [other, old, *cells, *trainings("other", [0.5])])
    (claim,) = rate_claim(rows, "ours", ["other", "base"], TRAINING)
    assert claim.text.startswith("ours trains 9.00 ")
    new = speed({"base": [2, 2, 2], "ours": [1, 1, 1]}, "2026-01-03")
    (claim,) = rate_claim(summaries(ROWS, [new, old, *cells]), "ours", ["base"], TRAINING)
    assert claim.text.startswith("ours trains 2.00 ")


def test_of_memory_with_the_form_that_keeps_least():
    cells = [done(row, "memory", {"saved_bytes": size}) for row, size in (("base", 4), ("ours", 6), ("other", 5))]
    rows = summaries(ROWS, cells)
    (claim,) = memory_claim(rows, "ours", ["other", "base"])
    assert claim.text == "ours keeps 1.50 times as many bytes for backward as base; expected: less than 1."
    assert claim.held is False
    assert memory_claim(rows, "ours", ["another"]) == []
