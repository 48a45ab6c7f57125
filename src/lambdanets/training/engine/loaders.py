"""Batches of images for training and for measuring."""

from __future__ import annotations

import signal
from typing import Any

from accelerate import Accelerator
from torch.utils.data import DataLoader, IterableDataset

from lambdanets.training.data import ImageData
from lambdanets.training.data.transforms import InputTransform
from lambdanets.training.recipes.recipe import Recipe


def input_transform(data: ImageData, recipe: Recipe) -> InputTransform:
    """The steps from the images of ``data`` to inputs under ``recipe``.

    Raises:
        ValueError: neither the data nor the recipe say the image size.
    """
    size = recipe.image_size or data.image_size
    if size is None:
        raise ValueError(f"image_size is None, and the images of {data.spec!r} have no common size; give --image-size")
    return InputTransform(size, data.channels, data.mean, data.std, crop_pct=recipe.crop_pct)


def check_parallel(accelerator: Accelerator, images: Any, spec: str, batch_size: int) -> None:
    """Raises a ValueError if the images ``images`` of the data ``spec`` cannot be shared out to the processes."""
    processes = accelerator.num_processes
    if batch_size % processes:
        raise ValueError(
            f"batch_size is {batch_size}, the batch of all {processes} processes together; "
            f"use a multiple of {processes}"
        )
    if processes > 1 and isinstance(images, IterableDataset):
        raise ValueError(
            f"the data {spec!r} are a stream, which is read by one process only, not {processes}; use hfds/ or a folder"
        )


def fewest_in_a_step(images: int, batch_size: int, processes: int) -> int:
    """The fewest training images that one process gets in one step.

    Batches that are not full are left out, except where the data are less than one batch; then several processes
    fill that one up with images that they have seen.
    """
    return min(images, batch_size) if processes == 1 else batch_size // processes


def training_loader(
    accelerator: Accelerator, data: ImageData, recipe: Recipe, transform: InputTransform
) -> DataLoader[Any]:
    """Shuffled, augmented batches, shared out to the processes."""
    data.train.transform = transform.build_training(recipe.augmentation)
    stream = isinstance(data.train, IterableDataset)
    loader: DataLoader[Any] = DataLoader(
        data.train,
        batch_size=recipe.batch_size,
        shuffle=None if stream else True,
        # A last batch of a few images would disturb the batch statistics; but there must be one batch.
        drop_last=len(data.train) >= recipe.batch_size,
        **_worker_options(accelerator, recipe.workers),
    )
    return accelerator.prepare(loader)


def measuring_loader(
    accelerator: Accelerator, images: Any, transform: InputTransform, batch_size: int, workers: int = 0
) -> DataLoader[Any]:
    """Batches of images in their order, with nothing random, shared out to the processes."""
    images.transform = transform.build()
    loader: DataLoader[Any] = DataLoader(images, batch_size=batch_size, **_worker_options(accelerator, workers))
    return accelerator.prepare(loader)


def _worker_options(accelerator: Accelerator, workers: int) -> dict[str, Any]:
    return {
        "num_workers": workers,
        "worker_init_fn": _ignore_interrupts,
        "persistent_workers": workers > 0,
        "pin_memory": accelerator.device.type == "cuda",
    }


def _ignore_interrupts(worker: int) -> None:
    """Ignore Ctrl-C in a data worker, which it reaches too: the training process needs the workers to end its step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
