"""What the tables and plots of a study of trained models say, from cells whose numbers are known."""

from dataclasses import replace

import pytest

from lambdanets.experiments.bench.measure import PASSES
from lambdanets.experiments.compare.cell import Done
from lambdanets.experiments.compare.rows import Row
from lambdanets.experiments.compare.study import DataFacts, Options
from lambdanets.experiments.compare.summary import _dearer, summaries
from lambdanets.experiments.compare.trained import TrainedStudy

ROWS = {
    "convolution": Row("CCCC", paper={"params": 25.6, "top1": 76.9, "rate": 7240}),
    "lambda": Row("LLLL", paper={"gigabytes": 1.9}),
    "worse": Row("VVVV", paper={"gigabytes": 120, "rate": 0}),
}
STUDY = TrainedStudy("toy", "Toy", "Which?", ROWS, lambda rows: [])


def done(row, kind, result, **config):
    config = {"study": "toy", "kind": kind, "row": row, "scale": "full", **config}
    data = {"spec": "d", "images": [1, 2, 3], "classes": 2, "image_size": 8}
    return Done(config, data, {}, result, {}, 1800.0)


def cells():
    """Three seeds a row: lambda is 1 to 3 points better, the last one 2 to 2.2 points worse."""
    found = []
    above = {"convolution": (0, 0, 0), "lambda": (1, 2, 3), "worse": (-2, -2.2, -2.1)}
    for row, size in (("convolution", 4), ("lambda", 1), ("worse", 8)):
        memory = {"parameters": size * 10**6, "multiply_adds": 10**7, "saved_bytes": size * 10**6, "peak_bytes": 10**7}
        found.append(done(row, "memory", memory))
        for seed in range(3):
            config = {"seed": seed, "lr": 0.1, "epochs": 1, "model": "m", "model_kwargs": {"layers": [1]}, "batch": 2}
            found.append(done(row, "train", {"test_top1": 0.8 + above[row][seed] / 100}, **config))
    times = {
        "convolution": {"images_per_second": [1000, 990, 1010], "ratio": [1, 1, 1]},
        "lambda": {"images_per_second": [1500, 1400, 1600], "ratio": [1.5, 1.4, 1.6]},
        "worse": {"images_per_second": [500, 400, 600], "ratio": [0.5, 0.4, 0.6]},
    }
    return [*found, done("convolution", "speed", dict.fromkeys(PASSES, times))]


def test_tables():
    accuracy, costs = STUDY.outcome(cells()).tables
    base, better, worse = (dict(zip(accuracy.columns, row, strict=True)) for row in accuracy.rows)
    assert base["parameters, M"] == "4.000"
    assert base["test accuracy, % (95 %)"] == "80.00"
    assert base["difference to convolution (95 %)"] == base["p"] == ""
    assert (base["paper: parameters, M"], base["paper: ImageNet top-1, %"]) == ("25.6", "76.9")
    assert [row["of those of convolution"] for row in (base, better, worse)] == ["1.00", "0.25", "2.00"]
    assert better["test accuracy, % (95 %)"].startswith("82.00 (81.")
    assert better["difference to convolution (95 %)"].startswith("+2.00 (1.")
    assert worse["difference to convolution (95 %)"].startswith("-2.10 (-")
    # Of three pairs all signs alike: 2 of 2^3.
    assert (better["p"], better["seeds"], better["learning rate"]) == ("0.250", "3", "0.1")
    # The row that is below the first one by Student's t interval too.
    assert accuracy.bad == {2}
    assert [row[1:] for row in costs.rows] == [
        ["10.0", "1,000 (1.00x)", "1,000 (1.00x)", "4.00", "10.00", "7,240", ""],
        ["10.0", "1,500 (1.50x)", "1,500 (1.50x)", "1.00", "10.00", "", "1.9"],
        ["10.0", "500 (0.50x)", "500 (0.50x)", "8.00", "10.00", "out of memory", "120"],
    ]
    assert costs.columns[-2:] == ["paper: ResNet-50, images/s", "paper: memory (batch 128), GB"]
    # What is above the first row's cost: a time where its whole interval is.
    assert costs.marked == {(2, 2), (2, 3), (2, 4)}


