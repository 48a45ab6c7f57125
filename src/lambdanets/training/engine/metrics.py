"""Measuring a model on labelled images, on one process or many."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from lambdanets.training.engine.loaders import answered


@dataclass(frozen=True)
class Scores:
    """Scores of a model on some images.

    Attributes:
        loss: mean cross-entropy, without label smoothing.
        top1: share of images whose most probable class is right, 0 to 1.
        top5: share of images whose label is among the five most probable classes (all, if there are fewer).
        images: how many images.
        confusion: counts (true class, predicted class), int64.
    """

    loss: float
    top1: float
    top5: float
    images: int
    confusion: torch.Tensor

    def to_dict(self) -> dict[str, Any]:
        """All but the confusion matrix, for JSON."""
        return {"top1": self.top1, "top5": self.top5, "loss": self.loss, "images": self.images}


# Not in inference mode: the first weights that FSDP gathers there could not be trained with afterwards.
@torch.no_grad()
def measure(accelerator: Accelerator, model: nn.Module, loader: Iterable[Any], num_classes: int) -> Scores:
    """Run ``model`` over all images of ``loader``; every process returns the scores of all.

    Args:
        accelerator: the process's place among the others; its precision is used.
        model: gives logits (images, classes); put into evaluation mode, and back afterwards.
        loader: prepared by the accelerator, gives images and labels.
        num_classes: number of classes.
    """
    was_training = model.training
    model.eval()
    # The batches are gathered before they are counted (which drops the copies that fill up the last batch),
    # so the metrics must not be summed over the processes once more.
    kwargs: dict[str, Any] = {"num_classes": num_classes, "average": "micro", "sync_on_compute": False}
    accuracies = MetricCollection(
        {
            "top1": MulticlassAccuracy(**kwargs),
            "top5": MulticlassAccuracy(top_k=min(5, num_classes), **kwargs),
        },
        compute_groups=False,
    ).to(accelerator.device)
    confusion = MulticlassConfusionMatrix(num_classes, sync_on_compute=False).to(accelerator.device)
    loss = MeanMetric(sync_on_compute=False, nan_strategy="disable").to(accelerator.device)
    images = 0
    for inputs, labels in answered(loader):
        with accelerator.autocast():
            logits = model(inputs)
        logits, labels = accelerator.gather_for_metrics((logits.float(), labels))
        loss.update(F.cross_entropy(logits, labels, reduction="none"))
        accuracies.update(logits, labels)
        confusion.update(logits.argmax(dim=1), labels)
        images += len(labels)
    model.train(was_training)
    values = accuracies.compute()
    return Scores(
        loss=float(loss.compute()),
        top1=float(values["top1"]),
        top5=float(values["top5"]),
        images=images,
        confusion=confusion.compute().cpu(),
    )
