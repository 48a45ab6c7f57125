"""Mixup and cutmix: pairs of images of a batch, and their labels, mixed."""

from __future__ import annotations

import torch
from timm.data import Mixup

from lambdanets.training.engine.randomness import seeded
from lambdanets.training.recipes.recipe import Recipe
from lambdanets.training.rules import refuse


class BatchMixer:
    """Mixing of a training's batches; what is drawn is a function of (seed, epoch, batch, process).

    Args:
        recipe: the choices; its augmentation mixes.
        num_classes: classes of the labels.
        process: the index of this process, whose batches are mixed for themselves.
    """

    def __init__(self, recipe: Recipe, num_classes: int, process: int) -> None:
        given = recipe.augmentation
        self.seed, self.process = recipe.seed, process
        self._mixup = Mixup(
            mixup_alpha=given.mixup,
            cutmix_alpha=given.cutmix,
            prob=given.mix_probability,
            label_smoothing=recipe.label_smoothing,
            num_classes=num_classes,
        )

    def __call__(
        self, inputs: torch.Tensor, labels: torch.Tensor, epoch: int, batch: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mix a batch in place.

        Args:
            inputs: the images of this process, an even number.
            labels: their classes.
            epoch: from 0.
            batch: of the epoch, from 0.

        Returns:
            The images, and for each of them the shares of all classes, smoothed.
        """
        with seeded("mixup", self.seed, epoch, batch, self.process):
            return self._mixup(inputs, labels)


def check_mixing(recipe: Recipe, images: int) -> None:
    """Raise a ValueError if batches are to be mixed and a process gets an odd number of images a step."""
    if recipe.augmentation.mixes and images % 2:
        what = f"mixup and cutmix mix pairs, and a process gets {images} images a step"
        raise refuse(recipe.batch_size, "batch_size", f"{what}; use an even number of them, or mixup 0 and cutmix 0")
