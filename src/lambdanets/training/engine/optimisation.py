"""Optimizers and schedules of a recipe: timm's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import timm.optim
import torch
from timm.models import group_parameters
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler, create_scheduler_v2
from torch import nn

from lambdanets.names import unknown_name
from lambdanets.training.engine.trees import check_tree
from lambdanets.training.recipes.recipe import Recipe
from lambdanets.training.rules import refuse

# One cycle: the share of the training in which the rate rises, and the part of the peak it starts at.
_RISE, _START = 0.3, 1 / 25


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer for the parameters of a model that are not frozen."""
    return create_optimizer_v2(
        model,
        opt=recipe.optimizer,
        lr=recipe.scaled_lr,
        weight_decay=recipe.weight_decay,
        momentum=recipe.momentum,
        layer_decay=recipe.layer_decay,
    )


def check_optimizer(recipe: Recipe) -> None:
    """Try the recipe's optimizer on a small layer, and check that a checkpoint can hold its state.

    Raises:
        ValueError: timm does not know the optimizer, it does not work here, or it needs more than a gradient a step.
    """
    known = [str(name) for name in timm.optim.list_optimizers()]
    if recipe.optimizer.lower() not in known:
        raise unknown_name("optimizer", recipe.optimizer, known)
    model = nn.Linear(2, 2)
    try:
        with torch.random.fork_rng(devices=[]):
            optimizer = make_optimizer(model, replace(recipe, layer_decay=None))
            for parameter in model.parameters():
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()
            check_tree(optimizer.state_dict())
    # Some need a package, some a GPU, some a closure or a second derivative, and each says so in its own way.
    except Exception as error:
        raise refuse(recipe.optimizer, "optimizer", f"it cannot be used ({error}); use another one") from error


def make_schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, updates: int) -> Any:
    """The recipe's schedule, a function of the number of updates alone.

    Args:
        optimizer: what it sets the learning rate of.
        recipe: the choices.
        updates: of an epoch.
    """
    if recipe.schedule == "one-cycle":
        whole = updates * recipe.epochs
        rise = max(1, round(_RISE * whole))
        return CosineLRScheduler(
            optimizer,
            t_initial=max(1, whole - rise),
            lr_min=recipe.min_lr,
            warmup_t=rise,
            warmup_lr_init=recipe.scaled_lr * _START,
            warmup_prefix=True,
            t_in_epochs=False,
        )
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched=recipe.schedule,
        num_epochs=recipe.epochs,
        # A short training, such as a trial of one epoch, must not consist of warm-up alone.
        warmup_epochs=min(recipe.warmup_epochs, recipe.epochs // 2),
        warmup_lr=recipe.scaled_lr / 100,
        min_lr=recipe.min_lr,
        decay_epochs=recipe.decay_epochs,
        decay_rate=recipe.decay_rate,
        step_on_epochs=False,
        updates_per_epoch=updates,
    )
    return schedule


def peak_rate(optimizer: Any) -> float:
    """The largest learning rate of all parameters, which is that of the classifier where layers differ."""
    return max(group["lr"] for group in optimizer.param_groups)


def freeze_stages(model: nn.Module, stages: int) -> None:
    """Freeze the first groups of layers of a model: 1 the stem, 2 the stem and the first stage, and so on.

    Args:
        model: its parameters in these groups no longer require gradients.
        stages: how many groups, of those that timm groups the model's layers into.

    Raises:
        ValueError: the model does not tell its groups, or has no other ones.
    """
    if not stages:
        return
    if not hasattr(model, "group_matcher"):
        raise refuse(stages, "frozen_stages", f"{type(model).__name__} does not tell its stages; use 0")
    matcher: Any = model.group_matcher
    groups = group_parameters(model, matcher(coarse=True), reverse=True)
    found = sorted(set(groups.values()))
    if stages >= len(found):
        raise refuse(stages, "frozen_stages", f"the model has {len(found)} groups of layers; use 0 to {len(found) - 1}")
    frozen = {name for name, group in groups.items() if group in found[:stages]}
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)


def frozen_modules(model: nn.Module) -> list[nn.Module]:
    """The largest modules that hold none but frozen parameters.

    In evaluation mode their batch-norms keep their statistics.
    """
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    if wanted and not any(wanted):
        return [model]
    return [frozen for child in model.children() for frozen in frozen_modules(child)]
