"""Killed at random moments, some inside a write, a training ends as the uninterrupted one, bit by bit.

The short form of ``scripts/kill_harness.py``.
"""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from helpers import load_script
from lambdanets.training import resume, train


@pytest.fixture(scope="module")
def harness():
    return load_script("kill_harness")


@pytest.mark.parametrize(("workers", "processes", "kills"), [(0, 1, 8), (2, 1, 6), (0, 2, 6)])
def test_kills(harness, colours, tmp_path, workers, processes, kills):
    recipe = harness.small_recipe(colours, workers, epochs=2)
    tally = harness.kill_trainings(tmp_path, recipe, kills, processes=processes, seed=workers + processes)
    assert tally.differences == []
    assert tally.bit_equal == tally.trainings >= 1
    assert tally.lost_steps
    assert max(tally.lost_steps) <= 3


def can_mount(folder):
    """True if a file can be mounted as a disk, which needs root and a loop device."""
    (folder / "try").mkdir()
    image, place = str(folder / "try.img"), str(folder / "try")
    commands = (
        ["truncate", "-s", "8M", image],
        ["mkfs.ext4", "-q", "-F", image],
        ["mount", "-o", "loop", image, place],
        ["umount", place],
    )
    try:
        return all(subprocess.run(command, capture_output=True, check=False).returncode == 0 for command in commands)
    except FileNotFoundError:
        return False


def test_power_cuts_of_a_disk(harness, colours, tmp_path):
    if not can_mount(tmp_path):
        pytest.skip("no ext4 image can be mounted here; tests/training/engine/test_power_cut.py has every moment")
    tally = harness.cut_power(tmp_path, harness.small_recipe(colours, 0, epochs=2), 2)
    assert tally.differences == []
    assert tally.bit_equal == tally.trainings == 2


def test_a_stopped_process_is_noticed(harness, colours, tmp_path):
    """By the other, which waits for it, in the time that was asked for; the last checkpoint is whole.

    It is longer than a busy machine keeps a process waiting for its turn; by default it would be 120 seconds.
    """
    recipe = harness.small_recipe(colours, 0, epochs=1000)
    run, log = tmp_path / "run", tmp_path / "log.txt"
    training = harness.Training(
        lambda: train(recipe, output=run, console=harness.silent_console(), checkpoint_every="1", timeout=10), 2, log
    )
    try:
        training.wait(lambda: training.done.value >= 2)
        second, began = training.pids[1], time.monotonic()
        os.kill(second, signal.SIGSTOP)
        training.wait(lambda: training.pids == [second])
        assert time.monotonic() - began < 100
        assert training.failed
    finally:
        training.kill()
    assert (
        f"process 1 (on {os.uname().nodename}, process id {second}) of 2 has not answered for 10 seconds"
        in log.read_text()
    )
    assert f"-m lambdanets train --resume {run}" in log.read_text()
    assert harness.saved_steps(run) >= 1
    # The lock does not outlive its owner; one process cannot go on with what two have begun.
    with pytest.raises(ValueError, match=r"is trained by 2 processes and cannot go on with 1"):
        resume(run)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_data_worker_that_does_not_answer_is_told(harness, colours, tmp_path, number):
    recipe = harness.small_recipe(colours, 1, epochs=1000)
    run, log = tmp_path / "run", tmp_path / "log.txt"
    training = harness.Training(lambda: train(recipe, output=run, console=harness.silent_console(), timeout=10), 1, log)
    try:
        training.wait(lambda: training.done.value >= 2)
        children = Path(f"/proc/{training.pids[0]}/task/{training.pids[0]}/children").read_text().split()
        for child in map(int, children):
            os.kill(child, number)
        began = time.monotonic()
        training.wait()
        assert time.monotonic() - began < 100
    finally:
        training.kill()
    assert training.failed
    assert "OSError: a process that reads images ended or does not answer (DataLoader" in log.read_text()
    assert f"Go on with `lambdanets train --resume {run}`" in log.read_text()
    assert harness.saved_steps(run) is not None


def test_sigterm_to_all_processes_of_a_group_saves_the_step(harness, colours, tmp_path):
    """As SLURM and init systems send it: data workers get it too, and the training needs them for its last step."""
    recipe = harness.small_recipe(colours, 2, epochs=1000)
    run, log = tmp_path / "run", tmp_path / "log.txt"
    training = harness.Training(lambda: train(recipe, output=run, console=harness.silent_console()), 1, log)
    try:
        training.wait(lambda: training.done.value >= 2)
        children = Path(f"/proc/{training.pids[0]}/task/{training.pids[0]}/children").read_text().split()
        for pid in [*map(int, children), training.pids[0]]:
            os.kill(pid, signal.SIGTERM)
        training.wait()
    finally:
        training.kill()
    assert not training.failed, log.read_text()
    assert harness.saved_steps(run) >= training.done.value >= 2
