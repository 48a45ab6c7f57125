"""The cells of a toy study: run once, in order, resumed, damaged ones again; locks, room, several at a time."""

import errno
import os
import pickle
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace

import pytest

from compare_toy import Toy
from lambdanets.console import make_console
from lambdanets.experiments.compare import grid, one_cell
from lambdanets.experiments.compare.cell import (
    OtherFormatError,
    cell_file,
    cell_key,
    read_cells,
    study_version,
    write_cell,
)
from lambdanets.experiments.compare.grid import run_cells
from lambdanets.experiments.compare.study import CellsFailedError, Needs, Options, StoppedError
from lambdanets.experiments.studies import get_study, list_studies
from lambdanets.files import make_folder
from lambdanets.training.engine.signals import StopSignal
from lambdanets.training.runs.lock import locked


@pytest.fixture
def toy(tmp_path):
    return Toy(str(tmp_path / "log"))


@pytest.fixture
def in_threads(monkeypatch):
    """Threads stand for the processes, which take seconds to start; gives the number of each call."""
    used = []

    @contextmanager
    def workers(jobs):
        used.append(jobs)
        with ThreadPoolExecutor(jobs) as executor:
            yield executor

    monkeypatch.setattr(grid, "processes", workers)
    return used


def run(toy, folder, jobs=1, **options):
    return run_cells(toy, Options(**{"seeds": 2, **options}), folder, jobs, make_console())


def test_cells_run_once_and_in_order(toy, tmp_path, capsys):
    cells = run(toy, tmp_path / "out")
    assert toy.ran() == ["speed all", "train a0", "train a1", "search b", "train b00.5", "train b10.5"]
    assert [cell.result["seed"] for cell in cells if cell.kind == "train"] == [0, 1, 0, 1]
    assert not list((tmp_path / "out" / "work").iterdir())
    out = capsys.readouterr().out
    log = tmp_path / "out" / "work" / "*" / "log.txt"
    assert out.startswith(f"0 of 6 cells of the study toy are done. Those that run tell their progress in {log}.")
    assert re.search(r"\[6/6\] train of b, seed 1, learning rate 0.5 \(0 s\); 0 s left", out)
    again = run(toy, tmp_path / "out")
    assert toy.ran() == []
    assert capsys.readouterr().out == "6 of 6 cells of the study toy are done.\n"
    assert again == cells == sorted(read_cells(tmp_path / "out")[0], key=cells.index)
    run(toy, tmp_path / "out", seeds=3, only=("b",))
    assert toy.ran() == ["train b20.5"]


def test_a_stopped_study_goes_on(toy, tmp_path, capsys):
    toy.stop = "b"
    with pytest.raises(StoppedError):
        run(toy, tmp_path)
    assert "Stopped with 3 of 6 cells left; the same command goes on." in capsys.readouterr().out
    toy.ran()
    toy.stop = ""
    run(toy, tmp_path)
    assert capsys.readouterr().out.startswith("3 of 6 cells of the study toy are done; 0 s left. Those that run")
    assert toy.ran() == ["search b", "train b00.5", "train b10.5"]


def test_a_damaged_cell_is_named_and_run_again(toy, tmp_path, capsys):
    cells = run(toy, tmp_path)
    toy.ran()
    file = cell_file(tmp_path, cell_key(cells[1].config, "", study_version(1)))
    file.write_text(file.read_text()[:-20])
    assert run(toy, tmp_path)[1].config == cells[1].config
    assert toy.ran() == ["train a0"]
    assert re.search(f"{file.name} is damaged.*it is run again", capsys.readouterr().out.replace("\n", " "))


def test_a_damaged_cell_is_named_once(toy, tmp_path, capsys, in_threads):
    cells = run(toy, tmp_path)
    toy.ran()
    file = cell_file(tmp_path, cell_key(cells[4].config, "", study_version(1)))
    file.write_text(file.read_text().replace('"seed": 0', '"seed": 9'))
    run(toy, tmp_path, jobs=2)
    assert toy.ran() == ["train b00.5"]
    assert capsys.readouterr().out.count(f"{file.name} is damaged") == 1


