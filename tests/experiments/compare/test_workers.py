"""Jobs of a cluster: submitit's executor that runs them here stands for those that send them away."""

import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import compare_toy
from compare_toy import Toy
from lambdanets.console import make_console
from lambdanets.experiments.compare.grid import run_cells
from lambdanets.experiments.compare.one_cell import run_cell
from lambdanets.experiments.compare.study import CellsFailedError, Options, StoppedError, inspect
from lambdanets.experiments.compare.workers import Cluster, check_stopped, cluster_jobs, stop_cells
from lambdanets.experiments.studies import get_study
from lambdanets.files import read_json


def run(folder, cluster, **options):
    toy = Toy(str(folder / "log"))
    cells = run_cells(toy, Options(**{"seeds": 1, **options}), folder, 1, make_console(), cluster)
    return cells, toy.ran()


# This executor of submitit leaves its logs open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_cells_are_jobs(tmp_path):
    pytest.importorskip("submitit", reason="the package submitit is not installed")
    cells, ran = run(tmp_path, Cluster("debug", {"timeout_min": 5}))
    assert ran == ["speed all", "train a0", "search b", "train b00.5"]
    assert [cell.row for cell in cells] == ["all", "a", "b", "b"]
    assert list((tmp_path / "jobs").iterdir())


@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        (Cluster("slrm"), "--cluster is 'slrm'; give slurm, or local"),
        (Cluster(""), "--cluster is ''; give slurm, or local"),
        (Cluster("local", {"timeout": 5}), "--job timeout=5 is refused by submitit .*'timeout'.*; give a parameter"),
        (Cluster("local", {"mem_gb": "much"}), "--job mem_gb=much is refused by submitit .*; give a parameter"),
        (Cluster("local", {"timeout_min": 1.5}), "--job timeout_min=1.5 is refused by submitit .*; give a parameter"),
        (Cluster("local", {"nodes": 2}), "--job nodes=2 is refused by submitit .*one node.*; give a parameter"),
        (Cluster("local", {"timeout_min": -1}), "--job timeout_min=-1 must be more than 0; give a parameter"),
        (Cluster("local", {"local_tasks_per_node": 0}), "--job local_tasks_per_node=0 must be more than 0; give"),
        (Cluster("local", {"gpus_per_node": -1}), "--job gpus_per_node=-1 must be at least 0; give a parameter"),
    ],
)
def test_unknown_clusters_and_parameters(tmp_path, cluster, message):
    pytest.importorskip("submitit", reason="the package submitit is not installed")
    with pytest.raises(ValueError, match=message):
        run(tmp_path, cluster)


def test_of_several_tasks_one_measures(tmp_path, monkeypatch):
    """What the others compute would disturb it."""
    pytest.importorskip("submitit", reason="the package submitit is not installed")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(compare_toy.__file__).parent), *sys.path]))
    cells, ran = run(tmp_path, Cluster("local", {"timeout_min": 5, "tasks_per_node": 2}), seeds=0)
    assert ran == ["speed all"]
    assert [cell.row for cell in cells] == ["all"]
    assert len(list((tmp_path / "jobs").glob("*_result.pkl"))) == 2


def test_all_tasks_train_together(tmp_path):
    pytest.importorskip("submitit", reason="the package submitit is not installed")
    study = get_study("layers")
    options = Options(quick=True, only=("lambda",), data=inspect("digits"), seeds=1, epochs=1)
    cell = study.cells(options)[-1]
    assert (cell.config["kind"], cell.config["row"]) == ("train", "lambda")
    config = {**cell.config, "lr": 0.01}
    place = tmp_path / "work"
    place.mkdir()
    with cluster_jobs(Cluster("local", {"timeout_min": 5, "tasks_per_node": 2}), 1, tmp_path / "jobs") as executor:
        ran = executor.submit(run_cell, study, config, place, "digits", 1, look=True).result()
    assert ran.result["test_top1"] > 0.2, ran
    assert read_json(place / "run" / "result.json")["processes"] == 2


def test_a_job_that_ends_without_a_result_is_a_cell_that_failed(tmp_path, capsys, monkeypatch):
    submitit = pytest.importorskip("submitit", reason="the package submitit is not installed")

    class Killed:
        job_id, state = "7", "TIMEOUT"
        paths = SimpleNamespace(stderr="7.err")

        def results(self):
            raise submitit.core.utils.UncompletedJobError("has not produced any output")

    monkeypatch.setattr(submitit.AutoExecutor, "submit", lambda *call: Killed())
    with pytest.raises(CellsFailedError, match="3 of 4 cells failed, 1 that come after them did not run, 0 are done"):
        run(tmp_path, Cluster("debug"))
    assert "speed of all failed: its job 7 ended without a result (state TIMEOUT); what it wrote is in 7.err" in (
        capsys.readouterr().out
    )


def test_a_job_that_is_being_sent_is_cancelled_too(tmp_path, monkeypatch):
    submitit = pytest.importorskip("submitit", reason="the package submitit is not installed")
    sending, stopped = threading.Event(), threading.Event()

    class Job:
        def results(self):
            assert stopped.wait(30), "nobody cancelled it"
            return [None]

        def cancel(self, check):
            stopped.set()

    def send(*call):
        sending.set()
        time.sleep(0.3)
        return Job()

    monkeypatch.setattr(submitit.AutoExecutor, "submit", send)

    def interrupted():
        with cluster_jobs(Cluster("debug"), 1, tmp_path) as executor:
            executor.submit_alone(print)
            sending.wait()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert stopped.is_set()


def test_a_cluster_that_takes_no_jobs_is_told(tmp_path, monkeypatch):
    submitit = pytest.importorskip("submitit", reason="the package submitit is not installed")

    def refuse(*call):
        raise AssertionError("Nothing to do!")

    monkeypatch.setattr(submitit.AutoExecutor, "submit", refuse)
    with pytest.raises(ValueError, match="--cluster debug takes no job: Nothing to do!; see to it and to each --job"):
        run(tmp_path, Cluster("debug"))


def test_submitit_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ValueError, match=r"--cluster local needs the package submitit: pip install"):
        run(tmp_path, Cluster("local"))


def test_an_ignored_interrupt_stops_no_cell():
    """As in the background of a shell, and in the processes of several jobs, which leave it to their parent."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_cells() as stop:
            signal.raise_signal(signal.SIGINT)
            check_stopped(stop)
            with pytest.raises(StoppedError):
                signal.raise_signal(signal.SIGTERM)
            with pytest.raises(StoppedError):
                check_stopped(stop)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
