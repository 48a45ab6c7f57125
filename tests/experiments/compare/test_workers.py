"""Jobs of a cluster: submitit's executor that runs them here stands for those that send them away."""

import sys

import pytest

from compare_toy import Toy
from lambdanets.console import make_console
from lambdanets.experiments.compare.grid import run_cells
from lambdanets.experiments.compare.study import Options
from lambdanets.experiments.compare.workers import Cluster


def run(folder, cluster, jobs=1):
    toy = Toy(str(folder / "log"))
    cells = run_cells(toy, Options(seeds=1), folder, jobs, make_console(), cluster)
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
        (Cluster("slrm"), "--cluster slrm: .*slrm"),
        (Cluster("local", {"timeout": 5}), "--cluster local: .*timeout"),
    ],
)
def test_unknown_clusters_and_parameters(tmp_path, cluster, message):
    pytest.importorskip("submitit", reason="the package submitit is not installed")
    with pytest.raises(ValueError, match=message):
        run(tmp_path, cluster)


def test_submitit_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ValueError, match=r"--cluster local needs the package submitit: pip install"):
        run(tmp_path, Cluster("local"))
