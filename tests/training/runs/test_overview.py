import json
import shutil

import pytest

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
    (tmp_path / "b" / "metrics.csv").write_text("\n".join([lines[0], lines[1], ",".join(values)]) + "\n")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.txt").touch()
    (tmp_path / ".hidden").mkdir()
    shutil.copy(tmp_path / "a" / "config.json", tmp_path / ".hidden")
    return tmp_path


def test_best_results_of_runs_the_best_first(trained, runs):
    found = list_runs(runs)
    assert [run.run for run in found] == [runs / "b", runs / "a", runs / "deep" / "c"]
    best, other = found[:2]
    assert (best.best_epoch, best.validation_top1, best.epochs, best.all_epochs) == (2, 0.99, 2, 3)
    assert (other.best_epoch, other.validation_top1) == (trained.best_epoch, trained.validation_top1)
    assert (other.test_top1, other.status, other.data) == (trained.test.top1, "finished", "colours")
    assert other.model == "lambda_resnet_tiny"
    assert other.seconds > 0
    assert json.loads(json.dumps(other.to_dict()))["run"] == str(runs / "a")
    assert [run.run for run in list_runs(runs / "a")] == [runs / "a"]


def test_status(runs):
    (runs / "a" / "result.json").unlink()
    (runs / "b" / "result.json").write_text('{"status": "diverged", "test": null}')
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
    (runs / "deep" / "c" / "result.json").write_text('{"status": 3, "test": [1]}')
    found = {run.run.name: run for run in list_runs(runs)}
    assert (found["a"].status, found["b"].status) == ("damaged", "damaged")
    assert "config.json is damaged" in found["a"].problem
    assert "metrics.csv has the columns epoch" in found["b"].problem
    assert (found["c"].status, found["c"].test_top1) == ("interrupted", None)


def test_no_runs(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no runs"):
        list_runs(tmp_path)
    with pytest.raises(FileNotFoundError, match="none does not exist"):
        list_runs(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file"):
        list_runs(tmp_path / "file")
