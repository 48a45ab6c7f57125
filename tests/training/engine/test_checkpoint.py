"""What a checkpoint holds comes back whole, and what is damaged, missing or of others is refused by name."""

import json
import os
import pickle
import shutil
import signal
from types import SimpleNamespace

import pytest
import torch

from lambdanets.files import read_json
from lambdanets.training import Run, resume, train
from lambdanets.training.display.progress import TrainingProgress
from lambdanets.training.engine import state
from lambdanets.training.engine.checkpoint import (
    find_checkpoint,
    keep_only_until,
    list_checkpoints,
    save_checkpoint,
    split_checkpoint,
)
from lambdanets.training.engine.loop import Trainer
from lambdanets.training.engine.randomness import random_states


@pytest.fixture(scope="module")
def stopped(recipe, tmp_path_factory):
    """A run that was stopped in its second epoch; tests must not write into its folder."""
    run = tmp_path_factory.mktemp("runs") / "stopped"
    step = TrainingProgress.step

    def stopping(self, completed, *rest):
        step(self, completed, *rest)
        if completed == 4:  # seen at the next step
            signal.raise_signal(signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingProgress, "step", stopping)
        result = train(recipe, output=run)
    assert (result.stopped_by, result.epochs, result.steps) == (signal.SIGTERM, 1, 2)
    return run


@pytest.fixture
def run(stopped, tmp_path):
    """A copy of it, to damage."""
    return shutil.copytree(stopped, tmp_path / "run")


def latest(run):
    return run / "checkpoint" / read_json(run / "checkpoint" / "latest.json")["checkpoint"]


def test_content(stopped):
    assert [path.name for path in list_checkpoints(stopped)] == [
        "epoch-00001-batch-0000000",
        "epoch-00001-batch-0000002",
    ]
    names = {path.name for path in latest(stopped).iterdir()}
    parts = {f"{name}.safetensors" for name in ("model", "average", "optimizer", "rank-0", "best")}
    assert names == {"checkpoint.json", *parts}
    facts = read_json(latest(stopped) / "checkpoint.json")
    assert set(facts["files"]) == parts
    assert (facts["epoch"], facts["batch"], facts["batches"], facts["processes"]) == (1, 2, 3, 1)
    assert not list(stopped.rglob(".*"))
    # The weights of the first epoch; at its own end they are written after the checkpoint.
    assert (latest(stopped) / "best.safetensors").read_bytes() == (stopped / "best.safetensors").read_bytes()
    assert not (list_checkpoints(stopped)[0] / "best.safetensors").exists()


FILES = ("checkpoint.json", "model.safetensors", "average.safetensors", "optimizer.safetensors", "rank-0.safetensors")


def damage(file, how):
    content = file.read_bytes()
    if how == "missing":
        file.unlink()
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "cut":
        file.write_bytes(content[:-3])
    else:
        middle = len(content) // 2
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])


@pytest.mark.parametrize("how", ["missing", "empty", "cut", "one bit"])
@pytest.mark.parametrize("name", FILES)
def test_damaged_state_is_refused_by_name(run, name, how):
    file = latest(run) / name
    damage(file, how)
    with pytest.raises(ValueError, match=r"go(es)? on from") as error:
        find_checkpoint(run)
    assert str(file) in str(error.value)
    assert f"--resume {run}/checkpoint/epoch-00001-batch-0000000" in str(error.value)


@pytest.mark.parametrize("how", ["empty", "cut", "one bit", "missing", "stranger"])
def test_damaged_pointer_is_refused_by_name(run, how):
    file = run / "checkpoint" / "latest.json"
    if how == "stranger":
        file.write_text(json.dumps({"checkpoint": "../../other", "digest": "0"}))
    else:
        damage(file, how)
    with pytest.raises(ValueError, match=r"latest\.json|digest differs|is missing|does not exist") as error:
        resume(run)
    assert f"--resume {run}/checkpoint/epoch-00001-batch-000000" in str(error.value)


def test_an_earlier_checkpoint_can_be_chosen(trained, run):
    damage(latest(run) / "model.safetensors", "cut")
    chosen = run / "checkpoint" / "epoch-00001-batch-0000000"
    assert split_checkpoint(chosen) == (run, chosen)
    assert split_checkpoint(run) == (run, None)
    resume(chosen)
    for name in ("best", "last"):
        file = f"{name}.safetensors"
        assert (run / file).read_bytes() == (trained.run.path / file).read_bytes()


