"""Batches of images for training and for measuring.

The order of an epoch and an image's random changes are functions of (seed, epoch) and (seed, epoch, index): there is no
loader state that an interruption could lose. The sampler puts the epoch into each index that it gives, so a data worker
needs to be told nothing either.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from lambdanets.training.data import ImageData, Part
from lambdanets.training.data.transforms import InputTransform
from lambdanets.training.engine.faults import deadline
from lambdanets.training.engine.randomness import derive_seed, kept_generators, seed_generators, seeded
from lambdanets.training.recipes.recipe import Recipe

# Images of shards that are mixed with each other at a time.
_MIXED = 8192
# The same for a stream, whose images lie in memory until then.
_WINDOW = 1024


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


def check_parallel(accelerator: Accelerator, batch_size: int) -> None:
    """Raise a ValueError if batches cannot be shared out to the processes."""
    processes = accelerator.num_processes
    if batch_size % processes:
        raise ValueError(
            f"batch_size is {batch_size}, the batch of all {processes} processes together; "
            f"use a multiple of {processes}"
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
        groups: images in each of the files that they lie in, one file behind the other, if files should be read as a
            whole: the order is then one of files, and of the images within a few files at a time.

    Attributes:
        epoch: the epoch, from 0.
        first: images at its beginning that are left out, as those of a resumed epoch that were seen before.
    """

    def __init__(self, images: int, seed: int, groups: Sequence[int] | None = None) -> None:
        self.images, self.seed = images, seed
        self.groups = [images] if groups is None else groups
        self.epoch = self.first = 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(derive_seed("order", self.seed, self.epoch))
        if len(self.groups) == 1:
            order = torch.randperm(self.images, generator=generator)
        else:
            order = self._by_groups(generator)
        return ((self.epoch, index) for index in order[self.first :].tolist())

    def _by_groups(self, generator: torch.Generator) -> torch.Tensor:
        ends = torch.tensor(self.groups).cumsum(0).tolist()
        order: list[torch.Tensor] = []
        mixed: list[torch.Tensor] = []
        for group in torch.randperm(len(self.groups), generator=generator).tolist():
            mixed.append(torch.arange(ends[group] - self.groups[group], ends[group]))
            if sum(map(len, mixed)) >= _MIXED:
                order.append(_shuffled(torch.cat(mixed), generator))
                mixed = []
        return torch.cat([*order, _shuffled(torch.cat([torch.arange(0), *mixed]), generator)])

    def __len__(self) -> int:
        return self.images


