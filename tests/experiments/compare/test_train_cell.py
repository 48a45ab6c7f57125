"""A cell that is a training: real ones, of the digits, that are stopped, damaged or finished."""

import dataclasses
import io
import shutil
import signal

import pytest
from rich.console import Console

from lambdanets.experiments.compare.study import Place, StoppedError
from lambdanets.experiments.compare.train_cell import run_bytes, train_cell
from lambdanets.files import read_csv
from lambdanets.training import Recipe
from lambdanets.training.engine.loop import Trainer

RECIPE = Recipe(
    name="toy",
    model="lambda_resnet_tiny",
    model_kwargs={"layers": [1, 1, 1, 1], "stem_stride": 1},
    data="digits",
    epochs=2,
    batch_size=128,
    optimizer="adamw",
    lr=1e-3,
    ema_decay=0.9,
)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The folder of a cell that was stopped after its first epoch."""
    place = made(tmp_path_factory.mktemp("cell"))

    def stop(self, row):
        signal.raise_signal(signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_show", stop)
        with pytest.raises(StoppedError):
            train_cell(RECIPE, place)
    return place.folder


def made(folder):
    return Place(folder, "digits", Console(file=io.StringIO(), width=200))


@pytest.fixture
def place(stopped, tmp_path):
    return made(shutil.copytree(stopped, tmp_path / "cell"))


def test_a_stopped_training_goes_on(place):
    (first,) = read_csv(place.folder / "run" / "metrics.csv")
    result = train_cell(RECIPE, place)
    assert len(result["train_loss"]) == len(result["validation_by_epoch"]) == 2
    assert result["train_loss"][0] == round(first["train_loss"], 4) > result["train_loss"][1]
    assert train_cell(RECIPE, place) == result  # of a run that is finished, without another training
    assert "begun anew" not in place.console.file.getvalue()


def test_it_takes_no_more_disk_than_it_says(place):
    files = [file for file in (place.folder / "run").rglob("*") if file.is_file()]
    weights = next(file for file in files if file.name == "best.safetensors").stat().st_size
    assert 5 * weights < sum(file.stat().st_size for file in files) < run_bytes(weights)
    # A checkpoint, of which there are three at most, has the copies that are counted.
    checkpoints = {file.parent for file in files if file.parent.parent.name == "checkpoint"}
    assert len(checkpoints) <= 2
    largest = max(sum(file.stat().st_size for file in folder.iterdir()) for folder in checkpoints)
    assert largest == pytest.approx(4 * weights, rel=0.05)


@pytest.mark.parametrize("damage", ["result", "metrics", "first checkpoint", "config", "moved"])
def test_what_cannot_be_gone_on_from_is_trained_anew(place, damage):
    run, recipe = place.folder / "run", RECIPE
    if damage == "result":
        shutil.rmtree(run / "checkpoint")
        (run / "result.json").write_text("{")
    elif damage == "metrics":
        train_cell(RECIPE, place)
        (run / "metrics.csv").write_text("epoch\n")
    elif damage == "first checkpoint":
        shutil.rmtree(run / "checkpoint")
        (run / "checkpoint").mkdir()
    elif damage == "config":
        (run / "config.json").write_text("{}")
    else:
        recipe = dataclasses.replace(RECIPE, data="digits:")
    trained = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lambdanets.experiments.compare.train_cell.train", lambda *_, **__: trained.append(run.exists()))
        with pytest.raises(AttributeError):  # the stand-in returns no result
            train_cell(recipe, place)
    assert trained == [False]
    assert "The training that was begun cannot go on: " in place.console.file.getvalue()
