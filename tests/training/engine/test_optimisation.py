"""Optimizers, schedules and frozen stages."""

import dataclasses
import math

import pytest
import timm
import torch
from torch import nn

from lambdanets.training import Recipe
from lambdanets.training.engine import optimisation
from lambdanets.training.engine.optimisation import (
    check_optimizer,
    freeze_stages,
    frozen_modules,
    make_optimizer,
    make_schedule,
    peak_rate,
)
from lambdanets.training.engine.sharding import load_optimizer
from lambdanets.training.engine.trees import load_tree, save_tree


def make(**fields):
    return Recipe(**{"name": "r", "model": "m", "data": "digits", "lr": 1.0, "warmup_epochs": 0, **fields})


def rates(recipe, updates=10):
    """The learning rate at each update of a training, the first one's among them."""
    optimizer = make_optimizer(nn.Linear(2, 2), recipe)
    schedule, found = make_schedule(optimizer, recipe, updates), []
    for update in range(updates * recipe.epochs):
        found.append(peak_rate(optimizer))
        schedule.step_update(update + 1)
    # A function of the position alone.
    again = make_schedule(make_optimizer(nn.Linear(2, 2), recipe), recipe, updates)
    again.step_update(len(found) - 1)
    assert peak_rate(again.optimizer) == found[-1]
    return found


def test_cosine():
    found = rates(make(epochs=10, warmup_epochs=2, min_lr=0.1))
    assert found[:3] == pytest.approx([0.01, 0.01 + 0.99 / 20, 0.01 + 2 * 0.99 / 20])
    assert max(found) == found[19] == pytest.approx(0.01 + 19 * 0.99 / 20)
    assert found[-1] == pytest.approx(0.1, abs=0.001)
    assert found[50] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * 0.5)) / 2)


def test_step_and_constant():
    found = rates(make(epochs=9, schedule="step", decay_epochs=3, decay_rate=0.5))
    assert found == pytest.approx([1.0] * 30 + [0.5] * 30 + [0.25] * 30)
    assert rates(make(epochs=3, schedule="constant")) == [1.0] * 30
    assert rates(make(epochs=3, schedule="constant", warmup_epochs=1))[9:] == pytest.approx(
        [0.01 + 0.99 * 0.9] + [1.0] * 20
    )


def test_one_cycle():
    found = rates(make(epochs=10, schedule="one-cycle", warmup_epochs=5, min_lr=0.001))
    assert (found[0], found[30], found[15]) == pytest.approx((0.04, 1.0, 0.52))
    assert found[65] == pytest.approx((1 + 0.001) / 2)
    assert found[-1] == pytest.approx(0.001, abs=1e-3)
    assert found[:30] == sorted(found[:30])
    assert found[30:] == sorted(found[30:], reverse=True)


def test_rate_falls_from_the_classifier_to_the_stem():
    model = timm.create_model("lambda_resnet_tiny", num_classes=3)
    optimizer = make_optimizer(model, make(layer_decay=0.5))
    schedule = make_schedule(optimizer, make(layer_decay=0.5, schedule="one-cycle"), 10)
    schedule.step_update(30)
    rate = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    layers = (model.conv1, model.layer1, model.layer2, model.layer3, model.layer4, model.fc)
    found = [rate[id(next(layer.parameters()))] for layer in layers]
    assert found == pytest.approx([0.5**5, 0.5**4, 0.5**3, 0.5**2, 0.5, 1])
    assert peak_rate(optimizer) == 1


def test_frozen_stages():
    model = timm.create_model("lambda_resnet_tiny", num_classes=3)
    freeze_stages(model, 2)
    assert frozen_modules(model) == [model.conv1, model.bn1, model.layer1]
    still = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert {name.partition(".")[0] for name in still} == {"layer2", "layer3", "layer4", "fc"}
    assert sum(len(group["params"]) for group in make_optimizer(model, make()).param_groups) == len(still)
    freeze_stages(nn.Linear(1, 1), 0)
    assert frozen_modules(nn.Linear(1, 1)) == []
    with pytest.raises(ValueError, match="frozen_stages is 6; the model has 6 groups of layers; use 0 to 5"):
        freeze_stages(model, 6)
    with pytest.raises(ValueError, match="frozen_stages is 1; Linear does not tell its stages; use 0"):
        freeze_stages(nn.Linear(1, 1), 1)


@pytest.mark.parametrize(
    ("name", "message"), [("adamv", "unknown optimizer 'adamv'"), ("fusedsgd", "it cannot be used")]
)
def test_optimizers_that_cannot_be_used(monkeypatch, name, message):
    with pytest.raises(ValueError, match=message):
        check_optimizer(make(optimizer=name))


def test_state_that_no_checkpoint_can_hold(monkeypatch):
    class Odd(torch.optim.SGD):
        def state_dict(self):
            return {"odd": object()}

    monkeypatch.setattr(optimisation, "make_optimizer", lambda model, recipe: Odd(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match=r"optimizer is 'sgd'; it cannot be used .*which cannot be written"):
        check_optimizer(make(optimizer="sgd"))


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb", "lion", "muon", "adafactor", "madgrad", "nadamw"])
def test_optimizers_go_on_exactly(tmp_path, name):
    """From the state in a checkpoint's form: the third step is the same, bit by bit."""
    recipe = dataclasses.replace(make(optimizer=name), lr=0.01)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.LazyLinear(2))
    images = torch.randn(4, 2, 5, 5)
    model(images)

    def step(model, optimizer):
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()

    optimizer = make_optimizer(model, recipe)
    for _ in range(2):
        step(model, optimizer)
    save_tree(tmp_path / "model", model.state_dict())
    save_tree(tmp_path / "optimizer", optimizer.state_dict())
    torch.manual_seed(1)
    step(model, optimizer)
    other = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(27, 2))
    other.load_state_dict(load_tree(tmp_path / "model"))
    resumed = make_optimizer(other, recipe)
    load_optimizer(resumed, load_tree(tmp_path / "optimizer"))
    torch.manual_seed(1)
    step(other, resumed)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
