"""One training at a time in a run folder, and none is kept out by a dead one."""

import os
import signal
import time

import pytest

from lambdanets.training import resume
from lambdanets.training.data.skipping import SkipList
from lambdanets.training.runs.lock import is_locked, locked


def in_child(work):
    """Forks a process that does ``work`` and then waits; gives its process id once the work is done."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os.write(write, b"x")
            time.sleep(60)
        finally:
            os._exit(1)
    os.close(write)
    assert os.read(read, 1) == b"x"
    os.close(read)
    return pid


def kill(*pids):
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def test_the_second_is_refused_with_the_name_of_the_first(tmp_path):
    with (
        locked(tmp_path),
        pytest.raises(ValueError, match=rf"{tmp_path} is in use by process {os.getpid()} on"),
    ):
        locked(tmp_path).__enter__()
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path):
        pass


def test_it_ends_with_its_owner_though_its_workers_live(tmp_path):
    """A worker is forked from the owner and holds what that had open."""
    workers = os.pipe()

    held = locked(tmp_path)

    def work():
        held.__enter__()
        worker = in_child(lambda: None)
        os.write(workers[1], worker.to_bytes(8, "little"))

    owner = in_child(work)
    worker = int.from_bytes(os.read(workers[0], 8), "little")
    try:
        with pytest.raises(ValueError, match=rf"is in use by process {owner} on"):
            locked(tmp_path).__enter__()
        kill(owner)
        os.waitpid(owner, 0)
        os.kill(worker, 0)  # it lives
        with locked(tmp_path):
            pass
    finally:
        kill(worker)


def test_a_child_does_not_free_its_parents_lock(tmp_path):
    with locked(tmp_path):

        def work():
            pass

        kill(in_child(work))
        with pytest.raises(ValueError, match="is in use by"):
            locked(tmp_path).__enter__()


def test_resume_of_a_run_that_is_trained(trained, tmp_path):
    import shutil

    run = shutil.copytree(trained.run.path, tmp_path / "run")
    (run / "result.json").unlink()
    with locked(run), pytest.raises(ValueError, match="is in use by process"):
        resume(run)
    # Afterwards it is refused for what it is.
    with pytest.raises(ValueError, match="checkpoint, which a training goes on from, is missing"):
        resume(run)


def make(path, kind, elsewhere):
    """Put something at ``path`` that no training does."""
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "hard link":
        os.link(elsewhere, path)
    else:
        path.symlink_to({"link": elsewhere, "link to a device": "/dev/null", "link to nothing": "new"}[kind])


@pytest.mark.parametrize("name", [".lock", ".skipped.lock"])
@pytest.mark.parametrize("kind", ["folder", "pipe", "hard link", "link", "link to a device", "link to nothing"])
def test_what_is_no_lock_is_refused_and_stays(tmp_path, name, kind):
    """A run folder may come from a stranger."""
    elsewhere, run = tmp_path / "precious", tmp_path / "run"
    elsewhere.write_text("kept")
    run.mkdir()
    make(run / name, kind, elsewhere)
    take = locked(run).__enter__ if name == ".lock" else lambda: SkipList(run, 1).note({"1.png": "cut off"}, "2.png")
    with pytest.raises(ValueError, match=rf"{name} is a .*; remove it"):
        take()
    assert not is_locked(run)
    assert elsewhere.read_text() == "kept"
    assert [path.name for path in run.iterdir()] == [name]
