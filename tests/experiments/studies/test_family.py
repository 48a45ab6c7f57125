"""The study of whole networks: its figures and their sources, one scale of speed for all rows, its claims."""

from dataclasses import replace

import pytest
import timm
import torch

from lambdanets.console import make_console
from lambdanets.experiments.bench.measure import PASSES
from lambdanets.experiments.compare.cell import Done
from lambdanets.experiments.compare.study import DataFacts, Options, Place, inspect
from lambdanets.experiments.studies.family import STUDY
from lambdanets.experiments.studies.family import study as family
from lambdanets.experiments.studies.family.rows import REFERENCE, ROWS, Network

INFERENCE, TRAINING = PASSES


def done(row, ratio, reference=10.0, kind="speed", width=1.01, peak=10**8, **config):
    config = {"study": "family", "scale": "full", "kind": kind, "row": row, "batch": 4, **config}
    result = {
        "parameters": 10**6,
        "multiply_adds": 10**9,
        "peak_bytes": peak,
        "speed": {
            way: {
                "reference": reference,
                "ratio": [ratio * (1 + (way == INFERENCE)) * factor for factor in (1, 1 / width, width)],
                "images_per_second": [1.0] * 3,
            }
            for way in PASSES
        },
    }
    return Done(config, {}, {}, result, {}, 1.0)


def trained(row, top1, seed=0):
    """None for one that diverged."""
    config = {"study": "family", "scale": "full", "kind": "train", "row": row, "seed": seed, "epochs": 2}
    result = {"diverged": "loss is nan"} if top1 is None else {"test_top1": top1, "validation_top1": top1}
    return Done(config, {"spec": "imagenet"}, {}, result, {}, 1.0)


def test_rows_are_models_and_figures_have_sources():
    assert {REFERENCE, *family.QUICK} <= ROWS.keys()
    assert {f"EfficientNet-B{i}" for i in range(8)} <= ROWS.keys()
    for row in ROWS.values():
        assert timm.is_model(row.model)
        assert (row.top1 is None) == (row.source == "")
        assert row.top1 is None or (70 < row.top1 < 90 and "https://" in row.source)
        if row.model.startswith(("lambda_resnet", "tf_")):
            assert timm.get_pretrained_cfg(row.model).input_size[1] == row.image_size


def test_rates_are_those_of_one_reference():
    """The machine was twice as fast for one cell: the rates are on one scale all the same."""
    cells = [done(REFERENCE, 1.0), done("LambdaResNet-152", 0.5, 20.0), done("EfficientNet-B6", 0.2, 10.0)]
    rows = family.summaries(cells)
    assert {name: row.rate[TRAINING] for name, row in rows.items()} == pytest.approx(
        {REFERENCE: 10, "LambdaResNet-152": 5, "EfficientNet-B6": 2}
    )
    outcome = STUDY.outcome(cells)
    (claim,) = outcome.claims
    assert claim.held
    assert claim.text.startswith(
        "LambdaResNet-152 (84.0 %) trains 2.50 (2.45 to 2.55) times as many images a second as EfficientNet-B6 (84.1 %)"
    )
    training, inference = outcome.plots
    assert [series.name for series in training.series] == ["LambdaResNet", "ResNet", "EfficientNet"]
    assert training.series[0].points[0].x == pytest.approx(5)
    assert inference.series[0].points[0].x == pytest.approx(10)
    networks, sources = outcome.tables
    assert networks.rows[0] == [
        *("LambdaResNet-152", "256", "1.0", "1.00", "100", "84.00", "5.00 (0.50x)", "10.0 (1.00x)", "35", "")
    ]
    assert networks.rows[1][-2:] == ["25.6", "7,240 (1.00x)"]
    assert networks.columns[-1] == "paper: training, images/s (of ResNet-50)"
    assert networks.marked == frozenset()
    assert sources.rows[0][2] == ROWS["LambdaResNet-152"].source


@pytest.mark.parametrize(("ratio", "width", "held"), [(2.0, 1.05, True), (1.2, 1.2, None), (0.5, 1.05, False)])
def test_claims_are_judged_by_the_intervals(ratio, width, held):
    """Each ratio to the reference is within its width: that of both is within its square."""
    cells = [
        done(REFERENCE, 1.0),
        done("LambdaResNet-152", ratio, width=width),
        done("EfficientNet-B6", 1, width=width),
    ]
    (claim,) = STUDY.outcome(cells).claims
    assert claim.held is held
    assert f"trains {ratio:.2f} ({ratio / width**2:.2f} to {ratio * width**2:.2f}) times" in claim.text


def test_what_lambda_networks_lose_is_marked():
    cells = [
        done(REFERENCE, 1.0),  # faster and smaller than all, less accurate
        done("LambdaResNet-152", 0.5, peak=5 * 10**8),
        done("LambdaResNet-200", 0.3, peak=9 * 10**8),
        done("EfficientNet-B6", 0.6, peak=4 * 10**8),  # at least as accurate as the first of the two
        done("ResNet-RS-350", 0.301, peak=10**9),  # as fast as the second
    ]
    (table, _) = STUDY.outcome(cells).tables
    assert [row[0] for row in table.rows[:2]] == ["LambdaResNet-152", "LambdaResNet-200"]
    assert table.marked == {(0, 4), (0, 6), (0, 7)}
    assert "is slower by its whole interval" in table.notes[-1]


