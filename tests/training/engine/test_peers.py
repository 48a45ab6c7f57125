"""A process of a training that does not answer any more is noticed by the others."""

import multiprocessing
import os
import signal
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import psutil
import pytest
import torch

from lambdanets.training.engine import faults, loaders
from lambdanets.training.engine.faults import resume_command, told_faults
from lambdanets.training.engine.peers import PeerWatch, Silence, waiting_for_main


def test_silence():
    now = [0.0]
    silence = Silence([1, 2], timeout=10, clock=lambda: now[0])

    def at(seconds, news):
        now[0] = seconds
        return silence.hear(news)

    assert at(4, {1: b"a", 2: b"a"}) == []
    assert at(8, {1: b"b", 2: b"a"}) == []
    assert at(12, {1: b"c", 2: b"a"}) == []
    assert at(15, {1: b"d", 2: b"a"}) == [2]
    assert at(19, {1: b"e"}) == [2]
    assert at(23, {1: b"f", 2: b"b"}) == []
    # The end of a process is no silence.
    assert at(27, {1: b"end", 2: b"c"}) == []
    for seconds in range(30, 60, 4):
        assert at(seconds, {1: b"end", 2: str(seconds).encode()}) == []


def test_a_process_that_was_stopped_itself_starts_to_listen_anew():
    now = [0.0]
    silence = Silence([1], timeout=10, clock=lambda: now[0])
    silence.hear({1: b"a"})
    now[0] = 1000
    assert silence.hear({1: b"a"}) == []
    now[0] = 1004
    assert silence.hear({1: b"b"}) == []


def test_one_process_watches_nothing():
    with PeerWatch(0, 1, 10.0) as watch:
        assert watch._thread is None


def test_the_others_wait_for_the_main_process(monkeypatch):
    """After an error in it too."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    for restart, error in enumerate([None, ValueError("no images")]):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(restart))
        done = []

        def other(done=done):
            with waiting_for_main(1, 2):
                pass
            done.append("other")

        thread = threading.Thread(target=other)
        with pytest.raises(ValueError, match="no images") if error else nullcontext(), waiting_for_main(0, 2):
            thread.start()
            time.sleep(0.3)
            done.append("main")
            if error:
                raise error
        thread.join(timeout=1800)
        assert done == ["main", "other"]
    with waiting_for_main(0, 1):
        pass


def fail(error, processes):
    with told_faults(processes, "Go on.", "Take smaller batches."):
        raise error


def test_errors_of_workers_and_connections_are_told():
    with pytest.raises(OSError, match=r"reads images ended or does not answer \(DataLoader worker .*\)\. .* Go on\."):
        fail(RuntimeError("DataLoader worker (pid 3) is killed by signal: Killed. "), 1)
    lost = RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:3")
    with pytest.raises(ConnectionError, match=r"another of the 2 processes is lost, .* Go on\."):
        fail(lost, 2)
    with pytest.raises(MemoryError, match=r"\(CUDA out of memory\)\. Take smaller batches\.$"):
        fail(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), 1)
    # One that the data raised in a worker that lives.
    data = RuntimeError("Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback ...\nsizes differ")
    for processes, error in ((1, lost), (2, RuntimeError("shapes differ")), (2, ValueError("gloo")), (1, data)):
        with pytest.raises(type(error)) as raised:
            fail(error, processes)
        assert raised.value is error


def test_workers_that_are_left_are_ended_with_the_program():
    """Not 20 seconds later, which is the time that they take after SIGTERM."""
    with told_faults(1, "Go on.", ""):
        worker = multiprocessing.Process(target=time.sleep, args=(60,), daemon=True)
        worker.start()
    assert worker.is_alive()
    faults._end_left_workers()
    assert not worker.is_alive()


def _a_training(connection):
    """Have a worker, which is forked while the training waits for a batch, and tells when it is ready."""

    def work():
        loaders._outlive_signals(0)
        connection.send(os.getpid())
        while True:
            time.sleep(0.05)

    with faults.deadline(60):
        worker = multiprocessing.get_context("fork").Process(target=work)
        worker.start()
    worker.join()


def test_a_worker_outlives_signals_while_its_training_runs_and_not_longer(monkeypatch):
    monkeypatch.setattr(loaders, "_LOOK", 1)
    here, there = multiprocessing.Pipe()
    training = multiprocessing.get_context("fork").Process(target=_a_training, args=(there,))
    training.start()
    worker = psutil.Process(here.recv())
    for number in (signal.SIGINT, signal.SIGTERM):
        worker.send_signal(number)
    time.sleep(2.5)
    assert worker.status() != psutil.STATUS_ZOMBIE
    training.kill()
    training.join()
    worker.wait(timeout=60)


def test_a_deadline_leaves_other_timers_alone():
    """Ctrl-C that a library swallowed is raised once more: by a timer that repeats, which was set before or within."""
    rung = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(1))
    try:
        with faults.deadline(60):
            signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
            time.sleep(0.2)
        assert rung
        assert signal.getitimer(signal.ITIMER_REAL)[1] == pytest.approx(0.05)
        with faults.deadline(60):
            pass
        assert signal.getitimer(signal.ITIMER_REAL)[1] == pytest.approx(0.05)
        signal.setitimer(signal.ITIMER_REAL, 0)
        with pytest.raises(RuntimeError, match=r"no batch for 0\.1 seconds"), faults.deadline(0.1):
            time.sleep(10)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_commands(monkeypatch):
    assert resume_command(Path("a b")) == "lambdanets train --resume 'a b'"
    assert resume_command(Path("a"), 2) == "torchrun --nproc-per-node 2 -m lambdanets train --resume a"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    words = "torchrun --nnodes 4 ... --nproc-per-node 8 -m lambdanets train --resume a"
    assert resume_command(Path("a"), 32) == words
