"""The means of a process of a training: its device, its precision, its threads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration

from lambdanets.training.engine.peers import join_after_restart
from lambdanets.training.recipes.recipe import Recipe


def make_accelerator(recipe: Recipe, *, measuring: bool = False) -> Accelerator:
    """The process's place among the others, with the recipe's precision.

    Args:
        recipe: the choices.
        measuring: True computes in fp32 where the device does not have the recipe's precision.

    Raises:
        ValueError: this machine's device does not have the recipe's precision, or accelerate was asked for several
            processes and started one.
    """
    _check_launch()
    # The state outlives an Accelerator and would refuse another precision in the same process.
    AcceleratorState._reset_state()
    precision, device = recipe.precision, torch.accelerator.current_accelerator(check_available=True)
    if precision == "fp16" and device is None:
        if not measuring:
            raise ValueError(f"precision is {precision!r}, which needs a GPU, and there is none; use bf16 or fp32")
        precision = "fp32"
    kind = "cpu" if device is None else device.type
    join_after_restart(kind)
    return Accelerator(
        # Asked for, as without it torchrun's processes on a CPU do not find each other.
        cpu=device is None,
        mixed_precision="no" if precision == "fp32" else precision,
        # Batches for CUDA are pinned: the host need not wait for their copies.
        dataloader_config=DataLoaderConfiguration(split_batches=True, non_blocking=kind == "cuda"),
    )


def _check_launch() -> None:
    """Raise a ValueError where ``accelerate launch --num_processes N`` found no GPUs, and started one process."""
    sizes = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
    if {"MASTER_ADDR", "ACCELERATE_MIXED_PRECISION"} <= os.environ.keys() and not any(map(os.environ.get, sizes)):
        raise ValueError(
            "accelerate launch was asked for several processes, but starts one alone on a CPU; start them with "
            "`torchrun --nproc-per-node N -m lambdanets ...`, or with `accelerate launch --multi_gpu --num_processes N`"
        )


@contextmanager
def computing_threads(count: int | None) -> Iterator[None]:
    """Set the number of CPU threads that PyTorch computes with, None for as it is, and put back what was set before."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
