"""One update of the weights: clipping, the gradient's norm, and steps that cannot be used."""

import dataclasses
import math
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lambdanets.training.engine.loop import Trainer
from lambdanets.training.engine.update import Outcome, Update


def norm_of(tensors):
    return math.sqrt(sum(float(tensor.square().sum()) for tensor in tensors))


def make(recipe, *, scaler=None, device="cpu", **changes):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    plain = optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    accelerator = SimpleNamespace(
        scaler=scaler,
        device=SimpleNamespace(type=device),
        backward=lambda loss: (loss if scaler is None else scaler.scale(loss)).backward(),
        unscale_gradients=lambda: None if scaler is None else scaler.unscale_(plain),
        unwrap_model=lambda model: model,
    )
    if scaler is not None:
        optimizer = SimpleNamespace(step=lambda: (scaler.step(plain), scaler.update()), zero_grad=plain.zero_grad)
    update = Update(accelerator, model, optimizer, F.cross_entropy, dataclasses.replace(recipe, **changes))
    return model, update


def batch(value=1.0):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(5, 3, generator=generator) * value, torch.tensor([0, 1, 0, 1, 1])


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def moved(model, before):
    return {name: tensor - before[name] for name, tensor in model.state_dict().items() if tensor.is_floating_point()}


def test_norm_is_that_of_the_gradient_before_clipping(recipe):
    model, update = make(recipe)
    before = state(model)
    out = update(*batch())
    steps = [tensor for name, tensor in moved(model, before).items() if "running" not in name]
    assert float(out.norm) == pytest.approx(norm_of(steps) / 0.1, rel=1e-5)
    assert (out.used, bool(out.usable)) == (True, True)

    model, update = make(recipe, clip_grad=0.01)
    clipped = update(*batch())
    steps = [tensor for name, tensor in moved(model, before).items() if "running" not in name]
    assert float(clipped.norm) == float(out.norm)
    assert norm_of(steps) == pytest.approx(0.01 * 0.1, rel=1e-3)


def test_adaptive_clipping_by_unit_without_the_classifier(recipe):
    free_model, free = make(recipe)
    before = state(free_model)
    free(*batch())
    free_steps = moved(free_model, before)
    model, update = make(recipe, clip_grad=0.001, clip_mode="agc")
    update(*batch())
    steps = moved(model, before)
    rows = before["0.weight"].norm(dim=1)
    assert torch.all(steps["0.weight"].norm(dim=1) <= 0.1 * 0.001 * rows * 1.01)
    assert not torch.allclose(steps["0.weight"], free_steps["0.weight"])
    # timm leaves out the last two parameters, which it takes for the classifier.
    torch.testing.assert_close(steps["2.weight"], free_steps["2.weight"])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_that_cannot_be_used_changes_nothing(recipe, value):
    model, update = make(recipe)
    update(*batch())
    before = state(model)
    out = update(*batch(value))
    assert (out.used, bool(out.usable)) == (False, False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert update.patience == recipe.nonfinite_steps


def test_infinite_loss_with_a_finite_gradient(recipe):
    """The gradient tells all processes of a loss that one of them has."""
    _, update = make(recipe)
    update.criterion = lambda logits, labels: F.cross_entropy(logits, labels) + math.inf
    out = update(*batch())
    assert (out.used, bool(out.usable)) == (False, False)
    assert not out.norm.isfinite()


def test_the_scaler_leaves_steps_out_and_comes_down(recipe):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    model, update = make(recipe, scaler=scaler)
    before = state(model)
    out = update(*batch(100.0))
    # Too high a scale is no fault of the training.
    assert (out.used, bool(out.usable)) == (False, True)
    assert scaler.get_scale() == 2.0**126
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    out = update(*batch(math.nan))
    assert (out.used, bool(out.usable)) == (False, False)
    assert update.patience == 16 * recipe.nonfinite_steps
    for _ in range(130):
        out = update(*batch())
    assert out.used
    assert not torch.equal(model[0].weight, before["0.weight"])


def test_on_a_gpu_without_a_scaler_no_step_waits_for_the_device(recipe):
    """It is taken, and counted as one that cannot be used."""
    _, update = make(recipe, device="cuda")
    out = update(*batch(math.nan))
    assert (out.used, bool(out.usable)) == (True, False)


def make_plain(recipe, parts):
    """A model without batch statistics, for which parts of a batch are as good as the whole."""
    model, update = make(recipe, accumulate=parts)
    model[1] = nn.Identity()
    update.accelerator.no_sync = lambda model: nullcontext()
    return model, update


def test_parts_of_a_batch_add_up(recipe):
    whole_model, whole = make_plain(recipe, 1)
    model, update = make_plain(recipe, 3)
    sizes = []
    model.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    expected, out = whole(*batch()), update(*batch())
    assert sizes == [2, 2, 1]
    torch.testing.assert_close((out.logits, out.loss, out.norm), (expected.logits, expected.loss, expected.norm))
    torch.testing.assert_close(state(model), state(whole_model))


def test_a_part_that_cannot_be_used_leaves_the_step_out(recipe):
    model, update = make_plain(recipe, 2)
    before, (inputs, labels) = state(model), batch()
    inputs[4] = math.nan
    out = update(inputs, labels)
    assert (out.used, bool(out.usable)) == (False, False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.smoke
def test_steps_that_a_scaler_leaves_out_do_not_lower_the_mean_norm():
    """Their norm is infinite, and they are no updates; their images and losses count."""

    def step(norm):
        outcome = Outcome(torch.eye(2), torch.tensor(0.5), torch.tensor(norm), torch.tensor(True), math.isfinite(norm))
        recipe, scheduler = SimpleNamespace(channels_last=False), SimpleNamespace(step_update=lambda update: None)
        trainer = SimpleNamespace(
            recipe=recipe, mixer=None, epoch=0, batch=0, update=lambda *_: outcome, scheduler=scheduler, ema=None
        )
        trainer.bad, trainer.sums = torch.zeros(3, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
        return Trainer._step(trainer, 1, torch.zeros(2, 1), torch.tensor([0, 1]))

    loss, right, images, norm, updates = (step(2.0) + step(4.0) + step(math.inf)).tolist()
    assert (loss, right, images) == (3.0, 6.0, 6.0)
    assert norm / updates == 3.0
