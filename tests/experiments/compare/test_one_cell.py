"""A cell in its process: the seconds of all its parts, its errors, the memory that its process holds."""

import json
import multiprocessing
import os
import time

import pytest
import torch

from compare_toy import Toy
from lambdanets.experiments.compare import one_cell
from lambdanets.experiments.compare.one_cell import Failed, Ran, allocated, run_cell, told
from lambdanets.experiments.compare.study import Needs

CONFIG = {"kind": "train", "row": "a", "seed": 0}


@pytest.fixture
def toy(tmp_path):
    return Toy(str(tmp_path / "notes"))


def run(toy, place, look=False, threads=None):
    place.mkdir(exist_ok=True)
    return run_cell(toy, CONFIG, place, None, threads, look)


def test_seconds_of_a_part_that_was_killed_end_with_the_last_that_it_wrote(toy, tmp_path):
    place = tmp_path / "work"
    (place / "run").mkdir(parents=True)
    now = time.time()
    (place / "part.json").write_text(json.dumps({"seconds": 1000.0, "begun": now - 900, "process": 1}))
    (place / "run" / "metrics.csv").touch()
    for path, age in ((place / "part.json", 900), (place / "run" / "metrics.csv", 400), (place / "run", 500)):
        os.utime(path, (now - age, now - age))
    outcome = run(toy, place)
    assert isinstance(outcome, Ran)
    assert outcome.seconds == pytest.approx(1500, abs=20)


def test_seconds_of_a_failed_part_count(toy, tmp_path):
    toy.fail = "train"
    whole, toy.run = toy.run, lambda *args: [time.sleep(0.3), whole(*args)][1]
    assert run(toy, tmp_path / "work") == Failed("KeyError: 'lr'")
    assert "Traceback" in (tmp_path / "work" / "log.txt").read_text()
    toy.fail = ""
    assert run(toy, tmp_path / "work").seconds >= 0.6


@pytest.mark.parametrize(("own", "share", "used"), [(None, 2, 2), (3, 2, 3), (3, None, 3)])
def test_the_threads_that_it_computed_with_are_told(toy, tmp_path, own, share, used):
    before, seen = torch.get_num_threads(), []
    toy.threads = lambda config: own
    toy.run = lambda config, place: seen.append(torch.get_num_threads()) or {}
    assert run(toy, tmp_path / "work", threads=share).environment["threads"] == used
    assert seen == [used]
    assert torch.get_num_threads() == before


def test_of_several_tasks_one_counts(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert isinstance(run(toy, tmp_path / "work"), Ran)
    assert not (tmp_path / "work" / "part.json").exists()


def test_the_room_is_looked_at_where_the_cell_runs(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(one_cell, "available_memory", lambda: 10**9)
    toy.needs = lambda config: Needs(memory=10**12)
    outcome = run(toy, tmp_path / "work", look=True)
    assert outcome.text.startswith("it needs 1000.0 GB of memory, and ")
    assert not os.path.exists(toy.log)
    # What this process holds already is a part of the need.
    toy.needs = lambda config: Needs(memory=10**9 + 10**7)
    assert isinstance(run(toy, tmp_path / "work", look=True), Ran)


def test_the_memory_of_the_process_of_a_cell(tmp_path):
    assert allocated(tmp_path) == 0
    child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
    child.start()
    try:
        for process, holds in ((child.pid, True), (os.getpid(), False), (None, False)):
            (tmp_path / "part.json").write_text(json.dumps({"seconds": 0.0, "begun": 0.0, "process": process}))
            assert (allocated(tmp_path) > 0) == holds
    finally:
        child.kill()
        child.join()


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("no such data"), "no such data"),
        (KeyError("lr"), "KeyError: 'lr'"),
        (MemoryError(), "MemoryError: "),
        (RuntimeError("two\nlines"), "RuntimeError: two\\nlines"),
        (ValueError(), "ValueError: "),
    ],
)
def test_errors_are_told_in_one_line(error, text):
    assert told(error) == text
