"""Random numbers as a function of where they are used, so that no generator's state decides what a training sees.

The order of an epoch is a function of (seed, epoch), an image's random changes of (seed, epoch, index of the image),
and what is drawn for a whole batch, as by mixup, of (seed, epoch, batch). So workers, prefetching and interruptions
change none of them. What the model draws itself, as for dropout, comes from the generators of its process, whose states
a checkpoint holds.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def derive_seed(purpose: str, *numbers: int) -> int:
    """A seed of 63 bits, the same for the same arguments on every machine and in every version."""
    text = " ".join([purpose, *map(str, numbers)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def seed_generators(seed: int) -> None:
    """Seed the generators of Python, NumPy and PyTorch on the CPU: those that augmentations draw from."""
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    # Not torch.manual_seed, which seeds the GPU's generators too.
    torch.default_generator.manual_seed(seed)


@contextmanager
def kept_generators() -> Iterator[None]:
    """Put the generators of Python, NumPy and PyTorch on the CPU back to where they were before the block."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)


@contextmanager
def seeded(purpose: str, *numbers: int) -> Iterator[None]:
    """Draw in the block from generators that depend on the arguments alone, and put them back afterwards."""
    with kept_generators():
        seed_generators(derive_seed(purpose, *numbers))
        yield


def random_states(device: torch.device) -> dict[str, Any]:
    """The states of this process's generators: Python's, NumPy's, PyTorch's on the CPU and on ``device``."""
    version, words, gauss = random.getstate()
    numpy: dict[str, Any] = np.random.get_state(legacy=False)  # type: ignore[assignment]
    key = torch.from_numpy(numpy["state"]["key"].astype(np.int64))
    states = {
        "python": (version, torch.tensor(words, dtype=torch.int64), gauss),
        "numpy": {**numpy, "state": {**numpy["state"], "key": key}},
        "torch": torch.get_rng_state(),
    }
    if device.type != "cpu":
        states["device"] = torch.get_device_module(device).get_rng_state()
    return states


def restore_random_states(states: Mapping[str, Any], device: torch.device) -> None:
    """Set the generators of this process to what ``random_states`` gave for a device of this kind."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    numpy = states["numpy"]
    key = numpy["state"]["key"].numpy().astype(np.uint32)
    np.random.set_state({**numpy, "state": {**numpy["state"], "key": key}})
    torch.set_rng_state(states["torch"])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(states["device"])
