"""A training with every choice at once is resumed as exactly as a plain one."""

import dataclasses
import json
import signal

import pytest
import torch
from torch import nn

from lambdanets.files import read_csv
from lambdanets.training import Augmentation, get_recipe, plan_recipe, resume, train
from lambdanets.training.data.transforms import InputTransform
from lambdanets.training.display.progress import TrainingProgress
from lambdanets.training.engine.start import check_choices
from lambdanets.training.engine.weights import open_source

TIMES = ("seconds", "images_per_second", "waiting_share", "memory_gib")


def stop_at(monkeypatch, last):
    step = TrainingProgress.step

    def stopping(self, completed, *rest):
        step(self, completed, *rest)
        if completed == last:  # seen at the next step
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(TrainingProgress, "step", stopping)


def learnt(run):
    return [{name: row[name] for name in row if name not in TIMES} for row in read_csv(run / "metrics.csv")]


def choices(recipe, **changes):
    augmentation = Augmentation(crop="resized", random_erasing=0.5, mixup=0.3, cutmix=0.3)
    return dataclasses.replace(
        recipe,
        **{
            "augmentation": augmentation,
            "init_from": "lambda_resnet_tiny.digits",
            "validation_share": 0.1,
            "accumulate": 2,
            "optimizer": "lamb",
            "layer_decay": 0.8,
            "frozen_stages": 2,
            "schedule": "one-cycle",
            "clip_grad": 0.1,
            "clip_mode": "agc",
            "channels_last": True,
            **changes,
        },
    )


