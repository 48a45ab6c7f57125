import json
import re
import shutil

import pytest

from lambdanets.training.display.comparison import plot_runs
from lambdanets.training.runs.folder import Run
from lambdanets.training.runs.lock import is_locked, locked
from lambdanets.training.runs.overview import list_runs


@pytest.fixture
def runs(trained, tmp_path):
    """Three copies of a run, a better one of them and one in a subfolder, and things that are no runs."""
    for name in ("a", "b", "deep/c"):
        shutil.copytree(trained.run.path, tmp_path / name)
    lines = (tmp_path / "b" / "metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("validation_top1")
    values = lines[2].split(",")
    values[column] = "0.99"
    (tmp_path / "b" / "metrics.csv").write_text("\n".join([lines[0], lines[1], ",".join(values), lines[3]]) + "\n")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.txt").touch()
    (tmp_path / ".hidden").mkdir()
    shutil.copy(tmp_path / "a" / "config.json", tmp_path / ".hidden")
    return tmp_path


def test_best_results_of_runs_the_best_first(trained, runs):
    found = list_runs(runs)
    assert [run.run for run in found] == [runs / "b", runs / "a", runs / "deep" / "c"]
    best, other = found[:2]
    assert (best.best_epoch, best.validation_top1, best.epochs, best.all_epochs) == (2, 0.99, 3, 3)
    assert (other.best_epoch, other.validation_top1) == (trained.best_epoch, trained.validation_top1)
    assert (other.test_top1, other.status, other.data) == (trained.test.top1, "finished", "colours")
    assert other.model == "lambda_resnet_tiny"
    assert other.seconds > 0
    assert json.loads(json.dumps(other.to_dict()))["run"] == str(runs / "a")
    assert [run.run for run in list_runs(runs / "a")] == [runs / "a"]


def test_status(runs):
    (runs / "a" / "result.json").unlink()
    result = json.loads((runs / "b" / "result.json").read_text())
    (runs / "b" / "result.json").write_text(json.dumps({**result, "status": "diverged", "test": None}))
    with locked(runs / "deep" / "c"):
        assert is_locked(runs / "deep" / "c")
        status = {run.run.name: run.status for run in list_runs(runs)}
    assert status == {"a": "interrupted", "b": "diverged", "c": "running"}
    assert not is_locked(runs / "deep" / "c")
    (runs / "deep" / "c" / ".lock").touch()  # of a training that was killed
    (runs / "deep" / "c" / "checkpoint").mkdir()
    assert {run.run.name: run.status for run in list_runs(runs)}["c"] == "interrupted"


def test_damaged_runs_are_told_beside_the_others(runs):
    (runs / "a" / "config.json").write_text("{")
    (runs / "b" / "metrics.csv").write_text("epoch\n1\n")
    (runs / "deep" / "c" / "result.json").write_text('{"status": "finished", "test": [1]}')
    found = {run.run.name: run for run in list_runs(runs)}
    assert {run.status for run in found.values()} == {"damaged"}
    assert "config.json is damaged" in found["a"].problem
    assert "metrics.csv has the columns epoch" in found["b"].problem
    assert "result.json: epochs is missing" in found["c"].problem


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"metrics\.csv has 0 rows, and this run has finished 3 epochs"),
        (b"\0\1", r"metrics\.csv is damaged: it has no rows"),
        (b"header,alone\n", r"metrics\.csv is damaged: it has no rows"),
        (None, r"metrics\.csv has 0 rows, and this run has finished 3 epochs"),
        ("one row less", r"metrics\.csv has 2 rows, and this run has finished 3 epochs"),
    ],
)
def test_a_finished_run_has_a_row_for_each_epoch(trained, tmp_path, content, message):
    shutil.copytree(trained.run.path, tmp_path / "run")
    file = tmp_path / "run" / "metrics.csv"
    if content is None:
        file.unlink()
    else:
        file.write_bytes(b"".join(file.read_bytes().splitlines(True)[:-1]) if isinstance(content, str) else content)
    (run,) = list_runs(tmp_path)
    assert run.status == "damaged"
    assert re.search(message, run.problem)
    with pytest.raises(ValueError, match=message):
        plot_runs(tmp_path / "x.png", [tmp_path / "run"])


def test_no_runs(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no runs"):
        list_runs(tmp_path)
    with pytest.raises(FileNotFoundError, match="none does not exist"):
        list_runs(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file"):
        list_runs(tmp_path / "file")


def test_a_run_that_may_not_be_read_hides_no_others(runs, monkeypatch):
    open_run = Run.open

    def refuse(path):
        if path.name == "a":
            raise PermissionError(13, "Permission denied", str(path / "config.json"))
        return open_run(path)

    monkeypatch.setattr(Run, "open", refuse)
    found = {run.run.name: run for run in list_runs(runs)}
    assert (found["a"].status, found["b"].status) == ("damaged", "finished")
    assert "Permission denied" in found["a"].problem
