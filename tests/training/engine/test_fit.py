"""Training as a whole, on a few tiny pictures."""

import dataclasses
import io
import json
import math
import shutil
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lambdanets.files import read_csv
from lambdanets.training import Run, TrainingDivergedError, evaluate_run, resume, train
from lambdanets.training.data import load_data
from lambdanets.training.display.progress import TrainingProgress
from lambdanets.training.engine import fit as fit_module
from lambdanets.training.engine.checkpoint import list_checkpoints
from lambdanets.training.engine.loop import Trainer
from lambdanets.training.engine.update import Update
from lambdanets.training.runs import model as model_module

LEARNT = ("train_loss", "train_top1", "validation_loss", "validation_top1", "learning_rate")


def weights_equal(one, two):
    one, two = load_file(one), load_file(two)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def learnt(run):
    return [{name: row[name] for name in LEARNT} for row in read_csv(run / "metrics.csv")]


@pytest.mark.smoke
def test_it_learns(trained):
    assert trained.stopped_by is None
    assert trained.epochs == 3
    assert trained.validation_top1 > 0.6
    assert trained.test.top1 > 0.6
    rows = learnt(trained.run.path)
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]


def test_run_folder_is_complete(trained):
    names = {path.name for path in trained.run.path.iterdir()}
    expected = "config.json split.csv metrics.csv tensorboard best.safetensors last.safetensors curves.png result.json"
    assert names == set(expected.split())


def test_result_says_what_came_out(trained):
    result = json.loads((trained.run.path / "result.json").read_text())
    rows = read_csv(trained.run.path / "metrics.csv")
    assert result["status"] == "finished"
    assert result["test"]["top1"] == trained.test.top1
    assert result["validation"]["top1"] == max(row["validation_top1"] for row in rows)
    assert result["best_epoch"] == trained.best_epoch
    assert result["parameters"] == sum(p.numel() for p in trained.run.load_model().parameters())


def test_best_weights_are_those_of_the_best_epoch(trained):
    with safe_open(trained.run.path / "best.safetensors", "pt") as file:
        facts = file.metadata()
    assert json.loads(facts["class_names"]) == list(trained.run.class_names)
    assert int(facts["epoch"]) == trained.best_epoch
    assert float(facts["validation_top1"]) == trained.validation_top1


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([(0.9, 0.3), (0.8, 0.1)], 0),
        ([(0.9, 0.3), (0.9, 0.2), (0.9, 0.25)], 1),
        ([(0.9, 0.3), (0.9, 0.3)], 0),
    ],
)
def test_best_epoch_is_by_accuracy_then_by_loss(scores, best):
    rows = [{"validation_top1": top1, "validation_loss": loss} for top1, loss in scores]
    assert Trainer.best_row.fget(SimpleNamespace(rows=rows)) is rows[best]


def test_tensorboard_has_the_metrics(trained):
    events = EventAccumulator(str(trained.run.path / "tensorboard"))
    events.Reload()
    shown = [event.value for event in events.Scalars("validation/loss")]
    assert shown == pytest.approx([row["validation_loss"] for row in learnt(trained.run.path)])


def test_evaluation_repeats_the_test_of_the_training(trained, tmp_path):
    scores = evaluate_run(trained.run.path, output=tmp_path).scores
    assert scores.to_dict() == trained.test.to_dict()


def test_same_seed_same_weights_other_seed_other_weights(trained, recipe, tmp_path):
    train(recipe.override(epochs=1), output=tmp_path / "a")
    train(recipe.override(epochs=1), output=tmp_path / "b")
    train(recipe.override(epochs=1, seed=1), output=tmp_path / "c")
    one, two, other = (tmp_path / name / "last.safetensors" for name in "abc")
    assert weights_equal(one, two)
    assert not weights_equal(one, other)


