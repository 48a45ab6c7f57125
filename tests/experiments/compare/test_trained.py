"""A study of trained models from end to end, on few images; its cells, what a stopped one leaves, its tables."""

import json

import pytest
import timm
import torch
from PIL import Image

from lambdanets.console import make_console
from lambdanets.experiments.compare import trained
from lambdanets.experiments.compare.cell import Done
from lambdanets.experiments.compare.grid import run_cells
from lambdanets.experiments.compare.measured import HELD, PROCESS_BYTES, measure_memory, step_bytes
from lambdanets.experiments.compare.rows import Row
from lambdanets.experiments.compare.study import DataFacts, Options, inspect
from lambdanets.experiments.compare.summary import summaries
from lambdanets.experiments.compare.trained import Scale, TrainedStudy
from lambdanets.experiments.report.study_report import write_report
from lambdanets.experiments.studies import get_study, list_studies
from lambdanets.layers import LambdaLayer
from lambdanets.layers.registry import LAYERS

FACTS = DataFacts("images", "f", 32, 3, 10, (45_000, 5_000, 10_000))
SMALL = Scale((1, 1, 1, 1), 1, (1e-3, 1e-2), 64, 0.01, 0.01)
TOY = TrainedStudy(
    "toy", "Toy", "Which?", {"convolution": Row("CCCC"), "lambda": Row("LLLL", {"scope": 3})}, lambda rows: []
)
TRAINED = [name for name in list_studies() if isinstance(get_study(name), TrainedStudy)]


def test_facts_of_data():
    facts = inspect("digits")
    assert facts == inspect("digits")
    assert (facts.image_size, facts.channels, facts.classes) == (8, 1, 10)
    assert sum(facts.images) == 1797


@pytest.mark.parametrize("name", TRAINED)
def test_every_row_has_a_model_that_differs_in_its_arguments_alone(name):
    study = get_study(name)
    for quick in (False, True):
        cells = study.cells(Options(quick=quick, data=FACTS))
        configs = [cell.config for cell in cells if cell.config["kind"] == "train"]
        with_trainings = [name for name, row in study.rows.items() if row.trains]
        assert list(dict.fromkeys(config["row"] for config in configs)) == with_trainings
        measured = [cell.config["row"] for cell in cells if cell.config["kind"] == "memory"]
        assert measured == list(study.rows)
        varying = {"row", "seed", "model_kwargs"}
        assert len({json.dumps({k: v for k, v in config.items() if k not in varying}) for config in configs}) == 1
    with torch.device("meta"):
        for config in configs[::3]:
            trained.recipe_of({**config, "lr": 0.1}, "digits")
            model = timm.create_model(config["model"], num_classes=10, **config["model_kwargs"])
            assert sum(p.numel() for p in model.parameters()) > 1e5


def test_layers_have_as_many_heads_as_lambda_layers():
    cells = {}
    for letter in LAYERS:
        study = TrainedStudy("toy", "Toy", "Which?", {"row": Row(letter * 4)}, lambda rows: [])
        cells[letter] = study.cells(Options(data=FACTS))[1].config["model_kwargs"]
    given = {letter for letter, arguments in cells.items() if "layer_args" in arguments}
    assert given == {*"EAWXG"}
    assert all(cells[letter]["layer_args"] == {letter: {"num_heads": 4}} for letter in given)
    with torch.device("meta"):
        for arguments in (cells["L"], cells["V"]):
            model = timm.create_model("lambda_resnet_tiny", **arguments)
            assert {layer.num_heads for layer in model.modules() if isinstance(layer, LambdaLayer)} == {4}


def test_it_takes_the_rate_that_is_best_by_validation_and_reports(tmp_path, monkeypatch, capsys):
    """All cells but the trainings are real."""

    def scores(recipe, place):
        is_lambda = recipe.model_kwargs["stages"] == "LLLL"
        top1 = 0.5 + 0.1 * is_lambda + 0.4 * (recipe.lr == SMALL.rates[is_lambda])
        return {"validation_top1": top1, "test_top1": top1 / 2 + recipe.seed / 100}

    monkeypatch.setitem(trained.SCALES, "quick", SMALL)
    monkeypatch.setattr(trained, "train_cell", scores)
    options = Options(quick=True, seeds=2, data=inspect("digits"), epochs=1)
    cells = run_cells(TOY, options, tmp_path, 1, make_console())
    chosen = {(cell.row, cell.config["lr"]) for cell in cells if cell.kind == "train"}
    assert chosen == {("convolution", SMALL.rates[0]), ("lambda", SMALL.rates[1])}
    assert not list((tmp_path / "work").iterdir())
    rows = summaries(TOY.rows, cells)
    assert rows["lambda"].accuracies == pytest.approx({0: 50, 1: 51})
    assert rows["lambda"].difference.difference.mean == pytest.approx(5)
    assert rows["lambda"].ratio["forward"][0] > 0
    assert rows["lambda"].saved_bytes > 0
    page = write_report(TOY.outcome(cells), tmp_path)
    assert "<td>50.50 (50.00 to 51.00)</td>" in page.read_text()
    assert "[11/11] train of lambda, seed 1, learning rate 0.01" in capsys.readouterr().out


