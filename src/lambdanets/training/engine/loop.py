"""The training loop: epochs, steps, validation, what is written after each of them.

The state of a training between two updates of the weights is (epoch, batches done in it, model, optimizer, moving
average, gradient scaler, states of the random generators and sums of the epoch's metrics in each process). The
schedule, the moving average's decay and what the batches hold are functions of the position and the seed. ``save``
writes that state, and a training that ``resume`` sets to it goes on as if it had not been interrupted. An update that
takes several batches (gradient accumulation) is one step here, so that no checkpoint lies inside of it.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.utils import ModelEmaV3
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from lambdanets.files import digest_file, write_csv
from lambdanets.training.data import DataSpec, ImageData
from lambdanets.training.display.plots import plot_curves
from lambdanets.training.display.progress import TrainingProgress
from lambdanets.training.engine import state
from lambdanets.training.engine.checkpoint import Checkpoint, keep_only_until, list_checkpoints
from lambdanets.training.engine.intervals import Interval
from lambdanets.training.engine.loaders import TrainingBatches, measuring_loader
from lambdanets.training.engine.memory import peak_memory
from lambdanets.training.engine.metrics import Scores, measure
from lambdanets.training.engine.mixing import BatchMixer
from lambdanets.training.engine.optimisation import frozen_modules, make_optimizer, make_schedule, peak_rate
from lambdanets.training.engine.randomness import kept_generators
from lambdanets.training.engine.sharding import shard, unsharded
from lambdanets.training.engine.signals import StopSignal
from lambdanets.training.engine.update import Update
from lambdanets.training.runs.folder import Run
from lambdanets.training.runs.model import save_weights
from lambdanets.training.runs.schema import best_row

# On a GPU every look at the loss waits for the device, and on several processes for all of them.
_STEPS_BETWEEN_LOOKS = 20
_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_BETWEEN_CURVES = 30.0
# A checkpoint before the validation, which may take long, unless the last one is as young as this.
_SECONDS_UNSAVED = 60.0


class TrainingDivergedError(RuntimeError):
    """The loss is not a finite number any more; the weights of the last finished epoch are kept."""


class Trainer:
    """Training of one model as its run's recipe says, the same on one process and on many.

    Args:
        accelerator: the process's place among the others.
        run: the run folder; only the main process writes there.
        data: what to train on.
        model: the model, with its first weights, its frozen stages frozen.
        every: how often a checkpoint is written within an epoch.
        timeout: seconds without an image from the data workers after which they count as dead.

    Attributes:
        module: the model itself; ``model`` is what the accelerator made of it.
        rows: a line for every finished epoch, as in ``metrics.csv``.
        epoch: epochs finished.
        batch: batches done in the epoch after them.
        sums: of the current epoch in this process: loss, correct answers, images, gradient norm, updates.
        bad: steps in a row that could not be used, with loss and gradient norm of the last of them.
        best: epoch and digest of the weights in ``best.safetensors``, the digest None until they are written.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        run: Run,
        data: ImageData,
        model: nn.Module,
        *,
        every: Interval | None = None,
        timeout: float = 0.0,
    ) -> None:
        recipe = run.recipe
        self.accelerator, self.run, self.recipe = accelerator, run, recipe
        self.num_classes = len(data.class_names)
        self.batches: Any = TrainingBatches(accelerator, data, recipe, run.transform, timeout)
        self.validation_loader = measuring_loader(
            accelerator, data.validation, run.transform, recipe.batch_size, recipe.workers, timeout
        )
        self._prepare(model)
        mixes = recipe.augmentation.mixes
        self.mixer = BatchMixer(recipe, self.num_classes, accelerator.process_index) if mixes else None
        criterion = SoftTargetCrossEntropy() if mixes else LabelSmoothingCrossEntropy(recipe.label_smoothing)
        self.update = Update(accelerator, self.model, self.optimizer, criterion, recipe)
        self.every, self.timeout = every or Interval(), timeout
        self.rows: list[dict[str, Any]] = []
        self.epoch = self.batch = 0
        wide = torch.float64 if accelerator.device.type != "mps" else torch.float32
        self.sums = torch.zeros(5, dtype=wide, device=accelerator.device)
        self.bad = torch.zeros(3, dtype=wide, device=accelerator.device)
        self.seconds = 0.0
        self.best: dict[str, Any] | None = None
        self.writer: SummaryWriter | None = None
        self.drawn = 0.0

    def _prepare(self, model: nn.Module) -> None:
        """Set the model, its moving average, optimizer and schedule: on their devices, sharded or compiled."""
        accelerator, recipe = self.accelerator, self.recipe
        self.module = model.to(accelerator.device)
        if recipe.channels_last:
            for module in model.modules():
                if isinstance(module, nn.Conv2d):
                    module.to(memory_format=torch.channels_last)
        self.frozen = frozen_modules(model) if recipe.frozen_stages else []
        # With another number of processes than before it is refused to go on.
        sharded = recipe.shard and accelerator.num_processes > 1
        self.ema: Any = None
        if recipe.ema_decay is not None:
            self.ema = ModelEmaV3(model, decay=recipe.ema_decay, use_warmup=True, foreach=not sharded)
        if sharded:
            for module in [model] if self.ema is None else [model, self.ema.module]:
                shard(module, accelerator)
        optimizer = make_optimizer(model, recipe)
        self.scheduler = make_schedule(optimizer, recipe, len(self.batches))
        if recipe.compile:
            # A shape that comes second must not change the code for the first: a resumed training may meet it first.
            model.compile(dynamic=False)
        # Sharded weights exchange their gradients themselves.
        self.model = accelerator.prepare_model(model, evaluation_mode=sharded)
        self.optimizer = accelerator.prepare_optimizer(optimizer)

    @property
    def evaluated_model(self) -> nn.Module:
        """The model that is validated and saved: the moving average, if there is one."""
        return self.module if self.ema is None else self.ema.module

    @property
    def best_row(self) -> dict[str, Any] | None:
        """The line of the best epoch so far."""
        return best_row(self.rows)

    def start(self) -> None:
        """Write the first weights, so that there is something good to keep from the start on."""
        self.save_weights("last")
        self.save()

    def resume(self, checkpoint: Checkpoint) -> None:
        """Set the training to the state that a checkpoint holds, and the run folder's files with it."""
        state.restore(self, checkpoint)
        if self.accelerator.is_main_process:
            keep_only_until(self.run.path, checkpoint)
            write_csv(self.run.path / "metrics.csv", self.rows)
        # An interruption between the checkpoint of an epoch and the files that follow it.
        if self.batch == 0:
            self.save_weights("last")
            if self.best is not None and self.best["epoch"] == self.epoch:
                self._save_best()

    def save(self) -> None:
        """Write a checkpoint; all processes must call it. Weights that a bad step has spoilt are not kept."""
        if not self.is_spoilt():
            state.save(self)
        self.every.restart()

    def is_spoilt(self) -> bool:
        """True if the last step was taken with a loss or gradient that was not finite; the same in all processes."""
        return not self.update.skips and bool(self.bad[0].item() > 0)

    def fit(self, progress: TrainingProgress, stop: StopSignal) -> bool:
        """Train to the last epoch or until ``stop``.

        Returns:
            True if the last epoch was finished.

        Raises:
            TrainingDivergedError: the loss became NaN or infinite.
        """
        self.every.restart()
        with self._tracking():
            while self.epoch < self.recipe.epochs:
                if not self._train_epoch(progress, stop):
                    self.save()
                    if not self.rows and not self.is_spoilt():
                        self.save_weights("best")
                    return False
                self._finish_epoch(progress)
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

    def _train_epoch(self, progress: TrainingProgress, stop: StopSignal) -> bool:
        """The rest of a pass over the training images; False if it was stopped before its end."""
        self.model.train()
        for module in self.frozen:
            module.eval()
        steps, before = len(self.batches), self.epoch * len(self.batches)
        every_step = self.accelerator.device.type == "cpu" and self.accelerator.num_processes == 1
        most = 1 if every_step else _STEPS_BETWEEN_LOOKS
        spent, started = self.seconds, time.monotonic()
        looked, last_look, next_look = started, self.batch, self.batch + 1
        for inputs, labels in self.batches.of_epoch(self.epoch, self.batch):
            self.sums += self._step(before + self.batch + 1, inputs, labels)
            self.batch += 1
            if self.batch < min(next_look, steps) and not self.every.due_at(before + self.batch):
                continue
            now = time.monotonic()
            self.seconds = spent + now - started
            stopped, save, pace = self._look(progress, stop, (now - looked) / (self.batch - last_look))
            looked, last_look = now, self.batch
            next_look = self.batch + max(1, min(most, int(_SECONDS_BETWEEN_LOOKS / max(pace, 1e-9))))
            if stopped:
                return False
            if save:
                self.save()
        return True

    def _look(self, progress: TrainingProgress, stop: StopSignal, pace: float) -> tuple[bool, bool, float]:
        """Show how far the training is, and let all processes know what one of them knows.

        Args:
            progress: where to show it.
            stop: of this process.
            pace: seconds a step took in this process.

        Returns:
            Three values that are the same in all processes: True if the training is to stop; True if a checkpoint is to
            be written; the mean of ``pace``.
        """
        steps = len(self.batches)
        completed = self.epoch * steps + self.batch
        if self.batch == steps:  # the validation, which may take long, is next, and then the epoch's own checkpoint
            save = self.every.elapsed > _SECONDS_UNSAVED
        else:
            save = self.every.due_at(completed) or self.every.due_now()
        bad, *bad_values = self.bad.tolist()
        flags = [stop.number is not None, save and self.accelerator.is_main_process, bad >= self.update.patience]
        own = [*map(float, flags), pace, self.batches.waited]
        # One exchange for all: the sums over the processes.
        total = self.accelerator.reduce(torch.cat([self.sums, self.sums.new_tensor(own)])).tolist()
        loss, correct, images, _norm, _updates, stopping, saving, giving_up, pace, waited = total
        stopped, save, given_up = stopping > 0, saving > 0, giving_up > 0
        where = f"in epoch {self.epoch + 1}, step {self.batch} of {steps}"
        if given_up or (self.batch == steps and not images):
            self.save()  # what was learnt before the steps that were left out
            what = "gradient's norm" if math.isfinite(bad_values[0]) else "training loss"
            self._check_finite(next((value for value in bad_values if not math.isfinite(value)), math.nan), what, where)
        self._check_finite(loss, "training loss", where)
        if images:
            seconds, waiting = max(self.seconds, 1e-9), self._share_of_waiting(waited)
            shown = (loss / images, correct / images, images / seconds, waiting, peak_memory(self.accelerator.device))
            progress.step(completed, self.epoch + 1, *shown)
        return stopped, save, pace / self.accelerator.num_processes

    def _step(self, update: int, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """One update of the weights; returns the sums of loss, correct answers, images, gradient norm and updates."""
        targets = labels
        if self.recipe.channels_last:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        if self.mixer is not None:
            inputs, targets = self.mixer(inputs, labels, self.epoch, self.batch)
        out = self.update(inputs, targets)
        self.scheduler.step_update(update)
        if self.ema is not None and out.used:
            self.ema.update(self.module, step=update)
        # Filled on the device: a tensor made of a number would be copied there, and the host would wait for it.
        images = out.loss.new_full((), len(labels))
        correct = (out.logits.argmax(dim=1) == labels).sum()
        # Under a scaler that is about to come down the norm may be infinite: then it is not counted as an update.
        found = [out.loss * images, correct, images, out.norm, out.norm.isfinite()]
        bad = torch.stack([self.bad[0] + 1, out.loss.to(self.bad), out.norm.to(self.bad)])
        self.bad = torch.where(out.usable, 0, bad)
        counted = torch.stack([value.to(self.sums) for value in found])
        return torch.where(out.usable & counted.isfinite(), counted, 0)

    def _check_finite(self, value: float, what: str, where: str) -> None:
        if not math.isfinite(value):
            file = self.run.path / "last.safetensors"
            kept = f"No epoch was finished; {file} holds the first weights"
            if self.epoch:
                kept = f"The weights of epoch {self.epoch}, the last finished one, are in {file}"
            if checkpoints := list_checkpoints(self.run.path):
                kept += f"; the checkpoint {checkpoints[-1]} holds those of the last good step that was saved"
            bad = int(self.bad[0].item())
            again = f", as in the {bad - 1} before it" if bad > 1 else ""
            raise TrainingDivergedError(
                f"the {what} {where} is {value}{again}; training stopped. {kept}. "
                f"Try a lower --lr (it was {self.recipe.lr:g}) or --precision fp32."
            )

    def _finish_epoch(self, progress: TrainingProgress) -> None:
        """Validate, then write the epoch's line, the checkpoint that confirms it, and what follows from both."""
        values = torch.cat([self.sums, self.sums.new_tensor([self.batches.waited])])
        loss, correct, images, norm, updates, waited = self.accelerator.reduce(values).tolist()
        self._share_buffers()
        with kept_generators():
            scores: Scores = measure(self.accelerator, self.evaluated_model, self.validation_loader, self.num_classes)
        self._check_finite(scores.loss, "validation loss", f"after epoch {self.epoch + 1}")
        row = {
            "epoch": self.epoch + 1,
            "train_loss": loss / images,
            "train_top1": correct / images,
            "learning_rate": peak_rate(self.optimizer),
            "gradient_norm": norm / updates,
            "images_per_second": images / max(self.seconds, 1e-9),
            "seconds": self.seconds,
            "validation_loss": scores.loss,
            "validation_top1": scores.top1,
            "validation_top5": scores.top5,
            "waiting_share": self._share_of_waiting(waited),
            "memory_gib": peak_memory(self.accelerator.device),
        }
        self.rows.append(row)
        self.epoch, self.batch, self.seconds, self.batches.waited = self.epoch + 1, 0, 0.0, 0.0
        self.sums.zero_()
        best = self.best_row is row
        if best:
            self.best = {"epoch": self.epoch, "digest": None}
        if self.accelerator.is_main_process:
            write_csv(self.run.path / "metrics.csv", self.rows)
        self.save()
        if best:
            self._save_best()
        self.save_weights("last")
        self._show(row)
        progress.epoch(row, best)

    def _share_of_waiting(self, waited: float) -> float:
        """The share of the epoch's time so far that the device waited for batches, of the sum over all processes."""
        return min(1.0, waited / self.accelerator.num_processes / max(self.seconds, 1e-9))

    def _share_buffers(self) -> None:
        """Give all processes the main one's buffers, as of batch-norm: each has its own from the last batch on."""
        if self.accelerator.num_processes > 1:
            broadcast(list(self.evaluated_model.buffers()))

    def _show(self, row: dict[str, Any]) -> None:
        # Drawing takes longer than a short epoch.
        if self.accelerator.is_main_process and time.monotonic() - self.drawn > _SECONDS_BETWEEN_CURVES:
            self._draw()
        if self.writer is not None:
            for name, value in row.items():
                self.writer.add_scalar(name.replace("_", "/", 1), value, self.epoch)
            self.writer.flush()

    def _draw(self) -> None:
        title = f"{self.recipe.model} on {DataSpec.parse(self.run.data_spec).label}"
        plot_curves(self.run.path / "curves.png", self.rows, title)
        self.drawn = time.monotonic()

    def _save_best(self) -> None:
        self.save_weights("best")
        if self.best is not None and self.accelerator.is_main_process:
            self.best = {**self.best, "digest": digest_file(self.run.path / "best.safetensors")}

    def save_weights(self, name: str) -> None:
        """Write the weights as ``name.safetensors`` of the run folder; all processes call it, the main one writes."""
        weights = unsharded(self.evaluated_model.state_dict(), keep=self.accelerator.is_main_process)
        if self.accelerator.is_main_process:
            row = self.rows[-1] if self.rows else {"validation_top1": float("nan")}
            facts = {
                "model": self.recipe.model,
                "epoch": self.epoch,
                "validation_top1": row["validation_top1"],
                "class_names": json.dumps(self.run.class_names),
            }
            path = self.run.path / f"{name}.safetensors"
            save_weights(path, weights, facts)