def signal_at(monkeypatch, method, when, number=signal.SIGINT):
    """Sends a signal in the middle of a training: at the first call of ``method`` for which ``when`` holds."""
    original = getattr(TrainingProgress, method)
    sent = []

    def patched(self, *args, **kwargs):
        original(self, *args, **kwargs)
        if not sent and when(*args):
            sent.append(True)
            signal.raise_signal(number)

    monkeypatch.setattr(TrainingProgress, method, patched)


@pytest.mark.parametrize(
    ("where", "workers"), [("in an epoch", 0), ("before the validation", 0), ("between epochs", 0), ("in an epoch", 2)]
)
def test_resumed_training_equals_an_uninterrupted_one(monkeypatch, trained, recipe, tmp_path, where, workers):
    if where == "between epochs":
        signal_at(monkeypatch, "epoch", lambda row, best: row["epoch"] == 2)
    else:
        last = 4 if where == "in an epoch" else 5
        signal_at(monkeypatch, "step", lambda completed, *_: completed == last)
    stopped = train(recipe.override(workers=workers), output=tmp_path / "run")
    assert stopped.stopped_by == signal.SIGINT
    # A signal that comes while a step is shown ends the training after the next.
    assert (stopped.epochs, stopped.steps) == {
        "in an epoch": (1, 2),
        "before the validation": (1, 3),
        "between epochs": (2, 0),
    }[where]
    assert stopped.test is None
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "interrupted"
    going_on = Trainer.resume

    def after_an_hour(trainer, checkpoint):
        going_on(trainer, checkpoint)
        trainer.seconds += 3600

    monkeypatch.setattr(Trainer, "resume", after_an_hour)
    finished = resume(tmp_path / "run")
    assert finished.seconds > 3600
    assert finished.epochs == 3
    assert learnt(tmp_path / "run") == learnt(trained.run.path)
    assert finished.test.to_dict() == trained.test.to_dict()
    for name in ("best.safetensors", "last.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (trained.run.path / name).read_bytes()


def test_resumed_training_keeps_its_split(monkeypatch, recipe, colours, tmp_path):
    """Whatever was added; and it refuses to go on without an image."""
    shutil.copytree(colours, tmp_path / "data")
    recipe = recipe.override(data=str(tmp_path / "data"), epochs=2)
    train(recipe, output=tmp_path / "whole")
    signal_at(monkeypatch, "epoch", lambda row, best: row["epoch"] == 1)
    train(recipe, output=tmp_path / "run")
    Image.new("RGB", (12, 10), (200, 0, 0)).save(tmp_path / "data" / "red" / "0000.png")
    removed = tmp_path / "data" / "green" / "007.png"
    removed.rename(tmp_path / "kept.png")
    with pytest.raises(ValueError, match=r"1 train image of the run .* is missing: green/007\.png"):
        resume(tmp_path / "run")
    (tmp_path / "kept.png").rename(removed)
    text = io.StringIO()
    finished = resume(tmp_path / "run", console=Console(file=text, width=300))
    assert "1 image in " in text.getvalue()
    assert "red/0000.png" in text.getvalue()
    assert learnt(tmp_path / "run") == learnt(tmp_path / "whole")
    assert evaluate_run(tmp_path / "run").scores.to_dict() == finished.test.to_dict()


def test_resume_refuses_damaged_metrics(monkeypatch, recipe, tmp_path):
    signal_at(monkeypatch, "epoch", lambda row, best: row["epoch"] == 1)
    train(recipe.override(epochs=2), output=tmp_path / "run")
    (tmp_path / "run" / "metrics.csv").write_text("epoch\n")
    with pytest.raises(ValueError, match=r"metrics\.csv is damaged: it has no rows"):
        resume(tmp_path / "run")


def test_stop_in_the_first_epoch_leaves_weights_and_can_be_resumed(monkeypatch, trained, recipe, tmp_path):
    signal_at(monkeypatch, "step", lambda completed, *_: completed == 1, signal.SIGTERM)
    stopped = train(recipe, output=tmp_path / "run")
    assert (stopped.stopped_by, stopped.epochs, stopped.validation_top1) == (signal.SIGTERM, 0, None)
    assert evaluate_run(tmp_path / "run").scores.images == 6
    resume(tmp_path / "run")
    assert weights_equal(tmp_path / "run" / "last.safetensors", trained.run.path / "last.safetensors")


def test_handlers_are_put_back(recipe, tmp_path):
    # Whatever they were: a shell in the background starts its programs with SIGINT ignored.
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    train(recipe.override(epochs=1), output=tmp_path / "run")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_second_interrupt_ends_at_once(monkeypatch, recipe, tmp_path):
    monkeypatch.setattr(TrainingProgress, "step", lambda *_: signal.raise_signal(signal.SIGINT))
    monkeypatch.setattr(Trainer, "_any", lambda self, flag: False)
    original = Trainer._train_epoch

    def twice(self, progress, stop):
        original(self, progress, stop)
        return original(self, progress, stop)

    monkeypatch.setattr(Trainer, "_train_epoch", twice)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, output=tmp_path / "run")