def test_measured_accuracies_replace_published_ones():
    cells = [
        done(REFERENCE, 1.0),
        done("LambdaResNet-50", 2.0),
        trained("LambdaResNet-50", 0.5),
        trained(REFERENCE, 0.6),
    ]
    cells.append(done("EfficientNet-B0", 1.0))  # not trained
    outcome = STUDY.outcome(cells)
    (table,) = outcome.tables
    assert {line[0]: line[5] for line in table.rows} == {
        "LambdaResNet-50": "50.00",
        REFERENCE: "60.00",
        "EfficientNet-B0": "",
    }
    assert [claim.held for claim in outcome.claims] == [True]
    assert "trainings on imagenet" in " ".join(outcome.notes)


def test_trainings_that_diverged_are_told_and_give_no_answer():
    ours = [trained("LambdaResNet-50", 0.5), trained("LambdaResNet-50", None, seed=1)]
    speed = [done(REFERENCE, 1.0), done("LambdaResNet-50", 2.0)]
    outcome = STUDY.outcome([*speed, *ours, trained(REFERENCE, 0.6)])
    (table,) = outcome.tables
    assert {line[0]: line[5] for line in table.rows} == {
        "LambdaResNet-50": "50.00 diverged with seed 1",
        REFERENCE: "60.00",
    }
    assert table.bad == {0}
    assert [claim.held for claim in outcome.claims] == [None]
    # Where all did, no published accuracy stands in their place.
    (table,) = STUDY.outcome([*speed, trained(REFERENCE, None)]).tables
    assert {line[0]: line[5] for line in table.rows}[REFERENCE] == "diverged with seed 0"


# The recipe has more workers than a small machine has cores.
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_cells(tmp_path, monkeypatch):
    quick = STUDY.cells(Options(quick=True))
    assert [cell.config["row"] for cell in quick] == list(family.QUICK)
    (cell,) = STUDY.cells(Options(only=(REFERENCE,)))
    assert 1e9 < STUDY.needs(cell.config).memory < 4e9
    data = DataFacts("images", "f", 32, 3, 10, (45_000, 5_000, 10_000))
    cells = STUDY.cells(Options(only=("ResNet-50",), data=data, seeds=2, epochs=3))
    assert [cell.config["kind"] for cell in cells] == ["speed", "train", "train"]
    recipe = family.recipe_of(cells[1].config, "images")
    assert (recipe.model, recipe.image_size, recipe.epochs, recipe.warmup_epochs) == ("resnet50", 224, 3, 1)
    assert (recipe.batch_size, recipe.accumulate) == (512, 16)
    small = Network("LambdaResNet", "lambda_resnet_tiny", 8, None, "")
    monkeypatch.setitem(ROWS, REFERENCE, small)
    monkeypatch.setitem(ROWS, "LambdaResNet-50", small)
    config = {**quick[1].config, "model": small.model, "image_size": 8, "seconds": 0.0, "most": 0.0}
    result = STUDY.run(config, Place(tmp_path, None, None))
    assert result["peak_bytes"] > 1e5
    for way in PASSES:
        median, low, high = result["speed"][way]["ratio"]
        assert 0 < low <= median <= high < 1e3
        assert result["speed"][way]["reference"] > 1
    assert "images/s" in STUDY.line(result)
    # A training is a real one, of few small images.
    options = Options(only=("LambdaResNet-50",), data=inspect("digits"), seeds=1, epochs=1)
    training = {**STUDY.cells(options)[1].config, "model": small.model, "image_size": 8}
    result = STUDY.run(training, Place(tmp_path, "digits", make_console()))
    assert 0.05 < result["test_top1"] <= 1
    assert len(result["train_loss"]) == 1


def test_every_network_is_trained_alike_at_the_size_of_imagenet(monkeypatch):
    """In parts that fit, which all processes share; regularisation does not favour one family."""
    data = DataFacts("imagenet", "f", 64, 3, 1000, (1_256_167, 25_000, 50_000))
    trainings = [cell.config for cell in STUDY.cells(Options(data=data, seeds=1)) if cell.config["kind"] == "train"]
    assert len(trainings) == len(ROWS)
    recipes = [family.recipe_of(config, "imagenet") for config in trainings]
    assert len({repr(replace(recipe, model=recipes[0].model, image_size=160)) for recipe in recipes}) == 1
    assert (recipes[0].batch_size, recipes[0].accumulate) == (4096, 128)
    needs = {config["row"]: STUDY.needs(config) for config in trainings}
    assert needs[REFERENCE].memory < 8e9
    assert max(need.memory for need in needs.values()) < 128e9
    assert 1e9 < needs["ResNet-RS-420"].disk < 15e9
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert family.recipe_of(trainings[0], "imagenet").accumulate == 16
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert max(STUDY.needs(config).memory for config in trainings) < 8e9
