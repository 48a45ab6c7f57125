"""Noticing that another process of a training has stopped, though nothing says so: stopped, or its machine is gone.

Each process counts up a number of its own in the store through which the processes found each other. One whose number
stands still for a while does not answer any more: the others would wait for it in their next exchange, for half an hour
or for ever. A long validation or a slow disk is no silence, as the counting goes on beside it.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from types import TracebackType

import torch.distributed

TIMEOUT = 120.0
# The key under which a launcher's store keeps the folder of the run that its processes train.
_BEGUN = "lambdanets/run"
_END = b"end"
_ENDS_WITH = 2


def open_store(timeout: float) -> torch.distributed.TCPStore | None:
    """A connection to the store of the launcher (torchrun, accelerate launch), None where there is none."""
    host, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT", "")
    if not host or not port.isdigit():
        return None
    return torch.distributed.TCPStore(
        host, int(port), is_master=False, wait_for_workers=False, timeout=timedelta(seconds=timeout)
    )


def join_after_restart(device: str) -> None:
    """Connect to the other processes, if torchrun started all of them again after a fault.

    torchrun's store outlives the processes, and with it the addresses at which they could be reached: whoever looks
    before the others have written their new ones would connect to processes that are gone, and be refused. Here each
    restart has keys of its own. Accelerate takes a connection that is there.

    Args:
        device: the type of device that the processes compute on.
    """
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if restart == "0" or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or torch.distributed.is_initialized():
        return
    store = open_store(TIMEOUT)
    if store is None:
        return
    torch.distributed.init_process_group(
        torch.distributed.get_default_backend_for_device(device),
        store=torch.distributed.PrefixStore(f"lambdanets/{restart}", store),
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
    )


def remember(path: Path) -> None:
    """Note the run folder with the launcher, for processes that it starts again after a fault."""
    if "TORCHELASTIC_RESTART_COUNT" in os.environ:
        store = open_store(60.0)
        if store is not None:
            store.set(_BEGUN, str(path.absolute()))


def begun_before_restart() -> Path | None:
    """The run folder that this process's forerunners had begun, if torchrun started it again."""
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        return None
    store = open_store(60.0)
    return Path(store.get(_BEGUN).decode()) if store is not None and store.check([_BEGUN]) else None


# How often each process waited: a program may train more than once, all its processes as often.
_waits: Counter[int] = Counter()


@contextmanager
def waiting_for_main(rank: int, processes: int) -> Iterator[None]:
    """Do the block in all processes; the others then wait for the main one (rank 0), however long it takes.

    They wait at the store: in an exchange, they would have the time limit of the backend alone.
    """
    store = open_store(60.0) if processes > 1 else None
    if store is None:
        yield
        return
    _waits[rank] += 1
    key = f"lambdanets/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/main-is-ready/{_waits[rank]}"
    try:
        yield
    finally:
        if rank == 0:  # after an error too: the others meet it in their next exchange
            store.set(key, "")
    store.wait([key], timedelta(days=365))


class Silence:
    """Watch that tells which processes have not been heard of for a while.

    Args:
        names: the processes to listen to.
        timeout: seconds without news after which one counts as silent.
        clock: gives seconds.
    """

    def __init__(self, names: list[int], timeout: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._timeout, self._clock = timeout, clock
        self._last = clock()
        self._news: dict[int, tuple[bytes | None, float]] = dict.fromkeys(names, (None, self._last))

    def hear(self, news: dict[int, bytes]) -> list[int]:
        """Take in what the processes say now; returns those that are silent."""
        now = self._clock()
        if now - self._last > self._timeout / 2:  # this process was stopped itself, and knows nothing of the others
            self._news = {name: (said, now) for name, (said, _) in self._news.items()}
        self._last = now
        for name, (said, _) in self._news.items():
            if news.get(name, said) != said:
                self._news[name] = (news[name], now)
        return [name for name, (said, when) in self._news.items() if said != _END and now - when > self._timeout]


class PeerWatch:
    """While active, ends this process with a message when another one of the training does not answer.

    Args:
        rank: of this process.
        processes: how many there are; with one nothing is watched.
        timeout: seconds without an answer after which a process counts as gone.

    Attributes:
        advice: a sentence for the message: how to go on.
    """

    def __init__(self, rank: int, processes: int, timeout: float) -> None:
        self.rank, self.processes, self.timeout = rank, processes, timeout
        self.advice = ""
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> PeerWatch:
        store = open_store(self.timeout) if self.processes > 1 else None
        if store is not None:
            self._thread = threading.Thread(target=self._watch, args=(store,), daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join(timeout=1.0)

    def _key(self, rank: int) -> str:
        return f"lambdanets/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/beat/{rank}"

    def _watch(self, store: torch.distributed.TCPStore) -> None:
        others = [rank for rank in range(self.processes) if rank != self.rank]
        silence, beat = Silence(others, self.timeout), 0
        who = f"on {socket.gethostname()}, process id {os.getpid()}"
        while True:  # the first beat at once: a process that is stopped in its first moments can be named too
            beat += 1
            news = {}
            try:
                store.set(self._key(self.rank), f"{who} {beat}")
                for rank in others:
                    if store.check([self._key(rank)]):
                        news[rank] = store.get(self._key(rank))
            except RuntimeError:  # the store's own process is gone: nothing can be read
                pass
            silent = silence.hear(news)
            if silent:
                self._give_up(silent, news)
            if self._done.wait(min(5.0, self.timeout / 6)):
                break
        with suppress(RuntimeError):
            store.set(self._key(self.rank), _END.decode())

    def _give_up(self, silent: list[int], news: dict[int, bytes]) -> None:
        speaker = min(rank for rank in range(self.processes) if rank not in silent)
        if self.rank == speaker:
            which = ", ".join(f"{rank} ({_who(news.get(rank))})" for rank in silent)
            text = (
                f"Error: process {which} of {self.processes} has not answered for {self.timeout:g} seconds: it was "
                f"stopped, or its machine or network is gone. {self.advice}\n"
            )
            os.write(2, text.encode())
        # The main thread waits for the silent process inside of a call that nothing interrupts.
        os._exit(_ENDS_WITH)


def _who(said: bytes | None) -> str:
    return "its place is not known" if said is None else said.decode(errors="replace").rpartition(" ")[0]