@pytest.mark.parametrize(
    "changes", [{}, {"optimizer": "sgd", "schedule": "step", "decay_epochs": 1, "ema_decay": None, "accumulate": 3}]
)
def test_resumed_training_with_all_choices_equals_an_uninterrupted_one(monkeypatch, recipe, tmp_path, changes):
    recipe = choices(recipe, **changes)
    whole = train(recipe, output=tmp_path / "whole")
    stop_at(monkeypatch, 4)
    stopped = train(recipe, output=tmp_path / "run")
    assert (stopped.epochs, stopped.steps) == (1, 2)
    finished = resume(tmp_path / "run")
    assert learnt(tmp_path / "run") == learnt(tmp_path / "whole")
    assert finished.test.to_dict() == whole.test.to_dict()
    for name in ("best.safetensors", "last.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    # The frozen stages are what they began with, batch statistics included.
    model, begun = whole.run.load_model("last"), open_source("lambda_resnet_tiny.digits").read()
    for name, tensor in model.state_dict().items():
        if name.startswith(("bn1.", "layer1.")):
            assert torch.equal(tensor, begun[name]), name
    assert not torch.equal(model.layer2[0].conv1.weight, begun["layer2.0.conv1.weight"])


def test_compiled_training(monkeypatch, recipe, tmp_path):
    """The model's own weights under their own names; each shape on its own, so that resumption cannot change code."""
    asked = []
    compile_ = nn.Module.compile
    monkeypatch.setattr(
        nn.Module,
        "compile",
        lambda self, **options: (asked.append(options), compile_(self, backend="eager", **options)),
    )
    monkeypatch.setattr("lambdanets.training.engine.start._check_compiler", lambda: None)
    recipe = recipe.override(model="test_resnet", epochs=1, drop_path_rate=0.0)
    plain = train(recipe, output=tmp_path / "plain")
    compiled = train(recipe.override(compile=True), output=tmp_path / "compiled")
    assert asked == [{"dynamic": False}]
    assert compiled.test.to_dict() == plain.test.to_dict()
    one, two = (result.run.load_model().state_dict() for result in (plain, compiled))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_compiler_that_does_not_work_is_told_before_work(monkeypatch, recipe, tmp_path):
    def fail(function):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", fail)
    with pytest.raises(ValueError, match=r"compile is True, and torch\.compile does not work here \(no C"):
        train(recipe.override(compile=True), output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accumulate": 20}, "accumulate is 20; a process gets 16 images a step; use at most 16"),
        ({"accumulate": 16}, r"batch_size is 16 for 48 .* on 1 process in 16 parts, .* 1 image"),
        ({"batch_size": 15, "augmentation": Augmentation(mixup=1.0)}, "batch_size is 15; mixup and cutmix mix pairs"),
        ({"frozen_stages": 9}, "frozen_stages is 9; the model has 6 groups"),
        ({"init_from": "resnet5"}, "unknown weights 'resnet5'"),
        ({"optimizer": "fusedsgd"}, "optimizer is 'fusedsgd'; it cannot be used"),
    ],
)
def test_choices_that_do_not_work_are_told_before_work(recipe, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train(dataclasses.replace(recipe, **changes), output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


TRANSFORM = InputTransform(32, 3, (0.5,) * 3, (0.5,) * 3)


def with_policy(recipe, policy):
    return recipe.override(augmentation=Augmentation(crop="resized", auto_augment=policy))


@pytest.mark.parametrize(
    ("policy", "part"),
    [
        ("rand-mxyz", "mxyz"),
        ("rand-m9-", ""),
        ("rand-m9-n", "n"),
        ("rand-m9-m5", "m5"),
        ("rand-m9x", "m9x"),
        ("rand-m9.5", "m9.5"),
        ("rand-x9", "x9"),
        ("rand-mstdinf", "mstdinf"),
        ("rand-tweight", "tweight"),
        ("rand-tweights-t3a", "t3a"),
        ("augmix-wide", "wide"),
        ("augmix-n3", "n3"),
        ("augmix-d-1", "d"),
        ("original-std", "std"),
        ("v0-m9", "m9"),
    ],
)
def test_parts_of_a_policy_that_timm_passes_over(recipe, policy, part):
    with pytest.raises(ValueError, match=rf"^auto_augment is '{policy}'; timm does not read '{part}' in it; use a "):
        check_choices(with_policy(recipe, policy), TRANSFORM)


@pytest.mark.parametrize("policy", ["random-m9", "v9", "augmented", "-m9"])
def test_policies_that_timm_does_not_know(recipe, policy):
    with pytest.raises(ValueError, match=f"^auto_augment is '{policy}'; policies of timm begin with rand, augmix, "):
        check_choices(with_policy(recipe, policy), TRANSFORM)


@pytest.mark.parametrize(
    "policy",
    [
        *("rand", "rand-m15-n2", "rand-m9-n3-p0.4-mstd0.5-inc1-mmax15-tweights", "rand-mstd101-t3aw", "augmix"),
        *("augmix-m5-w4-d2-b1-a0.5-mstd1", "original", "original-mstd0.5", "originalr", "v0", "v0r-mstd1", "3a"),
    ],
)
def test_policies_of_timm(recipe, policy):
    check_choices(with_policy(recipe, policy), TRANSFORM)


def test_the_start_says_how_the_rate_scales(capsys, recipe, tmp_path):
    changed = recipe.override(lr=0.1, lr_batch_size=256, accumulate=2, epochs=1, schedule="constant")
    train(changed, output=tmp_path / "run")
    assert "batches of 16 in 2 parts, adamw, learning rate 0.00625 (0.1 per 256 images)" in capsys.readouterr().out
    assert read_csv(tmp_path / "run" / "metrics.csv")[0]["learning_rate"] == 0.00625


def test_finetune(colours, tmp_path):
    """The recipe as its file says, with a run folder that holds where the weights were from, and no more."""
    words = {"init_from": "lambda_resnet_tiny.digits", "data": str(colours), "epochs": "1", "workers": "0"}
    result = train(plan_recipe("finetune", words), output=tmp_path / "run")
    assert result.run.transform.image_size == 8
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["model"]["weights"] == config["recipe"]["init_from"] == "lambda_resnet_tiny.digits"
    assert get_recipe("finetune").init_from is None
