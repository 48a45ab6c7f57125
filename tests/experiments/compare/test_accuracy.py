"""Accuracies of rows: paired with the first row's, in words, and against costs."""

import numpy as np
import pytest

from lambdanets.experiments.compare.accuracy import (
    SMALL_SAMPLES,
    accuracy_cells,
    accuracy_columns,
    accuracy_plot,
    marked,
    scores_of,
    told_p,
    unfinished_warning,
)
from lambdanets.experiments.compare.cell import Done
from lambdanets.experiments.compare.statistics import Mean, Paired, mean_of


def trainings(row, tops, kind="train"):
    """None for one that diverged."""
    results = ({"diverged": "loss is nan"} if top is None else {"test_top1": top} for top in tops)
    return [
        Done({"kind": kind, "row": row, "seed": seed}, {}, {}, result, {}, 1.0) for seed, result in enumerate(results)
    ]


def test_scores_are_paired_with_the_first_row():
    cells = [*trainings("worse", [0.4, 0.5, None]), *trainings("base", [0.5, 0.7, 0.9])]
    cells += trainings("base", [None], kind="search")
    base, worse = (scores_of(cells, name, "base") for name in ("base", "worse"))
    assert (base.accuracies, base.difference, base.diverged) == ({0: 50.0, 1: 70.0, 2: 90.0}, None, [])
    assert (worse.difference.difference.mean, worse.diverged) == (pytest.approx(-15.0), [2])
    cells += trainings("lost", [0.9, 0.9, None])
    better, lost = scores_of(cells[3:], "base", "worse"), scores_of(cells, "lost", "base")
    assert lost.difference.difference.low > 0
    assert marked([base, worse, better, lost]) == {1, 3}
    assert scores_of(cells, "none", "base").accuracy is None
    line = dict(zip(accuracy_columns("base", "fold"), accuracy_cells(worse, "fold"), strict=True))
    assert line["test accuracy, % (95 %)"].endswith(" diverged with fold 2")
    assert line["difference to base (95 %)"].startswith("-15.00 (")
    assert line["folds"] == "2"


def test_rows_without_an_accuracy_or_a_cost_are_not_drawn():
    cells = [done for name in ("base", "other", "dear") for done in trainings(name, [0.5, 0.7])]
    rows = {name: scores_of(cells, name, "base") for name in ("base", "other", "dear", "untrained")}
    costs = {"base": 12.345, "other": None, "dear": 2.0, "untrained": 3.0}
    plot = accuracy_plot("time", "Time", "time, ms", costs, rows)
    found = {series.name: [(point.x, point.y, point.text) for point in series.points] for series in plot.series}
    assert found == {
        "base": [(12.345, pytest.approx(60.0), "time, ms: 12.35")],
        "dear": [(2.0, pytest.approx(60.0), "time, ms: 2")],
    }


@pytest.mark.parametrize(("p", "text"), [(0.25, "0.250"), (2 / 1024, "0.002"), (1e-4, "< 0.001"), (None, "")])
def test_a_small_p_is_not_zero(p, text):
    assert told_p(Paired(Mean(1.0, 0.0, 2.0), p, None)) == text


@pytest.mark.parametrize(("seeds", "said"), [(3, 70), (5, 85), (10, 91)])
def test_what_is_said_of_intervals_of_few_seeds(seeds, said):
    """How often they cover the mean, as SMALL_SAMPLES has it: 300 samples, within four standard errors."""
    assert f"in about {said} of 100 cases with" in SMALL_SAMPLES or f"in {said} with {seeds}" in SMALL_SAMPLES
    samples = np.random.default_rng(0).normal(size=(300, seeds))
    means = [mean_of(sample.tolist()) for sample in samples]
    share = np.mean([mean.low <= 0 <= mean.high for mean in means])
    assert share == pytest.approx(said / 100, abs=4 * (said * (100 - said) / 300) ** 0.5 / 100)


def test_a_mark_needs_the_bounds_of_a_verdict():
    """Three seeds that are all below the first row's say little: one in eight such rows would be by luck."""
    cells = [*trainings("base", [0.6, 0.6, 0.6]), *trainings("luck", [0.59, 0.55, 0.5])]
    cells += trainings("worse", [0.5, 0.51, 0.505])
    rows = [scores_of(cells, name, "base") for name in ("base", "luck", "worse")]
    assert rows[1].difference.difference.high < 0 < rows[1].difference.bounds[1]
    assert marked(rows) == {2}


def test_trainings_that_are_missing_are_told():
    cells = [*trainings("base", [0.5, 0.5, None]), *trainings("few", [0.5])]
    rows = {name: scores_of(cells, name, "base") for name in ("base", "few", "none")}
    assert unfinished_warning(rows, "fold") == [
        "Not finished: there are no trainings yet of “none”.",
        "Not finished: trainings are missing of “few (1 of 3 folds)”.",
    ]
    assert unfinished_warning({"base": rows["base"]}) == unfinished_warning({}) == []