def test_a_signal_during_the_final_test_does_not_cut_it_short(monkeypatch, recipe, tmp_path):
    test = fit_module._test

    def told(*args):
        signal.raise_signal(signal.SIGTERM)
        return test(*args)

    monkeypatch.setattr(fit_module, "_test", told)
    result = train(recipe.override(epochs=1), output=tmp_path / "run")
    assert result.stopped_by is None
    assert json.loads((tmp_path / "run" / "result.json").read_text())["test"]["images"] == result.test.images


def test_finished_run_is_not_resumed(trained):
    with pytest.raises(ValueError, match="is finished, there is nothing to resume; try `lambdanets evaluate"):
        resume(trained.run.path)


def nan_in_steps(monkeypatch, first, last=10**9):
    """Makes the loss NaN in some steps, counted from 1 over all epochs."""
    original, steps = Update.__call__, []

    def update(self, inputs, labels):
        steps.append(None)
        return original(self, inputs * (math.nan if first <= len(steps) <= last else 1), labels)

    monkeypatch.setattr(Update, "__call__", update)


def test_nan_loss_stops_and_keeps_the_last_good_weights(monkeypatch, trained, recipe, tmp_path):
    nan_in_steps(monkeypatch, 7)
    with pytest.raises(
        TrainingDivergedError, match=r"loss in epoch 3, step 3 of 3 is nan, as in the 2 before it; .*epoch 2, the last"
    ) as error:
        train(recipe, output=tmp_path / "run")
    assert str(tmp_path / "run" / "last.safetensors") in str(error.value)
    assert "lower --lr" in str(error.value)
    assert learnt(tmp_path / "run") == learnt(trained.run.path)[:2]
    for name in ("best", "last"):
        assert all(
            torch.isfinite(tensor).all() for tensor in load_file(tmp_path / "run" / f"{name}.safetensors").values()
        )
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "diverged"


def weights_of_the_last_checkpoint(run):
    return load_file(list_checkpoints(run)[-1] / "model.safetensors").values()


def test_what_was_learnt_before_a_divergence_is_saved(monkeypatch, recipe, tmp_path):
    nan_in_steps(monkeypatch, 5)
    with pytest.raises(
        TrainingDivergedError, match=r"in epoch 3, step 1 of 3 is nan.*checkpoint \S+epoch-00002-batch-0000001 holds"
    ):
        train(recipe, output=tmp_path / "run")
    assert all(tensor.isfinite().all() for tensor in weights_of_the_last_checkpoint(tmp_path / "run"))