def _shuffled(values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return values[torch.randperm(len(values), generator=generator)]


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
    """A stream in an order that is a function of (seed, epoch), with random changes that are one of the place in it.

    Args:
        images: the stream.
        seed: of order and changes.

    Attributes:
        epoch: the epoch, from 0.
        first: images at its beginning that are read and not given.
    """

    def __init__(self, images: Any, seed: int) -> None:
        self.images, self.seed = images, seed
        self.epoch = self.first = 0

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[Any]:
        draw = random.Random(derive_seed("stream", self.seed, self.epoch))
        for position, (image, label) in enumerate(shuffled_in_window(self.images.stored(), draw)):
            if position < self.first:
                continue
            with seeded("image", self.seed, self.epoch, position):
                item = self.images.transform(image), label
            yield item


def shuffled_in_window(items: Iterable[Any], draw: random.Random, size: int = _WINDOW) -> Iterator[Any]:
    """The items in an order that is drawn from a window of ``size`` of them, each of them once."""
    window: list[Any] = []
    for item in items:
        window.append(item)
        if len(window) > size:
            place = draw.randrange(len(window))
            window[place], window[-1] = window[-1], window[place]
            yield window.pop()
    draw.shuffle(window)
    yield from window


class TrainingBatches:
    """Shuffled, augmented batches, shared out to the processes; a batch is a function of (seed, epoch, batch).

    Args:
        accelerator: the process's place among the others.
        data: the images of its part ``train`` are read.
        recipe: the choices.
        transform: the steps from images to inputs.
        timeout: seconds without an image from the data workers after which they count as dead.

    Attributes:
        waited: seconds that the device waited for batches; the caller sets it back.
    """

    def __init__(
        self, accelerator: Accelerator, data: ImageData, recipe: Recipe, transform: InputTransform, timeout: float
    ) -> None:
        data.train.transform = transform.build_training(recipe.augmentation)
        self.batch_size, self.spec = recipe.batch_size, data.spec
        self.waited, self._device = 0.0, accelerator.device
        options = _worker_options(accelerator, data.train, recipe.workers, timeout)
        if data.train.streams:
            # The worker of a stream learns the epoch when it is started.
            options["persistent_workers"] = False
            self.order: Any = SeededStream(data.train, recipe.seed)
            images: Any = self.order
            sampler = None
        else:
            self.order = EpochOrder(len(data.train), recipe.seed, data.train.groups)
            images, sampler = SeededImages(data.train, recipe.seed), self.order
        loader: DataLoader[Any] = DataLoader(
            images,
            batch_size=recipe.batch_size,
            sampler=sampler,
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
            first: batches at its beginning to leave out. The images of those of a stream are read all the same.

        Raises:
            ValueError: a stream gives more or fewer batches than it announces.
        """
        if first >= len(self):
            return
        self.order.epoch, self.order.first = epoch, first * self.batch_size
        batches = self._timed(answered(self.loader))
        # A loader that begins draws a seed for its workers, which must not move what the model draws.
        with kept_generators():
            begun = list(islice(batches, 1))
        done = first
        for batch in chain(begun, batches):
            done += 1
            if done > len(self):
                break
            yield batch
        if done != len(self):
            raise ValueError(
                f"the stream {self.spec!r} announces {len(self.order):,} images, which are {len(self):,} batches, and "
                f"gives {'more' if done > len(self) else f'{done:,} batches'}; correct the number in its description"
            )

    def _timed(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The batches; the time until each of them is counted as waiting if the device has nothing left to do then."""
        while True:
            started, busy = time.monotonic(), _marked(self._device)
            batch = next(batches, None)
            if busy is None or busy.query():
                self.waited += time.monotonic() - started
            if batch is None:
                return
            yield batch


def _marked(device: torch.device) -> Any:
    """An event behind all that a GPU has to do now; None for a CPU, which has always done it."""
    if device.type not in ("cuda", "xpu"):
        return None
    event = torch.get_device_module(device).Event()
    event.record()
    return event


def answered(loader: Any) -> Iterator[Any]:
    """The batches of a loader; a RuntimeError where a worker has ended, or takes longer than it has time for."""
    batches, seconds = iter(loader), getattr(loader, "timeout", 0)
    while True:
        with deadline(seconds):
            try:
                batch = next(batches, None)
            except (EOFError, ConnectionError, FileNotFoundError) as error:
                # A worker that ends while it hands over a tensor leaves a closed socket; PyTorch does not say whose.
                # An error inside a worker carries PyTorch's "Caught ... in DataLoader worker process".
                if not getattr(loader, "num_workers", 0) or "DataLoader worker" in str(error):
                    raise
                ended = f"DataLoader: a worker ended while it handed over a batch, {type(error).__name__}"
                raise RuntimeError(ended) from error
        if batch is None:
            return
        yield batch


def measuring_loader(
    accelerator: Accelerator,
    images: Part,
    transform: InputTransform,
    batch_size: int,
    workers: int = 0,
    timeout: float = 0,
) -> DataLoader[Any]:
    """Batches of images in their order, with nothing random, shared out to the processes."""
    images.transform = transform.build()
    options = _worker_options(accelerator, images, workers, timeout)
    loader: DataLoader[Any] = DataLoader(images, batch_size=batch_size, **options)
    return accelerator.prepare(loader)


def _worker_options(accelerator: Accelerator, images: Part, workers: int, timeout: float) -> dict[str, Any]:
    if images.streams:
        # One process reads a stream: accelerate's loader hands its batches to the others.
        workers = min(workers, 1) if accelerator.is_main_process else 0
    return {
        "num_workers": workers,
        "worker_init_fn": _outlive_signals,
        "persistent_workers": workers > 0,
        "pin_memory": accelerator.device.type == "cuda",
        "timeout": timeout if workers else 0,
    }


# Seconds from SIGTERM until a data worker first looks whether the training process is still there, and between looks.
_LOOK = 5


def _outlive_signals(worker: int) -> None:
    """Let a data worker outlive Ctrl-C and SIGTERM, which reach all processes of a group.

    The training process gets them too, and needs its workers to end its step or its validation; then it ends them
    itself. A worker ends by itself only if that process has gone.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        parent = os.getppid()

        def look(number: int, frame: FrameType | None) -> None:
            if os.getppid() != parent:
                os._exit(1)
            signal.alarm(_LOOK)

        # A worker that is forked in `deadline` has that one's handler.
        signal.signal(signal.SIGALRM, look)
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_LOOK))
