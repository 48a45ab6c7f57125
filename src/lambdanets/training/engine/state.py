"""The state of a training in a checkpoint: taken from a trainer, checked against a run, and put back."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from timm.utils import ModelEmaV3
from torch import nn

from lambdanets.files import digest_file, replacing
from lambdanets.names import count
from lambdanets.training.engine.checkpoint import Checkpoint, save_checkpoint
from lambdanets.training.engine.faults import from_weights, resume_command
from lambdanets.training.engine.randomness import random_states, restore_random_states
from lambdanets.training.engine.sharding import load_optimizer, load_state, unsharded
from lambdanets.training.runs.folder import Run, versions
from lambdanets.training.runs.schema import read_metrics


class Trained(Protocol):
    """A training as a checkpoint knows it: the attributes of a ``Trainer`` that are saved or compared."""

    accelerator: Accelerator
    run: Run
    module: nn.Module
    ema: ModelEmaV3 | None
    optimizer: Any
    batches: Any
    rows: list[dict[str, Any]]
    epoch: int
    batch: int
    sums: torch.Tensor
    bad: torch.Tensor
    seconds: float
    best: dict[str, Any] | None


def save(trainer: Trained) -> None:
    """Write a checkpoint of a trainer between two steps; all processes must call it, and the main one writes."""
    accelerator, run = trainer.accelerator, trainer.run
    own = {
        "random": random_states(accelerator.device),
        "sums": trainer.sums.cpu(),
        "bad": trainer.bad.cpu(),
    }
    ranks = gather_object([own])
    parts = {
        "model": trainer.module.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        **{_rank(index): rank for index, rank in enumerate(ranks)},
    }
    if trainer.ema is not None:
        parts["average"] = trainer.ema.module.state_dict()
    parts = unsharded(parts, keep=accelerator.is_main_process)
    if accelerator.is_main_process:
        facts = {
            "epoch": trainer.epoch,
            "batch": trainer.batch,
            "batches": len(trainer.batches),
            "processes": accelerator.num_processes,
            "seconds": trainer.seconds,
            "waited": trainer.batches.waited,
            "rows": _digest(trainer.rows),
            "best": trainer.best,
            "scaler": None if accelerator.scaler is None else accelerator.scaler.state_dict(),
            "config": digest_file(run.path / "config.json"),
            "versions": versions(),
            "device": accelerator.device.type,
        }
        best = run.path / "best.safetensors"
        # That of an epoch which ends now is written after this, or anew from it.
        is_kept = trainer.best is not None and not _is_of_now(trainer.best, facts) and best.is_file()
        save_checkpoint(run.path, facts, parts, best if is_kept else None)
    accelerator.wait_for_everyone()


def restore(trainer: Trained, checkpoint: Checkpoint) -> None:
    """Set a trainer to the state in a checkpoint of its run.

    Raises:
        ValueError: the checkpoint is of another number of processes, the run's files are not those that it was written
            with, or its content does not fit; the message names the file.
    """
    accelerator, facts = trainer.accelerator, checkpoint.facts
    check_fit(trainer, checkpoint)
    trainer.epoch, trainer.batch, trainer.seconds = facts["epoch"], facts["batch"], facts["seconds"]
    trainer.batches.waited = facts["waited"]
    trainer.best = None if facts["best"] is None else dict(facts["best"])
    trainer.rows = _rows(trainer, checkpoint)
    _restore_best(trainer, checkpoint)
    _load(checkpoint, "model", partial(load_state, trainer.module))
    if trainer.ema is not None:
        _load(checkpoint, "average", partial(load_state, trainer.ema.module))
    _load(checkpoint, "optimizer", partial(load_optimizer, trainer.optimizer))
    if accelerator.scaler is not None and facts["scaler"]:
        accelerator.scaler.load_state_dict(dict(facts["scaler"]))
    same_device = facts["device"] == accelerator.device.type
    _load(checkpoint, _rank(accelerator.process_index), partial(_restore_rank, trainer, same_device))


def check_fit(trainer: Trained, checkpoint: Checkpoint) -> None:
    """Raise a ValueError if a checkpoint is of another number of processes, or of a run with other choices."""
    accelerator, run, facts = trainer.accelerator, trainer.run, checkpoint.facts
    if facts["processes"] != accelerator.num_processes:
        now, before = accelerator.num_processes, facts["processes"]
        raise ValueError(
            f"the run {run.path} is trained by {count(before, 'process', 'processes')} and cannot go on with {now}: "
            "which images share batch statistics, and what each process draws, would differ. Start as many again "
            f"(`{resume_command(run.path, before)}`), or begin a new training from its weights "
            f"({from_weights(run.path)})"
        )
    config = run.path / "config.json"
    if digest_file(config) != facts["config"]:
        raise ValueError(f"{config} was changed since the checkpoint {checkpoint.folder} was written; put it back")
    if facts["batches"] != len(trainer.batches):
        raise ValueError(
            f"an epoch of the run {run.path} has {len(trainer.batches)} batches now, and had {facts['batches']} when "
            f"{checkpoint.folder} was written: the data have changed"
        )


def changes(checkpoint: Checkpoint, device: torch.device) -> tuple[str, ...]:
    """A sentence about versions or devices other than those that the checkpoint was written with."""
    before, now = checkpoint.facts["versions"], versions()
    found = [f"{name} {before[name]} → {now[name]}" for name in now if before.get(name, now[name]) != now[name]]
    if checkpoint.facts["device"] != device.type:
        found.append(f"device {checkpoint.facts['device']} → {device.type}")
    if not found:
        return ()
    return (f"Since the checkpoint was written {', '.join(found)}: the result may differ from an uninterrupted run's.",)


def _rank(index: int) -> str:
    return f"rank-{index}"


def _digest(rows: Sequence[Mapping[str, Any]]) -> str:
    return hashlib.blake2b(json.dumps(list(rows)).encode(), digest_size=16).hexdigest()


def _rows(trainer: Trained, checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """The lines of the finished epochs; lines behind the checkpoint are of an epoch that is done again."""
    file = trainer.run.path / "metrics.csv"
    rows = read_metrics(file, checkpoint.epoch)
    if _digest(rows) != checkpoint.facts["rows"]:
        raise ValueError(
            f"{file} is not the file that was written: its first {checkpoint.epoch} rows were changed since the "
            f"checkpoint {checkpoint.folder} was written; put it back"
        )
    return rows


def _is_of_now(best: Mapping[str, Any], facts: Mapping[str, Any]) -> bool:
    """True if the best weights are those of the epoch at whose end a checkpoint is."""
    return facts["batch"] == 0 and best["epoch"] == facts["epoch"]


def _restore_best(trainer: Trained, checkpoint: Checkpoint) -> None:
    """Put the best weights so far back, which the end of the training tests, if they are gone or others by now."""
    best, file = trainer.best, trainer.run.path / "best.safetensors"
    if best is None or _is_of_now(best, checkpoint.facts):
        return  # written anew from the checkpoint
    if trainer.accelerator.is_main_process and not (file.is_file() and digest_file(file) == best["digest"]):
        with replacing(file) as temporary:
            shutil.copyfile(checkpoint.folder / file.name, temporary)


def _load(checkpoint: Checkpoint, name: str, put: Any) -> None:
    tree = checkpoint.part(name)
    try:
        put(tree)
    # Models, optimizers and generators refuse states of others in their own ways.
    except Exception as error:
        raise ValueError(f"{checkpoint.folder / name}.safetensors does not fit this run: {error}") from error


def _restore_rank(trainer: Trained, same_device: bool, tree: Any) -> None:
    trainer.sums.copy_(tree["sums"])
    trainer.bad.copy_(tree["bad"])
    device = trainer.accelerator.device
    if not same_device:
        # One kind's generator does not take another's state; those of the CPU are put back all the same.
        set_seed(trainer.run.recipe.seed, device_specific=True)
        device = torch.device("cpu")
    restore_random_states(tree["random"], device)
