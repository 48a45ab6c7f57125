"""Batches of images for training and for measuring.

The order of an epoch and an image's random changes are functions of (seed, epoch) and (seed, epoch, index): there is no
loader state that an interruption could lose. The sampler puts the epoch into each index that it gives, so a data worker
needs to be told nothing either.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, get_worker_info

from lambdanets.training.data import ImageData
from lambdanets.training.data.transforms import InputTransform
from lambdanets.training.engine.faults import deadline
from lambdanets.training.engine.randomness import derive_seed, kept_generators, seed_generators, seeded
from lambdanets.training.recipes.recipe import Recipe


def input_transform(data: ImageData, recipe: Recipe, before: InputTransform | None = None) -> InputTransform:
    """The steps from the images of ``data`` to inputs under ``recipe``.

    Args:
        data: the images.
        recipe: the choices.
        before: the steps by which the weights to start from were trained: their mean and deviation are kept, and their
            size, where neither the recipe nor the data have one.

    Raises:
        ValueError: nothing says the image size.
    """
    size = recipe.image_size or data.image_size or (None if before is None else before.image_size)
    if size is None:
        raise ValueError(f"image_size is None, and the images of {data.spec!r} have no common size; give --image-size")
    scaled = data if before is None or before.channels != data.channels else before
    return InputTransform(size, data.channels, scaled.mean, scaled.std, crop_pct=recipe.crop_pct)


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


class EpochOrder(Sampler[tuple[int, int]]):
    """The images of an epoch as (epoch, index), in an order that is a function of seed and epoch.

    Args:
        images: how many there are.
        seed: of the order.

    Attributes:
        epoch: the epoch, from 0.
        first: images at its beginning that are left out, as those of a resumed epoch that were seen before.
    """

    def __init__(self, images: int, seed: int) -> None:
        self.images, self.seed = images, seed
        self.epoch = self.first = 0

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch; accelerate's loaders call it."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(derive_seed("order", self.seed, self.epoch))
        order = torch.randperm(self.images, generator=generator)
        return ((self.epoch, index) for index in order[self.first :].tolist())

    def __len__(self) -> int:
        return self.images


class SeededImages(Dataset[Any]):
    """Images whose random changes are functions of (seed, epoch, index); an index is what ``EpochOrder`` gives.

    Args:
        images: gives a changed image with its label by index.
        seed: of the changes.
    """

    def __init__(self, images: Any, seed: int) -> None:
        self.images, self.seed = images, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: tuple[int, int]) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[tuple[int, int]]) -> list[Any]:
        """The images of a batch; PyTorch's loader asks for all at once."""
        items = []
        with kept_generators():
            for epoch, index in indices:
                seed_generators(derive_seed("image", self.seed, epoch, index))
                items.append(self.images[index])
        return items


class SeededStream(IterableDataset[Any]):
    """A stream whose images' random changes are functions of (seed, epoch, worker, position).

    Args:
        images: gives changed images with their labels, one after the other.
        seed: of the changes.
    """

    def __init__(self, images: Any, seed: int) -> None:
        self.images, self.seed, self.epoch = images, seed, 0

    def __len__(self) -> int:
        return len(self.images)

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch, on which the order of the stream depends too."""
        self.epoch = epoch
        self.images.set_epoch(epoch)

    def set_loader_cfg(self, num_workers: int | None = None) -> None:
        """Tells the reader how many processes read."""
        self.images.set_loader_cfg(num_workers=num_workers)

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        source, position = iter(self.images), 0
        while True:
            with seeded("image", self.seed, self.epoch, 0 if worker is None else worker.id, position):
                item = next(source, None)
            if item is None:
                return
            yield item
            position += 1


class TrainingBatches:
    """Shuffled, augmented batches, shared out to the processes; a batch is a function of (seed, epoch, batch).

    Args:
        accelerator: the process's place among the others.
        data: the images of its part ``train`` are read.
        recipe: the choices.
        transform: the steps from images to inputs.
        timeout: seconds without an image from the data workers after which they count as dead.
    """

    def __init__(
        self, accelerator: Accelerator, data: ImageData, recipe: Recipe, transform: InputTransform, timeout: float
    ) -> None:
        data.train.transform = transform.build_training(recipe.augmentation)
        self.batch_size = recipe.batch_size
        stream = isinstance(data.train, IterableDataset)
        self.order = None if stream else EpochOrder(len(data.train), recipe.seed)
        options = _worker_options(accelerator, recipe.workers, timeout)
        if stream:
            # The workers of a stream learn the epoch when they are started.
            options["persistent_workers"] = False
        images: Any = SeededStream(data.train, recipe.seed) if stream else SeededImages(data.train, recipe.seed)
        loader: DataLoader[Any] = DataLoader(
            images,
            batch_size=recipe.batch_size,
            sampler=self.order,
            # A last batch of a few images would disturb the batch statistics; but there must be one batch.
            drop_last=len(data.train) >= recipe.batch_size,
            **options,
        )
        self.loader: Any = accelerator.prepare(loader)

    def __len__(self) -> int:
        return len(self.loader)

    def of_epoch(self, epoch: int, first: int = 0) -> Iterator[Any]:
        """The inputs and labels of an epoch's batches.

        Args:
            epoch: from 0.
            first: batches at its beginning to leave out. Those of a stream are read and not given.
        """
        if first >= len(self):
            return
        self.loader.set_epoch(epoch)
        if self.order is not None:
            self.order.first = first * self.batch_size
        # A loader that begins draws a seed for its workers, which must not move what the model draws.
        with kept_generators():
            batches = answered(self.loader)
            begun = list(islice(batches, 1))
        skipped = first if self.order is None else 0
        yield from islice(chain(begun, batches), skipped, None)


def answered(loader: Any) -> Iterator[Any]:
    """The batches of a loader; a RuntimeError where one takes longer than its workers have time for."""
    batches, seconds = iter(loader), getattr(loader, "timeout", 0)
    while True:
        with deadline(seconds):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def measuring_loader(
    accelerator: Accelerator,
    images: Any,
    transform: InputTransform,
    batch_size: int,
    workers: int = 0,
    timeout: float = 0,
) -> DataLoader[Any]:
    """Batches of images in their order, with nothing random, shared out to the processes."""
    images.transform = transform.build()
    options = _worker_options(accelerator, workers, timeout)
    loader: DataLoader[Any] = DataLoader(images, batch_size=batch_size, **options)
    return accelerator.prepare(loader)


def _worker_options(accelerator: Accelerator, workers: int, timeout: float) -> dict[str, Any]:
    return {
        "num_workers": workers,
        "worker_init_fn": _outlive_signals,
        "persistent_workers": workers > 0,
        "pin_memory": accelerator.device.type == "cuda",
        "timeout": timeout if workers else 0,
    }


# Seconds that a data worker goes on after SIGTERM.
_GRACE = 20


def _outlive_signals(worker: int) -> None:
    """Let a data worker outlive Ctrl-C and, for a while, SIGTERM, which reach all processes of a group.

    The training process gets them too, and needs its workers to end its step; then it ends them itself.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE))
