"""Faults from outside while a training runs, as errors that say what broke and how to go on."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType

import torch

from lambdanets.console import shell_word

# Words by which gloo's and NCCL's errors are known, which are RuntimeErrors without a class of their own.
_LOST = ("gloo", "nccl", "connection closed by peer", "connection reset", "broken pipe", "socket")


def resume_command(run: Path, processes: int = 1) -> str:
    """The command that goes on with a run on this many processes."""
    rest = f"train --resume {shell_word(run)}"
    if processes == 1:
        return f"lambdanets {rest}"
    here = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    nodes = f"--nnodes {processes // here} ... " if processes > here else ""
    return f"torchrun {nodes}--nproc-per-node {here} -m lambdanets {rest}"


def from_weights(run: Path) -> str:
    """The two commands that begin a new training with a run's choices from its weights."""
    word = shell_word(run)
    return (
        f"`lambdanets train --resume {word} --print-recipe > recipe.yaml`, then `lambdanets train --recipe recipe.yaml "
        f"--init-from {word}`"
    )


def how_to_take_less(run: Path) -> str:
    """A sentence with the choices that need less memory of the device, which a run that goes on cannot change."""
    return (
        "Train with a smaller --batch-size, with more parts by --accumulate, or with --precision bf16; from the last "
        f"weights by {from_weights(run)}, with one of these."
    )


def how_to_go_on(run: Path, processes: int) -> str:
    """A sentence with the command that goes on with a run."""
    return f"Go on with `{resume_command(run, processes)}`."


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """End the block by a RuntimeError if it takes longer than ``seconds``; 0 sets no limit.

    PyTorch's own limit for data workers does not hold while a worker hands over a tensor. Only the main thread can be
    ended like this, and not on Windows.
    """
    is_main = threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer")
    if not seconds or not is_main:
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        if time.monotonic() < until and callable(handler):
            handler(number, frame)  # a timer that was set in the block, as of an interrupt that is insisted on
        else:
            raise RuntimeError(f"DataLoader: no batch for {seconds:g} seconds")

    until = time.monotonic() + seconds
    handler = signal.signal(signal.SIGALRM, end)
    before = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        left = signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler or signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, *(left if left[1] else before))  # ours does not repeat


def _end(children: Iterable[BaseProcess]) -> None:
    """Kill processes and wait for their end, without PyTorch's handler, which raises an error for a killed worker."""
    is_main = threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD")
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if is_main else None
    for child in children:
        child.kill()
        child.join()
    if is_main:
        signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)


# Data workers, each with the process that started it.
_workers: set[tuple[int, BaseProcess]] = set()


def _end_left_workers() -> None:
    """End this process's workers when it ends; they outlive the SIGTERM that multiprocessing sends them then."""
    _end(worker for owner, worker in _workers if owner == os.getpid() and worker.is_alive())


atexit.register(_end_left_workers)


@contextmanager
def told_faults(processes: int, advice: str, memory_advice: str) -> Iterator[None]:
    """Turn the errors of data workers and of the connection between processes into an OSError that says what to do.

    That of a device whose memory is full becomes a MemoryError.

    Data workers are ended before the error is raised: one that is stopped would hold up the end of the program.

    Args:
        processes: how many work together.
        advice: a sentence for the message: how to go on.
        memory_advice: a sentence for that of a full memory, with which going on would fail again.
    """
    before = set(multiprocessing.active_children())

    def started() -> set[BaseProcess]:
        return set(multiprocessing.active_children()) - before

    try:
        yield
    except torch.OutOfMemoryError as error:
        said = str(error).partition(". ")[0]
        raise MemoryError(f"a step does not fit into the memory of the device ({said}). {memory_advice}") from error
    except RuntimeError as error:
        text = " ".join(str(error).split())
        # An error of the data in a worker that lives carries PyTorch's "Caught ... in DataLoader worker process".
        if "DataLoader" in text and not text.startswith("Caught "):
            _end(started())
            raise OSError(
                f"a process that reads images ended or does not answer ({text}). Was the memory full, or the disk "
                f"slow? {advice}"
            ) from error
        if processes > 1 and any(word in text.lower() for word in _LOST):
            raise ConnectionError(
                f"the connection to another of the {processes} processes is lost, it may have ended: {text[:300]}. "
                f"{advice}"
            ) from error
        raise
    finally:
        _workers.update((os.getpid(), worker) for worker in started())
