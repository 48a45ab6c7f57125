"""The training loop: epochs, validation, what is written after each of them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from lambdanets.files import write_csv
from lambdanets.training.data import ImageData
from lambdanets.training.display.plots import plot_curves
from lambdanets.training.display.progress import TrainingProgress
from lambdanets.training.engine.checkpoint import load_checkpoint, save_checkpoint
from lambdanets.training.engine.loaders import measuring_loader, training_loader
from lambdanets.training.engine.metrics import Scores, measure
from lambdanets.training.engine.model import save_weights
from lambdanets.training.engine.signals import StopSignal
from lambdanets.training.runs.folder import Run
from lambdanets.training.runs.schema import read_metrics

# On a GPU every look at the loss waits for the device, and on several processes for all of them.
_STEPS_BETWEEN_LOOKS = 20
_SECONDS_BETWEEN_CURVES = 30.0


class TrainingDivergedError(RuntimeError):
    """The loss is not a finite number any more; the weights of the last finished epoch are kept."""


class Trainer:
    """Trains one model as its run's recipe says; works the same on one process and on many.

    Args:
        accelerator: the process's place among the others.
        run: the run folder; only the main process writes there.
        data: what to train on.
        model: the model, with its first weights.

    Attributes:
        rows: a line for every finished epoch, as in ``metrics.csv``.
        epoch: epochs finished.
    """

    def __init__(self, accelerator: Accelerator, run: Run, data: ImageData, model: nn.Module) -> None:
        recipe = run.recipe
        self.accelerator, self.run, self.recipe = accelerator, run, recipe
        self.num_classes = len(data.class_names)
        self.loader = training_loader(accelerator, data, recipe, run.transform)
        self.validation_loader = measuring_loader(
            accelerator, data.validation, run.transform, recipe.batch_size, recipe.workers
        )
        model = model.to(accelerator.device)
        self.ema = self._moving_average(model)
        optimizer = create_optimizer_v2(
            model,
            opt=recipe.optimizer,
            lr=recipe.scaled_lr,
            weight_decay=recipe.weight_decay,
            momentum=recipe.momentum,
        )
        self.scheduler, _ = create_scheduler_v2(
            optimizer,
            sched="cosine",
            num_epochs=recipe.epochs,
            # A short training, such as a trial of one epoch, must not consist of warm-up alone.
            warmup_epochs=min(recipe.warmup_epochs, recipe.epochs // 2),
            warmup_lr=recipe.scaled_lr / 100,
            min_lr=0.0,
            step_on_epochs=False,
            updates_per_epoch=len(self.loader),
        )
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.criterion = LabelSmoothingCrossEntropy(recipe.label_smoothing)
        self.rows: list[dict[str, Any]] = []
        self.epoch = 0
        self.writer: SummaryWriter | None = None
        self.drawn = 0.0

    def _moving_average(self, model: nn.Module) -> ModelEmaV3 | None:
        if self.recipe.ema_decay is None:
            return None
        ema = ModelEmaV3(model, decay=self.recipe.ema_decay, use_warmup=True)
        self.accelerator.register_for_checkpointing(ema)
        return ema

    @property
    def evaluated_model(self) -> nn.Module:
        """The model that is validated and saved: the moving average, if there is one."""
        return self.accelerator.unwrap_model(self.model) if self.ema is None else self.ema.module

    @property
    def best_row(self) -> dict[str, Any] | None:
        """The line of the epoch with the highest validation accuracy, of equals that with the lowest loss.

        With a few validation images many epochs are equal, and the earliest of them is far from trained.
        """
        return max(self.rows, key=lambda row: (row["validation_top1"], -row["validation_loss"]), default=None)

    def start(self) -> None:
        """Writes the first weights, so that there is something good to keep from the start on."""
        self._save_weights("last")
        save_checkpoint(self.accelerator, self.run.path, 0)

    def resume(self) -> None:
        """Goes back to the last finished epoch that the run has stored."""
        self.epoch = load_checkpoint(self.accelerator, self.run.path)
        # Lines behind the checkpoint belong to an epoch that is done again.
        self.rows = read_metrics(self.run.path / "metrics.csv", self.epoch)
        self.scheduler.step_update(self.epoch * len(self.loader))

    def fit(self, progress: TrainingProgress, stop: StopSignal) -> bool:
        """Trains to the last epoch or until ``stop``.

        Returns:
            True if the last epoch was finished.

        Raises:
            TrainingDivergedError: the loss became NaN or infinite.
        """
        with self._tracking():
            while self.epoch < self.recipe.epochs:
                row = self._train_epoch(progress, stop)
                if row is None:
                    if not self.rows:
                        self._save_weights("best")
                    return False
                self._finish_epoch(row, progress)
                if self._any(stop.number is not None):
                    return self.epoch == self.recipe.epochs
        return True

    @contextmanager
    def _tracking(self) -> Iterator[None]:
        if self.accelerator.is_main_process:
            # Epochs behind the checkpoint are done again; purge_step hides what was written of them.
            folder, purge = str(self.run.path / "tensorboard"), self.epoch + 1
            self.writer = SummaryWriter(folder, purge_step=purge if self.epoch else None)
        try:
            yield
        finally:
            if self.writer is not None:
                self.writer.close()
            if self.accelerator.is_main_process and self.rows:
                self._draw()

    def _any(self, flag: bool) -> bool:
        """True if the flag is set on any process."""
        total = self.accelerator.reduce(torch.tensor(float(flag), device=self.accelerator.device))
        return bool(total.item() > 0)

    def _train_epoch(self, progress: TrainingProgress, stop: StopSignal) -> dict[str, Any] | None:
        """One pass over the training images; None if it was stopped before its end."""
        self.model.train()
        # Sets the seed of the order, which then is the same after a resumption.
        self.loader.set_epoch(self.epoch)  # type: ignore[attr-defined]
        device = self.accelerator.device
        look_every = 1 if device.type == "cpu" and self.accelerator.num_processes == 1 else _STEPS_BETWEEN_LOOKS
        sums = torch.zeros(3, dtype=torch.float64 if device.type != "mps" else torch.float32, device=device)
        seen = (0.0, 0.0, 1.0)
        steps, started = len(self.loader), time.monotonic()
        for step, (inputs, labels) in enumerate(self.loader, start=1):
            sums += self._step(self.epoch * steps + step, inputs, labels)
            if step % look_every and step != steps:
                continue
            flag = sums.new_tensor([float(stop.number is not None)])
            *seen, stopped = self.accelerator.reduce(torch.cat([sums, flag])).tolist()
            self._check_finite(seen[0], f"training loss in epoch {self.epoch + 1}, step {step} of {steps}")
            rate = seen[2] / (time.monotonic() - started)
            completed = self.epoch * steps + step
            progress.step(completed, self.epoch + 1, seen[0] / seen[2], seen[1] / seen[2], rate)
            if stopped and step < steps:
                return None
        seconds = time.monotonic() - started
        return {
            "epoch": self.epoch + 1,
            "train_loss": seen[0] / seen[2],
            "train_top1": seen[1] / seen[2],
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "images_per_second": seen[2] / seconds,
            "seconds": seconds,
        }

    def _step(self, update: int, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """One update of the weights; returns the sums of loss, right answers and images of the batch."""
        logits = self.model(inputs)
        loss = self.criterion(logits, labels)
        self.accelerator.backward(loss)
        if self.recipe.clip_grad is not None:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.recipe.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step_update(update)
        if self.ema is not None:
            self.ema.update(self.accelerator.unwrap_model(self.model), step=update)
        images = labels.new_tensor(len(labels))
        right = (logits.detach().argmax(dim=1) == labels).sum()
        return torch.stack([loss.detach() * images, right, images])

    def _check_finite(self, value: float, what: str) -> None:
        if not math.isfinite(value):
            file = self.run.path / "last.safetensors"
            kept = f"No epoch was finished; {file} holds the first weights"
            if self.epoch:
                kept = f"The weights of epoch {self.epoch}, the last finished one, are in {file}"
            raise TrainingDivergedError(
                f"the {what} is {value}; training stopped. {kept}. "
                f"Try a lower --lr (it was {self.recipe.lr:g}) or --precision fp32."
            )

    def _finish_epoch(self, row: dict[str, Any], progress: TrainingProgress) -> None:
        """Validates, then writes weights, lines, curves, and last the checkpoint that vouches for them."""
        scores: Scores = measure(self.accelerator, self.evaluated_model, self.validation_loader, self.num_classes)
        self._check_finite(scores.loss, f"validation loss after epoch {self.epoch + 1}")
        row |= {
            "validation_loss": scores.loss,
            "validation_top1": scores.top1,
            "validation_top5": scores.top5,
        }
        self.rows.append(row)
        self.epoch += 1
        best = self.best_row is row
        if best:
            self._save_weights("best")
        self._save_weights("last")
        if self.accelerator.is_main_process:
            write_csv(self.run.path / "metrics.csv", self.rows)
            # Drawing takes longer than a short epoch.
            if time.monotonic() - self.drawn > _SECONDS_BETWEEN_CURVES:
                self._draw()
        if self.writer is not None:
            for name, value in row.items():
                self.writer.add_scalar(name.replace("_", "/", 1), value, self.epoch)
            self.writer.flush()
        save_checkpoint(self.accelerator, self.run.path, self.epoch)
        progress.epoch(row, best)

    def _draw(self) -> None:
        title = f"{self.recipe.model} on {self.run.data_spec.partition(':')[0]}"
        plot_curves(self.run.path / "curves.png", self.rows, title)
        self.drawn = time.monotonic()

    def _save_weights(self, name: str) -> None:
        if self.accelerator.is_main_process:
            row = self.rows[-1] if self.rows else {"validation_top1": float("nan")}
            facts = {
                "model": self.recipe.model,
                "epoch": self.epoch,
                "validation_top1": row["validation_top1"],
            }
            path = self.run.path / f"{name}.safetensors"
            save_weights(path, self.evaluated_model.state_dict(), facts)