def test_a_cell_of_another_format_is_not_run_again(toy, tmp_path):
    """It may have cost hours."""
    cells = run(toy, tmp_path)
    toy.ran()
    files = [cell_file(tmp_path, cell_key(cells[number].config, "", study_version(1))) for number in (0, 4)]
    files[0].unlink()
    files[1].write_text(text := files[1].read_text().replace('"format": 2', '"format": 1'))
    with pytest.raises(OtherFormatError, match="format 1"):
        run(toy, tmp_path)
    assert toy.ran() == []
    assert files[1].read_text() == text


def test_two_runs_do_not_share_a_folder(toy, tmp_path):
    with locked(tmp_path), pytest.raises(ValueError, match=r"the folder .* is in use by process .*give another folder"):
        run(toy, tmp_path)
    run(toy, tmp_path)


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("what", ["memory", "disk"])
def test_too_little_room_is_said_before(toy, tmp_path, capsys, in_threads, what, jobs):
    """The others run."""
    toy.needs = lambda config: Needs(**({what: 10**18} if config["kind"] == "search" else {}))
    with pytest.raises(CellsFailedError, match="1 of 6 cells failed, 2 that come after them did not run, 3 are done"):
        run(toy, tmp_path, jobs=jobs)
    assert sorted(toy.ran()) == ["speed all", "train a0", "train a1"]
    message = rf"search of b failed: it needs 1000000000.0 GB of {what}, and [\d.]+ GB are free; "
    assert re.search(message, capsys.readouterr().out)


@pytest.mark.parametrize(("need", "held", "most"), [(60, 0, 1), (60, 40, 1), (45, 0, 2), (45, 45, 2), (45, 20, 2)])
def test_what_running_cells_will_allocate_is_not_free(toy, tmp_path, monkeypatch, in_threads, need, held, most):
    """Of a memory of 100 each cell needs some, of which it holds a part while it runs."""
    running, seen = [], []

    def begin(folder):
        make_folder(folder)
        if folder.parent.name == "work":
            running.append(folder)
            seen.append(len(running))

    def busy(config, place):
        time.sleep(0.1)
        running.remove(place.folder)
        return {"lr": 0.5}

    toy.run, toy.needs = busy, lambda config: Needs(memory=need)
    monkeypatch.setattr(grid, "make_folder", begin)
    monkeypatch.setattr(grid, "available_memory", lambda: 100 - held * len(running))
    monkeypatch.setattr(grid, "allocated", lambda place: held if place in running else 0)
    assert len(run(toy, tmp_path, jobs=3)) == 6  # a cell that does not fit beside those that run waits for them
    assert max(seen) == most


def test_what_idle_processes_hold_is_freed_for_a_cell_that_fits_alone(toy, tmp_path, monkeypatch, in_threads, capsys):
    """The search needs what two idle processes leave no room for, the trainings of row b what nothing has room for."""
    needs = {"search": 90, "train a": 20, "train b": 101}
    toy.needs = lambda config: Needs(memory=needs.get(config["kind"], needs.get(f"train {config['row']}", 0)))
    begun = []

    def begin(folder):
        make_folder(folder)
        begun.append((len(in_threads), folder.parent.name))

    monkeypatch.setattr(grid, "make_folder", begin)
    monkeypatch.setattr(one_cell, "available_memory", lambda: 100)
    monkeypatch.setattr(grid, "available_memory", lambda: 100 - 20 * ((len(in_threads), "work") in begun))
    with pytest.raises(CellsFailedError, match="2 of 6 cells failed, 4 are done"):
        run(toy, tmp_path, jobs=2)
    assert in_threads == [2, 2, 2]
    assert capsys.readouterr().out.count("train of b, seed") == 2


def test_a_process_that_was_ended_tells_what_ran(toy, tmp_path, monkeypatch, in_threads):
    def run_cell(study, config, *args):
        if config["kind"] == "search":
            raise BrokenProcessPool
        return one_cell.run_cell(study, config, *args)

    monkeypatch.setattr(grid, "run_cell", run_cell)
    with pytest.raises(ChildProcessError, match=r"while these ran: .*search of b\. The same command goes on"):
        run(toy, tmp_path, jobs=2)