@pytest.mark.parametrize("stops", [False, True])
def test_weights_that_a_bad_step_has_spoilt_are_no_checkpoint(monkeypatch, recipe, tmp_path, stops):
    """As on a GPU, where a look at each loss would make the device wait: the step is taken."""
    nan_in_steps(monkeypatch, 5)
    init = Update.__init__

    def takes_all(self, *args):
        init(self, *args)
        self.skips = False

    monkeypatch.setattr(Update, "__init__", takes_all)
    if stops:
        look = Trainer._look
        monkeypatch.setattr(
            Trainer, "_look", lambda self, *args: (self.epoch * 3 + self.batch == 6, *look(self, *args)[1:])
        )
        assert not train(recipe, output=tmp_path / "run", checkpoint_every="1").saved
    else:
        with pytest.raises(TrainingDivergedError, match=r"is nan.* of the last good step that was saved"):
            train(recipe, output=tmp_path / "run", checkpoint_every="1")
    assert all(tensor.isfinite().all() for tensor in weights_of_the_last_checkpoint(tmp_path / "run"))


def test_steps_with_nan_are_left_out(monkeypatch, recipe, tmp_path):
    """Two in a row, over the end of an epoch; weights, buffers and sums stay as they were before."""
    recipe = dataclasses.replace(recipe, drop_path_rate=0.0)
    nan_in_steps(monkeypatch, 3, 4)
    result = train(recipe, output=tmp_path / "run")
    rows = read_csv(tmp_path / "run" / "metrics.csv")
    assert len(rows) == 3
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert all(row["gradient_norm"] > 0 for row in rows)
    assert result.test.top1 > 0.5
    assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / "run" / "last.safetensors").values())


def test_an_epoch_without_a_usable_step(monkeypatch, recipe, tmp_path):
    nan_in_steps(monkeypatch, 1, 3)
    with pytest.raises(TrainingDivergedError, match=r"in epoch 1, step 3 of 3 is nan"):
        train(dataclasses.replace(recipe, nonfinite_steps=10), output=tmp_path / "run")


def test_loss_that_really_diverges(recipe, tmp_path):
    with pytest.raises(TrainingDivergedError, match=r"No epoch was finished; .*last\.safetensors holds the first"):
        train(recipe.override(lr=1e30, optimizer="sgd"), output=tmp_path / "run")
    weights = load_file(tmp_path / "run" / "last.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


def test_failed_write_leaves_the_weights_of_the_epoch_before(monkeypatch, trained, recipe, tmp_path):
    original = model_module.save_file

    def fail_later(tensors, path, metadata):
        original(tensors, path, metadata=metadata)
        if metadata["epoch"] == "2":
            path.write_bytes(path.read_bytes()[:100])
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(model_module, "save_file", fail_later)
    with pytest.raises(OSError, match="No space left"):
        train(recipe, output=tmp_path / "run")
    with safe_open(tmp_path / "run" / "last.safetensors", "pt") as file:
        assert file.metadata()["epoch"] == "1"
    monkeypatch.undo()
    assert not list((tmp_path / "run").glob(".*"))
    resume(tmp_path / "run")
    assert weights_equal(tmp_path / "run" / "last.safetensors", trained.run.path / "last.safetensors")


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_other_choices_train_too(recipe, tmp_path, precision):
    changed = recipe.override(precision=precision, epochs=1, clip_grad=1.0, workers=1, batch_size=1000)
    result = train(changed.override(optimizer="sgd", lr=0.01), output=tmp_path / "run")
    # One batch, smaller than asked for: there are only 48 images.
    assert read_csv(tmp_path / "run" / "metrics.csv")[0]["train_loss"] > 0
    assert result.test.images == 6


def test_without_moving_average_the_model_itself_is_saved(recipe, tmp_path):
    result = train(dataclasses.replace(recipe, ema_decay=None, epochs=1), output=tmp_path / "run")
    assert evaluate_run(tmp_path / "run").scores.to_dict() == result.test.to_dict()


def test_without_test_images_nothing_is_tested(recipe, tmp_path):
    for part in ("train", "val"):
        for name, value in (("dark", 0), ("light", 200)):
            (tmp_path / part / name).mkdir(parents=True)
            for index in range(8):
                Image.new("RGB", (8, 8), (value + index,) * 3).save(tmp_path / part / name / f"{index}.png")
    result = train(recipe.override(data=str(tmp_path), epochs=1), output=tmp_path / "run")
    assert result.test is None
    assert result.example.parent.parent == tmp_path / "val"
    assert json.loads((tmp_path / "run" / "result.json").read_text())["test"] is None
    assert evaluate_run(tmp_path / "run").part == "validation"


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_image_is_named(recipe, tmp_path, workers):
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in range(10):
            Image.new("RGB", (8, 8)).save(tmp_path / "data" / name / f"{index}.png")
    for path in (tmp_path / "data" / "b").iterdir():
        path.write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"data/b/\d\.png cannot be read"):
        train(recipe.override(data=str(tmp_path / "data"), workers=workers), output=tmp_path / "run")


