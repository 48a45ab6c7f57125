"""The state from which a training goes on: written beside the last one, then moved into place."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from accelerate import Accelerator

from lambdanets.files import naming_failed_writes

_FOLDER = "checkpoint"


def save_checkpoint(accelerator: Accelerator, run: Path, epoch: int) -> None:
    """Writes ``run/checkpoint/epoch-NNNN`` and then removes earlier ones; all processes must call it.

    Args:
        accelerator: holds model, optimizer, moving average and random generators.
        run: the run folder.
        epoch: epochs finished.
    """
    final = run / _FOLDER / f"epoch-{epoch:04d}"
    temporary = run / _FOLDER / "unfinished"
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    accelerator.wait_for_everyone()
    with naming_failed_writes(temporary):
        accelerator.save_state(str(temporary))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(final, ignore_errors=True)
        os.replace(temporary, final)
        for other in final.parent.iterdir():
            if other != final:
                shutil.rmtree(other)
    accelerator.wait_for_everyone()


def load_checkpoint(accelerator: Accelerator, run: Path) -> int:
    """Restores the latest checkpoint of a run.

    Returns:
        The number of epochs that were finished.

    Raises:
        FileNotFoundError: the run has no checkpoint.
    """
    found = sorted((run / _FOLDER).glob("epoch-*"))
    if not found:
        raise FileNotFoundError(f"the run {run} has no checkpoint to go on from; start a new training")
    accelerator.load_state(str(found[-1]))
    return int(found[-1].name.removeprefix("epoch-"))


def remove_checkpoints(run: Path) -> None:
    """Removes what a finished training needs no more."""
    shutil.rmtree(run / _FOLDER, ignore_errors=True)