def test_unknown_rows_name_the_nearest(toy, tmp_path):
    with pytest.raises(ValueError, match="unknown row of the study toy 'c'"):
        run(toy, tmp_path, only=("c",))


def test_several_at_a_time(toy, tmp_path, in_threads):
    for study in (toy, *map(get_study, list_studies())):
        pickle.dumps((grid.run_cell, study))  # what goes to processes
    cells = run(toy, tmp_path, jobs=2)
    assert in_threads == [2]
    first, *others = toy.ran()
    assert first == "speed all"  # alone
    assert others.index("search b") < min(others.index(name) for name in ("train b00.5", "train b10.5"))
    assert sorted([first, *others]) == ["search b", "speed all", "train a0", "train a1", "train b00.5", "train b10.5"]
    assert [cell.config["row"] for cell in cells] == ["all", "a", "a", "b", "b", "b"]


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_cell_that_fails_is_named_and_the_others_run(toy, tmp_path, capsys, in_threads, jobs):
    toy.fail = "search"
    with pytest.raises(CellsFailedError, match="1 of 6 cells failed, 2 that come after them did not run, 3 are done"):
        run(toy, tmp_path, jobs=jobs)
    assert sorted(toy.ran()) == ["speed all", "train a0", "train a1"]
    (place,) = (tmp_path / "work").iterdir()
    assert f"search of b failed: KeyError: 'lr'; its log is {place / 'log.txt'}\n" in capsys.readouterr().out
    assert "Traceback" in (place / "log.txt").read_text()
    toy.fail = ""
    run(toy, tmp_path, jobs=jobs)
    assert sorted(toy.ran()) == ["search b", "train b00.5", "train b10.5"]


def test_a_result_that_cannot_be_kept_fails(toy, tmp_path, capsys):
    toy.run = lambda config, place: {"lr": float("nan" if config["row"] == "a" else 1)}
    with pytest.raises(CellsFailedError, match="2 of 6 cells failed, 4 are done"):
        run(toy, tmp_path)
    assert "train of a, seed 0 failed: Out of range float values" in capsys.readouterr().out


def test_a_folder_in_place_of_a_cell_is_refused_before_work(toy, tmp_path):
    cells = run(toy, tmp_path)
    toy.ran()
    file = cell_file(tmp_path, cell_key(cells[1].config, "", study_version(1)))
    file.unlink()
    file.mkdir()
    with pytest.raises(ValueError, match=f"{file.name} is a folder.*move it away"):
        run(toy, tmp_path)
    assert toy.ran() == []


@pytest.mark.parametrize("name", ["cells", "work", "jobs"])
def test_a_file_in_place_of_a_folder_is_refused_before_work(toy, tmp_path, name):
    study = tmp_path / "study"
    study.mkdir()
    (study / name).touch()
    with pytest.raises(ValueError, match=f"{name} is a file; give a folder"):
        run(toy, study)
    assert not (tmp_path / "log").exists()


def test_a_full_disk_stops_it_and_says_what_is_left(toy, tmp_path, capsys, monkeypatch):
    def full(folder, key, done):
        raise OSError(errno.ENOSPC, "No space left on device", str(folder / key))

    monkeypatch.setattr("lambdanets.experiments.compare.grid.write_cell", full)
    with pytest.raises(OSError, match="No space left"):
        run(toy, tmp_path)
    assert "Stopped with 6 of 6 cells left; the same command goes on once this is mended." in capsys.readouterr().out
    assert len(toy.ran()) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("phase", ["read", "alone", "alone, dropped", "alone, turned", "one by one", "beside"])