@pytest.mark.parametrize("workers", [0, 1])
def test_data_that_vanish_are_told(monkeypatch, recipe, colours, tmp_path, workers):
    """And the training goes on when they are back."""
    data = shutil.copytree(colours, tmp_path / "data")
    recipe = recipe.override(data=str(data), workers=workers)
    step = TrainingProgress.step

    def vanish(self, completed, *rest):
        step(self, completed, *rest)
        if completed == 2:
            data.rename(tmp_path / "elsewhere")

    monkeypatch.setattr(TrainingProgress, "step", vanish)
    text = io.StringIO()
    with pytest.raises(FileNotFoundError, match=r"data/.*\.png does not exist"):
        train(recipe, output=tmp_path / "run", console=Console(file=text, width=300), checkpoint_every="1")
    assert "The last checkpoint is epoch-0000" in text.getvalue()
    assert f"Go on with `lambdanets train --resume {tmp_path / 'run'}`." in text.getvalue()
    with pytest.raises(FileNotFoundError, match=r"the data folder .*data does not exist"):
        resume(tmp_path / "run")
    monkeypatch.undo()
    (tmp_path / "elsewhere").rename(data)
    assert resume(tmp_path / "run").epochs == 3


def test_run_folder_that_is_removed(monkeypatch, recipe, tmp_path):
    run = tmp_path / "run"
    monkeypatch.setattr(TrainingProgress, "step", lambda *_: shutil.rmtree(run, ignore_errors=True))
    with pytest.raises(FileNotFoundError, match=r"run/config\.json"):
        train(recipe, output=run, checkpoint_every="1")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "lambda_resnet_tny"}, "unknown model"),
        ({"data": "no/where"}, "does not exist"),
        ({"model_kwargs": {"colour": 1}}, "cannot be made with"),
    ],
)
def test_what_is_wrong_is_told_before_any_work(recipe, tmp_path, changes, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train(recipe.override(**changes), output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_recipe_without_data_or_size(recipe, tmp_path):
    with pytest.raises(ValueError, match="'test' has no data of its own; give --data"):
        train(dataclasses.replace(recipe, data=None))
    with pytest.raises(ValueError, match="have no common size; give --image-size"):
        train(dataclasses.replace(recipe, image_size=None), output=tmp_path / "run")


def test_output_with_content_is_refused(recipe, trained):
    before = sorted(trained.run.path.iterdir())
    with pytest.raises(ValueError, match="is not empty"):
        train(recipe, output=trained.run.path)
    assert sorted(trained.run.path.iterdir()) == before


def test_samples_are_test_images(tmp_path, recipe):
    result = train(recipe.override(data="digits", epochs=1, batch_size=512), output=tmp_path / "run")
    test = load_data("digits").test
    assert len(result.run.samples) == 10
    for path in result.run.samples:
        name, index = path.stem.split("-")
        np.testing.assert_array_equal(np.asarray(Image.open(path)), test.images[int(index)])
        assert test.labels[int(index)] == int(name)
    assert result.example == result.run.samples[0]


def test_default_folder(monkeypatch, tmp_path, recipe):
    monkeypatch.chdir(tmp_path)
    result = train(recipe.override(epochs=1))
    assert result.run.path.parent.name == "runs"
    assert result.run.path.name.startswith("lambda_resnet_tiny-colours-")
    assert Run.open(tmp_path / result.run.path).recipe.epochs == 1