def test_data_of_one_class_are_refused_at_once(tmp_path):
    for part in ("train", "test"):
        (tmp_path / part / "only").mkdir(parents=True)
        for index in range(20):
            Image.new("RGB", (8, 8)).save(tmp_path / part / "only" / f"{index}.png")
    with pytest.raises(ValueError, match=r"have 1 class \(only\); a classifier needs at least 2"):
        inspect(str(tmp_path))


def test_trainings_are_expected_to_take_as_long_as_their_speed_says(monkeypatch):
    monkeypatch.setitem(trained.SCALES, "quick", SMALL)
    cells = TOY.cells(Options(quick=True, seeds=1, data=FACTS, epochs=2))
    rates = {"convolution": {"images_per_second": [900, 800, 1000]}, "lambda": {"images_per_second": [300, 1, 2]}}
    speed = Done(cells[0].config, FACTS.to_dict(), {}, {trained.TRAINING: rates}, {}, 40.0)
    for cell in cells:
        for one in (cell, *cell.after):
            expected = {"convolution": 100, "lambda": 300}.get(one.config["row"]) if "seed" in one.config else None
            assert TOY.expected_seconds(one.config, [speed]) == expected
            assert TOY.expected_seconds(one.config, []) is None


def test_every_cell_says_what_it_needs(monkeypatch):
    monkeypatch.setitem(trained.SCALES, "quick", SMALL)
    cells = TOY.cells(Options(quick=True, seeds=1, data=inspect("digits"), epochs=1))
    needs = {(cell.config["kind"], cell.config["row"]): TOY.needs({**cell.config, "lr": 0.1}) for cell in cells}
    for row in TOY.rows:
        assert needs["train", row].memory > needs["memory", row].memory > PROCESS_BYTES
        assert needs["speed", "all rows"].memory > needs["memory", row].memory
        assert needs["train", row].disk > needs["memory", row].disk == 0


def done(row, seed, top1=None):
    result = {"diverged": "loss is nan", "validation_top1": 0.0} if top1 is None else {"test_top1": top1}
    config = {"study": "toy", "kind": "train", "row": row, "seed": seed, "scale": "full", "lr": 0.1, "epochs": 1}
    config |= {"model": "m", "model_kwargs": {"layers": [1]}, "batch": 2}
    data = {"spec": "d", "images": [1, 2, 3], "classes": 2, "image_size": 8}
    return Done(config, data, {}, result, {}, 1.0)


def test_a_training_that_diverged_is_a_result():
    cells = [done("convolution", seed, 0.5 + seed / 10) for seed in range(3)]
    cells += [done("lambda", 0, 0.7), done("lambda", 1)]
    rows = summaries(TOY.rows, cells)
    assert rows["lambda"].diverged == [1]
    assert len(rows["lambda"].accuracies) == 1
    table = TOY.outcome(cells).tables[0]
    assert table.rows[1][3] == "70.00 diverged with seed 1"
    assert table.bad == {1}


def test_memory_is_that_of_an_image():
    arguments = {"layers": [1, 1, 1, 1], "stages": "CCCC", "stem_stride": 1, "img_size": 8}
    shape = {"image_size": 8, "channels": 1, "classes": 10}
    found = {batch: measure_memory("lambda_resnet_tiny", arguments, shape, batch) for batch in (2, 8)}
    assert found[2]["saved_bytes"] == pytest.approx(found[8]["saved_bytes"], rel=0.1)
    assert found[8]["peak_bytes"] > found[8]["saved_bytes"] > 1e5
    assert found[2]["parameters"] == found[8]["parameters"]
    # Scaled from small steps: what a step of 64 images takes, within a third.
    step = 64 * measure_memory("lambda_resnet_tiny", arguments, shape, 64)["peak_bytes"]
    small, large = (step_bytes("lambda_resnet_tiny", arguments, shape, batch) for batch in (2, 64))
    assert large - small == pytest.approx(HELD * step, rel=0.33)
