"""Measure what the training loop costs over the bare model step: writes results/loop.csv.

    python scripts/measure_loop.py

LambdaResNet-50 at 224 pixels, batches of 16, on the CPU, by the recipe imagenet-90 in fp32; some minutes. Steps of the
two kinds take turns in one process. A step of the loop is that of `lambdanets train`: JPEG files of 500x375 pixels are
read and augmented in the same process (--workers reads them in others), the loss and the gradient's norm are looked at,
the metrics summed up, the progress shown. The bare step is forward pass, loss, backward pass and optimizer on a copy of
the model and one fixed batch. The first steps of both kinds are left out. Compared are medians.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2

from lambdanets.files import write_csv
from lambdanets.provenance import environment
from lambdanets.training import Recipe, Run, get_recipe
from lambdanets.training.data import load_data
from lambdanets.training.display.progress import TrainingProgress
from lambdanets.training.engine.devices import make_accelerator
from lambdanets.training.engine.loaders import input_transform
from lambdanets.training.engine.loop import Trainer
from lambdanets.training.engine.signals import StopSignal
from lambdanets.training.engine.start import initial_model

WARM = 2


def write_photographs(folder: Path, images: int) -> None:
    """Class folders of JPEG files of 500x375 pixels, smooth as photographs are; many names have one content."""
    random = np.random.default_rng(0)
    for part, count in (("train", images), ("val", 2)):
        for index in range(count):
            path = folder / part / "ab"[index % 2] / f"{index}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            coarse = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8))
            coarse.resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=90)


class TakingTurns:
    """Batches between which a bare step is taken; keeps the times of both kinds of steps.

    Args:
        batches: the training's batches.
        bare: takes a bare step.

    Attributes:
        waited: seconds that the device waited for batches, as of the training's batches.
        fetching: seconds for each batch.
        loop: seconds for each step of the loop, its batch included.
        alone: seconds for each bare step.
    """

    def __init__(self, batches: Any, bare: Callable[[], None]) -> None:
        self.batches, self.bare = batches, bare
        self.waited = 0.0
        self.fetching: list[float] = []
        self.loop: list[float] = []
        self.alone: list[float] = []

    def __len__(self) -> int:
        return len(self.batches)

    def of_epoch(self, epoch: int, first: int = 0) -> Iterator[Any]:
        """The batches of an epoch."""
        batches = self.batches.of_epoch(epoch, first)
        while True:
            started = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                return
            fetched = time.perf_counter()
            yield batch
            done = time.perf_counter()
            self.fetching.append(fetched - started)
            self.loop.append(done - started)
            self.bare()
            self.alone.append(time.perf_counter() - done)


def bare_step(model: torch.nn.Module, recipe: Recipe, size: int) -> Callable[[], None]:
    """A function that takes a training step of a copy of the model, and nothing else."""
    model = copy.deepcopy(model).train()
    optimizer = create_optimizer_v2(
        model, opt=recipe.optimizer, lr=recipe.scaled_lr, weight_decay=recipe.weight_decay, momentum=recipe.momentum
    )
    criterion = LabelSmoothingCrossEntropy(recipe.label_smoothing)
    inputs, labels = torch.randn(recipe.batch_size, 3, size, size), torch.arange(recipe.batch_size) % 2

    def step() -> None:
        loss = criterion(model(inputs), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure(recipe: Recipe, folder: Path, steps: int) -> TakingTurns:
    """Train for ``steps`` steps and take as many bare ones."""
    write_photographs(folder / "images", recipe.batch_size * (steps + WARM))
    recipe = recipe.override(data=str(folder / "images"))
    data = load_data(str(folder / "images"))
    transform = input_transform(data, recipe)
    start = initial_model(recipe, data, transform)
    run = Run.create(folder / "run", recipe, data, transform)
    turns = bare_step(start.model, recipe, transform.image_size)
    trainer = Trainer(make_accelerator(recipe), run, data, start.model)
    trainer.batches = TakingTurns(trainer.batches, turns)
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        StopSignal() as stop,
        TrainingProgress(Console(file=nowhere, force_terminal=True), 1, len(trainer.batches)) as progress,
    ):
        trainer._train_epoch(progress, stop)
    return trainer.batches


def arguments() -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="lambda_resnet50")
    parser.add_argument("--size", type=int, default=224, help="pixels")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10, help="of each kind")
    parser.add_argument("--workers", type=int, default=0, help="processes that read images")
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "results" / "loop.csv")
    return parser.parse_args()


def result_row(chosen: argparse.Namespace, turns: TakingTurns) -> dict[str, Any]:
    """Return the medians of the steps of both kinds, the first ones left out, with what was measured where."""
    fetching, loop, alone = (statistics.median(times[WARM:]) for times in (turns.fetching, turns.loop, turns.alone))
    return {
        "model": chosen.model,
        "size": chosen.size,
        "batch": chosen.batch,
        "workers": chosen.workers,
        "steps": len(turns.loop) - WARM,
        "bare_seconds": f"{alone:.4f}",
        "loop_seconds": f"{loop:.4f}",
        "of_it_images": f"{fetching:.4f}",
        "overhead_percent": f"{100 * (loop / alone - 1):.2f}",
        **environment("threads", "processor", "torch", "python", "commit"),
    }


def main() -> None:
    """Measure and write the table."""
    chosen = arguments()
    recipe = get_recipe("imagenet-90").override(
        model=chosen.model,
        image_size=chosen.size,
        batch_size=chosen.batch,
        workers=chosen.workers,
        precision="fp32",
        epochs=1,
    )
    with tempfile.TemporaryDirectory() as folder:
        turns = measure(recipe, Path(folder), chosen.steps)
    row = result_row(chosen, turns)
    write_csv(chosen.output, [row])
    print("\n".join(f"{name}: {value}" for name, value in row.items()))


if __name__ == "__main__":
    main()