def test_rows_with_another_partner_than_the_first():
    rows = {**ROWS, "worse": replace(ROWS["worse"], against="lambda", model_args={"layers": [2]})}
    study = replace(STUDY, rows=rows)
    table, *_ = study.outcome(cells()).tables
    base, better, worse = (dict(zip(table.columns, row, strict=True)) for row in table.rows)
    assert [row["the other"] for row in (base, better, worse)] == ["", "convolution", "lambda"]
    assert worse["of those of the other"] == "8.00"
    assert worse["difference to the other (95 %)"].startswith("-4.10 (-4.80 to -3.00")
    assert (table.columns[1], table.text) == ("the other", {1})
    chosen = study.cells(Options(only=("worse",), data=DataFacts("d", "f", 8, 1, 2, (1, 2, 3))))
    assert {cell.config["row"] for cell in chosen if cell.config["kind"] == "train"} == {*ROWS}


def test_blocks_of_all_rows_are_told():
    other = [replace(cell, config={**cell.config, "model_kwargs": {"layers": [2]}}) for cell in cells()[-3:-1]]
    assert any("with blocks [1] or [2], 1 epoch in" in note for note in STUDY.outcome([*cells(), *other]).notes)


def test_plots():
    plots = {plot.name: plot for plot in STUDY.outcome(cells()).plots}
    found = {name: [(p.x, p.y) for s in plot.series for p in s.points] for name, plot in plots.items()}
    accuracies = [80, 82, 77.9]
    for name, xs in (("parameters", [4, 1, 8]), ("memory", [4, 1, 8]), ("time", [1, 1 / 1.5, 2])):
        assert found[name] == [pytest.approx(pair) for pair in zip(xs, accuracies, strict=False)]


def test_notes_count_cells_and_hours():
    notes = STUDY.outcome(cells()).notes
    assert notes[-1] == "13 cells, 6.50 hours of computing in all (full size)."


def test_rows_that_are_not_trained_yet_are_named():
    found = [cell for cell in cells() if cell.row != "worse" or cell.kind != "train"]
    assert "Not finished: there are no trainings yet of “worse”." in STUDY.outcome(found).warnings


def test_what_was_measured_by_several_versions_of_the_code_is_said():
    found = cells()
    number = next(i for i, cell in enumerate(found) if cell.kind == "memory")
    assert not any("several versions" in warning for warning in STUDY.outcome(found).warnings)
    found[number] = replace(found[number], environment={**found[number].environment, "commit": "another"})
    (warning,) = (warning for warning in STUDY.outcome(found).warnings if "several versions" in warning)
    assert warning.startswith("Memory and multiply-adds were measured with several versions of the code (")


def test_rows_that_were_timed_apart_are_named():
    """Their rates are of another run than the first row's: the plot has them by their ratios."""
    found = cells()
    run = next(cell for cell in found if cell.kind == "speed")
    names = list(run.result["forward"])
    later = {way: {names[0]: {**times[names[0]], "images_per_second": [1, 1, 1]}} for way, times in run.result.items()}
    outcome = STUDY.outcome([*found, replace(run, result=later, environment={**run.environment, "date": "2099-01-01"})])
    assert f"Timed in other runs than the first row's figures: “{names[1]}”, " in outcome.tables[1].notes[1]


def test_equal_costs_are_not_marked():
    """As they are printed."""
    base, row = (replace(summaries(ROWS, cells())["lambda"], saved_bytes=size) for size in (300_000, 300_080))
    assert 4 not in _dearer(row, base)
    assert 4 in _dearer(replace(row, saved_bytes=310_000), base)


def test_another_form_of_a_row_has_costs_alone():
    forms = {**ROWS, "worse": Row("VVVV", form_of="lambda")}
    study = TrainedStudy("toy", "Toy", "Which?", forms, lambda rows: [])
    outcome = study.outcome([cell for cell in cells() if cell.row != "worse" or cell.kind != "train"])
    accuracy, costs = outcome.tables
    assert [row[0] for row in accuracy.rows] == ["convolution", "lambda"]
    assert [row[0] for row in costs.rows] == ["convolution", "lambda", "worse"]
    assert not any(warning.startswith("Not finished") for warning in outcome.warnings)