def test_signals_stop_it_in_every_phase(toy, tmp_path, capsys, in_threads, number, phase):
    """A library may drop what a signal raises, or turn it into an error of its own."""
    stopped = {"alone": "speed", "one by one": "search", "beside": "search"}.get(phase.partition(",")[0])
    whole, cells = toy.run, toy.cells

    def stop(config, place):
        if config["kind"] == stopped:
            time.sleep(0.3 if phase == "beside" else 0)  # the others are done
            try:
                os.kill(os.getpid(), number)  # it reaches the main thread, whichever runs this
                time.sleep(0.2)
            except StoppedError as error:
                if phase.endswith("turned"):
                    raise RuntimeError("a callback failed") from error
                if not phase.endswith("dropped"):
                    raise
        return whole(config, place)

    toy.run = stop
    if phase == "read":
        toy.cells = lambda options: [cells(options), signal.raise_signal(number)][0]
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(StoppedError) as stopped_by:
        run(toy, tmp_path, jobs=2 if phase == "beside" else 1)
    assert stopped_by.value.number == number
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert not (tmp_path / ".lock").exists()
    done = len(read_cells(tmp_path)[0])
    text = capsys.readouterr().out
    left = "" if phase == "read" else f" with {6 - done} of 6 cells left"
    assert text.splitlines()[-1] == f"Stopped{left}; the same command goes on."
    assert "failed" not in text
    assert done == {"read": 0, "alone": 0, "alone, dropped": 1, "alone, turned": 0, "one by one": 3}.get(phase, done)
    toy.run, toy.cells = whole, cells
    run(toy, tmp_path)


def test_a_signal_within_a_training_that_ends_stops_the_study(toy, tmp_path):
    """It came while the last epoch was validated, which is not cut short."""
    whole = toy.run

    def finish(config, place):
        with StopSignal():
            signal.raise_signal(signal.SIGTERM)
        return whole(config, place)

    toy.run = finish
    with pytest.raises(StoppedError):
        run(toy, tmp_path)
    assert len(toy.ran()) == len(read_cells(tmp_path)[0]) == 1


def test_what_an_ended_run_left_of_a_finished_cell_is_removed(toy, tmp_path):
    """The system ended it between the cell's file and the removal of its folder."""
    keys = [file.stem for file in (run(toy, tmp_path), tmp_path.glob("cells/*.json"))[1]]
    (tmp_path / "work" / keys[0]).mkdir(parents=True)
    (tmp_path / "work" / keys[0] / "checkpoint").touch()
    run(toy, tmp_path)
    assert not list((tmp_path / "work").iterdir())


def test_a_resumed_cell_counts_all_its_parts(toy, tmp_path, capsys, monkeypatch):
    whole = toy.run

    def stop(config, place):
        time.sleep(0.3 if config["kind"] == "search" else 0)
        raise StoppedError(signal.SIGTERM)

    monkeypatch.setattr(toy, "run", lambda *args: stop(*args) if args[0]["kind"] == "search" else whole(*args))
    for _ in range(2):
        with pytest.raises(StoppedError):
            run(toy, tmp_path)
    monkeypatch.setattr(toy, "run", whole)
    (search,) = (done for done in run(toy, tmp_path) if done.kind == "search")
    assert 0.6 <= search.seconds < 5
    assert "search of b (1 s); " in capsys.readouterr().out


def test_an_estimate_has_the_cells_that_were_read(toy, tmp_path, capsys):
    """A cell that is read took what its file says, not no time at all, also one that comes later in the order."""
    first, second = run(toy, tmp_path)[4:]
    cell_file(tmp_path, cell_key(first.config, "", study_version(1))).unlink()
    write_cell(tmp_path, cell_key(second.config, "", study_version(1)), replace(second, seconds=600.0))
    capsys.readouterr()
    run(toy, tmp_path, seeds=3, only=("b",))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("3 of 5 cells of the study toy are done; 20 min 00 s left.")
    assert lines[1].endswith("[4/5] train of b, seed 0, learning rate 0.5 (0 s); 10 min 00 s left")
    assert lines[2].endswith("; 0 s left")


def test_what_has_been_running_is_not_left(toy, tmp_path, monkeypatch, in_threads):
    asked = []
    monkeypatch.setattr(grid, "seconds_left", lambda study, done, left, jobs: asked.append(left) or 0.0)

    def slow(config, place):
        time.sleep(0.3 if config.get("seed") == 1 else 0)
        return {"lr": 0.5}

    toy.run = slow
    run(toy, tmp_path, jobs=2)
    assert max(asked[0].values()) == 0  # after the one that runs alone
    assert max(asked[1].values()) > 0  # seed 0 of row a is done, seed 1 runs
    assert [len(left) for left in asked] == [5, 4, 3, 2, 1, 0]