def test_metrics_that_are_short_or_changed(run):
    file = run / "metrics.csv"
    text = file.read_text()
    for bad, message in (
        ("\n".join(text.splitlines()[:1]) + "\n", r"metrics\.csv is damaged: it has no rows"),
        (text.replace("0.", "0.1", 1), r"metrics\.csv is not the file that was written"),
    ):
        file.write_text(bad)
        with pytest.raises(ValueError, match=message):
            resume(run)
    file.unlink()
    with pytest.raises(ValueError, match=r"metrics\.csv has 0 rows"):
        resume(run)


@pytest.mark.parametrize("how", ["missing", "empty", "cut", "one bit"])
def test_damaged_best_weights(run, how):
    """They are put back from the checkpoint."""
    kept = latest(run) / "best.safetensors"
    whole = kept.read_bytes()
    damage(run / "best.safetensors", how)
    state._restore_best(trainer(run), find_checkpoint(run))
    assert (run / "best.safetensors").read_bytes() == kept.read_bytes() == whole


def trainer(run):
    """All that is asked about the best weights."""
    return SimpleNamespace(
        accelerator=SimpleNamespace(is_main_process=True),
        run=Run.open(run),
        best=find_checkpoint(run).facts["best"],
    )


def test_the_best_weights_of_an_abandoned_epoch_are_not_tested(trained, run):
    """A run that went on to later, better epochs goes on from an earlier checkpoint: theirs are not this one's."""
    chosen = latest(run)
    best = (run / "best.safetensors").read_bytes()
    shutil.copyfile(trained.run.path / "last.safetensors", run / "best.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "fit", lambda self, *_: False)
        resume(chosen)
    assert (run / "best.safetensors").read_bytes() == best


def test_choices_that_were_changed(run):
    file = run / "config.json"
    file.write_text(file.read_text().replace('"lr": 0.005', '"lr": 0.006'))
    with pytest.raises(ValueError, match=r"config\.json was changed since the checkpoint .* put it back"):
        resume(run)


def test_another_number_of_processes(run):
    facts = {**find_checkpoint(run).facts, "processes": 2}
    checkpoint = SimpleNamespace(facts=facts, folder=latest(run))
    trainer = SimpleNamespace(accelerator=SimpleNamespace(num_processes=1), run=Run.open(run))
    with pytest.raises(ValueError, match=r"is trained by 2 processes and cannot go on with 1: .*") as error:
        state.check_fit(trainer, checkpoint)
    assert f"torchrun --nproc-per-node 2 -m lambdanets train --resume {run}" in str(error.value)
    assert f"lambdanets train --recipe recipe.yaml --init-from {run}" in str(error.value)


def test_generators_of_another_device():
    """A GPU's generator does not take a CPU's state; those of the CPU go on, and the change is told."""
    tree = {"random": random_states(torch.device("cpu")), "sums": torch.ones(5), "bad": torch.zeros(3)}
    expected = torch.rand(2)
    accelerator, run = SimpleNamespace(device=torch.device("cuda")), SimpleNamespace(recipe=SimpleNamespace(seed=1))
    trainer = SimpleNamespace(accelerator=accelerator, run=run, sums=torch.zeros(5), bad=torch.ones(3))
    state._restore_rank(trainer, False, tree)
    assert torch.equal(torch.rand(2), expected)
    assert torch.equal(trainer.sums, tree["sums"])
    (change,) = state.changes(SimpleNamespace(facts={"versions": {}, "device": "cpu"}), accelerator.device)
    assert "device cpu → cuda" in change


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_pickles_are_never_read(run, monkeypatch, tmp_path):
    """Where other programs have theirs, and in the place of each file of a checkpoint."""
    monkeypatch.chdir(tmp_path)
    bomb = pickle.dumps(Bomb())
    for name in ("custom_checkpoint_0.pkl", "optimizer.bin", "random_states_0.pkl", "scheduler.bin"):
        for folder in (run, run / "checkpoint", latest(run)):
            (folder / name).write_bytes(bomb)
    checkpoint = find_checkpoint(run)
    for name in FILES:
        (latest(run) / name).write_bytes(bomb)
        with pytest.raises(ValueError, match=r"go(es)? on from"):
            find_checkpoint(run)
        if name.endswith(".safetensors"):
            with pytest.raises(ValueError, match="is damaged"):
                checkpoint.part(name.removesuffix(".safetensors"))
    assert not (tmp_path / "exploded").exists()


def test_stopped_before_the_first_checkpoint(run):
    for name in ("checkpoint", "tensorboard"):
        shutil.rmtree(run / name)
    for name in ("result.json", "best.safetensors"):
        (run / name).unlink()
    with pytest.raises(FileNotFoundError, match="was stopped before its first checkpoint, so nothing was trained"):
        resume(run)


def test_a_run_whose_checkpoints_were_not_copied_is_not_called_untrained(run):
    shutil.rmtree(run / "checkpoint")
    with pytest.raises(
        ValueError, match=r"checkpoint, which .* is missing in the run .*; bring the folder back"
    ) as told:
        resume(run)
    assert "remove" not in str(told.value)
    assert f"--init-from {run}" in str(told.value)


def test_failed_and_half_removed_writes_leave_the_latest(run, monkeypatch):
    """Whatever call fails on the way to a new checkpoint, one can go on."""
    from lambdanets import files

    before = latest(run)
    facts = dict(find_checkpoint(run).facts)
    del facts["format"], facts["files"]
    parts = {"model": {"a": torch.ones(3)}}

    def refuse(*_, **__):
        raise OSError(28, "No space left on device")

    for name in ("fsync", "rename", "chmod"):
        with monkeypatch.context() as patch:
            patch.setattr(files.os, name, refuse)
            with pytest.raises(OSError, match=r"No space left on device: '.*/checkpoint/epoch-00001-batch-0000003"):
                save_checkpoint(run, {**facts, "batch": 3}, parts)
        assert find_checkpoint(run).folder == before
        assert not [path for path in (run / "checkpoint").iterdir() if path.name.startswith(".")]
    save_checkpoint(run, {**facts, "batch": 3}, parts)
    assert find_checkpoint(run).batch == 3
    assert len(list_checkpoints(run)) == 2


def test_what_a_killed_training_left_is_removed(run):
    checkpoint = find_checkpoint(run)
    later = shutil.copytree(latest(run), run / "checkpoint" / "epoch-00002-batch-0000000")
    litter = [run / ".best.17.safetensors", run / "checkpoint" / ".latest.17.json"]
    for file in litter:
        file.touch()
    half = run / "checkpoint" / ".epoch-00002-batch-0000001.17"
    half.mkdir()
    removed = run / ".checkpoint.17.removed"
    removed.mkdir()
    (run / ".mine.txt").touch()
    keep_only_until(run, checkpoint)
    assert not any(path.exists() for path in (*litter, half, removed, later))
    assert (run / ".mine.txt").exists()
    assert find_checkpoint(run).folder == checkpoint.folder


def test_interruption_between_a_checkpoint_and_the_files_that_follow_it(trained, recipe, tmp_path, monkeypatch):
    """The weights of a finished epoch are written after its checkpoint, and from it where that did not happen."""

    def die(self, name):
        if self.epoch == 1:
            raise KeyboardInterrupt
        return original(self, name)

    original = Trainer.save_weights
    monkeypatch.setattr(Trainer, "save_weights", die)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, output=tmp_path / "run")
    monkeypatch.undo()
    assert not (tmp_path / "run" / "best.safetensors").exists()
    written = []
    monkeypatch.setattr(Trainer, "save_weights", lambda self, name: written.append((name, self.epoch)))
    monkeypatch.setattr(Trainer, "fit", lambda self, *_: (_ for _ in ()).throw(KeyboardInterrupt))
    monkeypatch.setattr("lambdanets.training.engine.loop.digest_file", lambda path: "digest")
    with pytest.raises(KeyboardInterrupt):
        resume(tmp_path / "run")
    assert written == [("last", 1), ("best", 1)]
    monkeypatch.undo()
    resume(tmp_path / "run")
    for name in ("best.safetensors", "last.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (trained.run.path / name).read_bytes()
