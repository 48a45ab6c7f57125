"""One update of the weights: backward pass, clipping, and what happens where loss or gradient are not finite."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from timm.models import model_parameters
from timm.utils.agc import adaptive_clip_grad
from torch import nn

from lambdanets.training.recipes.recipe import Recipe

# A scaler that starts too high, or has to come down, leaves out several steps in a row without harm.
_SCALED_STEPS = 16


@dataclass(frozen=True)
class Outcome:
    """Result of one step.

    Attributes:
        logits: the model's output, detached.
        loss: the mean loss of this process's images, detached.
        norm: the gradient's norm over all weights, before clipping; the same in all processes.
        usable: a tensor, True if the step can be counted.
        used: False if the weights were left as they were.
    """

    logits: torch.Tensor
    loss: torch.Tensor
    norm: torch.Tensor
    usable: torch.Tensor
    used: bool


class Update:
    """Update of the weights by one batch.

    A step whose loss or gradient is not finite is left out, in all processes alike: the model and its buffers stay as
    they were. Under half precision the gradient scaler decides that. On a GPU without a scaler a look at each gradient
    would make the device wait, so the step is taken and only counted; what is left then are the weights on the disk.

    Args:
        accelerator: the process's place among the others.
        model: prepared by the accelerator.
        optimizer: prepared by the accelerator.
        criterion: the loss of logits and targets.
        recipe: the choices.

    Attributes:
        patience: steps in a row that cannot be used after which a training has diverged.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: Any,
        criterion: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        recipe: Recipe,
    ) -> None:
        self.accelerator, self.model, self.optimizer, self.criterion = accelerator, model, optimizer, criterion
        self.clip, self.mode, self.parts = recipe.clip_grad, recipe.clip_mode, recipe.accumulate
        self.scaled = accelerator.scaler is not None
        self.patience = recipe.nonfinite_steps * (_SCALED_STEPS if self.scaled else 1)
        # The scaler waits for the device at each step anyway.
        self.skips = self.scaled or accelerator.device.type == "cpu"
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        # Adaptive clipping leaves the classifier out, as its authors do.
        self._clipped = list(model_parameters(accelerator.unwrap_model(model), exclude_head=True))
        self._buffers = list(model.buffers())

    def __call__(self, inputs: torch.Tensor, targets: torch.Tensor) -> Outcome:
        """Take one step on the images of this process."""
        kept = [buffer.clone() for buffer in self._buffers] if self.skips else []
        logits, loss = self._gradients(inputs, targets)
        finite = loss.isfinite()
        self.accelerator.unscale_gradients()
        norm = self._norm_and_clip()
        used = not self.skips or bool(norm.isfinite().item())
        if not used:
            for buffer, before in zip(self._buffers, kept, strict=True):
                buffer.copy_(before)
        if used or self.scaled:  # the scaler leaves the step out itself, and comes down
            self.optimizer.step()
        self.optimizer.zero_grad()
        # A gradient that is too large for the scaler is no fault of the training.
        usable = finite if self.scaled else finite & norm.isfinite()
        return Outcome(logits, loss, norm, usable, used)

    def _gradients(self, inputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Add up the gradients of the batch's parts; returns logits and mean loss of the whole batch, detached."""
        parts = list(zip(inputs.tensor_split(self.parts), targets.tensor_split(self.parts), strict=True))
        found = []
        for index, (images, wanted) in enumerate(parts):
            # Several processes exchange their gradients once, with the last part.
            alone = index + 1 < len(parts)
            with self.accelerator.no_sync(self.model) if alone else nullcontext():
                logits = self.model(images)
                loss = self.criterion(logits, wanted) * (len(images) / len(inputs))
                # A loss that is not finite must be seen in the gradient of all processes: they leave out the step.
                self.accelerator.backward(loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan))
            found.append((logits.detach(), loss.detach()))
        if len(found) == 1:
            return found[0]
        return torch.cat([logits for logits, _ in found]), torch.stack([loss for _, loss in found]).sum()

    def _norm_and_clip(self) -> torch.Tensor:
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.clip is not None and self.mode == "agc":
            adaptive_clip_grad(self._clipped, self.clip)
        elif self.clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, self.clip, norm)
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm
