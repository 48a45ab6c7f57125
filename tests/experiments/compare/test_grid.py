"""The cells of a toy study: run once, in order, resumed, damaged ones again; locks, room, several at a time."""

import os
import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from compare_toy import Toy
from lambdanets.console import make_console
from lambdanets.experiments.compare import grid
from lambdanets.experiments.compare.cell import cell_file, cell_key, read_cells, study_version
from lambdanets.experiments.compare.grid import run_cells
from lambdanets.experiments.compare.study import Needs, Options, StoppedError
from lambdanets.experiments.studies import get_study, list_studies
from lambdanets.training.runs.lock import locked


@pytest.fixture
def toy(tmp_path):
    return Toy(str(tmp_path / "log"))


def run(toy, folder, jobs=1, **options):
    return run_cells(toy, Options(**{"seeds": 2, **options}), folder, jobs, make_console())


def test_cells_run_once_and_in_order(toy, tmp_path, capsys):
    cells = run(toy, tmp_path / "out")
    assert toy.ran() == ["speed all", "train a0", "train a1", "search b", "train b00.5", "train b10.5"]
    assert [cell.result["seed"] for cell in cells if cell.kind == "train"] == [0, 1, 0, 1]
    assert not list((tmp_path / "out" / "work").iterdir())
    assert re.search(r"\[6/6\] train of b, seed 1, learning rate 0.5 \(0 s\); 0 s left", capsys.readouterr().out)
    again = run(toy, tmp_path / "out")
    assert toy.ran() == []
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
    assert toy.ran() == ["search b", "train b00.5", "train b10.5"]


def test_a_damaged_cell_is_named_and_run_again(toy, tmp_path, capsys):
    cells = run(toy, tmp_path)
    toy.ran()
    file = cell_file(tmp_path, cell_key(cells[1].config, "", study_version(1)))
    file.write_text(file.read_text()[:-20])
    assert run(toy, tmp_path)[1].config == cells[1].config
    assert toy.ran() == ["train a0"]
    assert re.search(f"{file.name} is damaged.*it is run again", capsys.readouterr().out.replace("\n", " "))


def test_two_runs_do_not_share_a_folder(toy, tmp_path):
    with locked(tmp_path), pytest.raises(ValueError, match=r"another `lambdanets compare` works in .*another --output"):
        run(toy, tmp_path)
    run(toy, tmp_path)


@pytest.mark.parametrize(
    ("what", "name", "value"), [("memory", "available_memory", lambda: 999), ("disk", "shutil", None)]
)
def test_too_little_room_is_said_before(toy, tmp_path, monkeypatch, what, name, value):
    if what == "disk":
        toy.needs = lambda config: Needs(disk=10**18)
    else:
        toy.memory = 2_000_000_000
        monkeypatch.setattr(grid, name, value)
    with pytest.raises(ValueError, match=rf"speed of all needs [\d.]+ GB of {what}, and [\d.]+ GB are free; "):
        run(toy, tmp_path)
    assert not os.path.exists(toy.log)


def test_unknown_rows_name_the_nearest(toy, tmp_path):
    with pytest.raises(ValueError, match="unknown row of the study toy 'c'"):
        run(toy, tmp_path, only=("c",))


def test_several_at_a_time(toy, tmp_path, monkeypatch):
    """Here threads stand for the processes, which take seconds to start; what goes to these can be pickled."""
    used = []

    @contextmanager
    def workers(jobs):
        used.append(jobs)
        with ThreadPoolExecutor(jobs) as executor:
            yield executor

    monkeypatch.setattr(grid, "processes", workers)
    for study in (toy, *map(get_study, list_studies())):
        pickle.dumps((grid._run, study))
    cells = run(toy, tmp_path, jobs=2)
    assert used == [2]
    first, *others = toy.ran()
    assert first == "speed all"  # alone
    assert others.index("search b") < min(others.index(name) for name in ("train b00.5", "train b10.5"))
    assert sorted([first, *others]) == ["search b", "speed all", "train a0", "train a1", "train b00.5", "train b10.5"]
    assert [cell.config["row"] for cell in cells] == ["all", "a", "a", "b", "b", "b"]
