"""``lambdanets kernels`` and ``lambdanets bench`` as a user types them."""

import csv
import json
import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from lambdanets.experiments.bench import bench, cases, constants, growth
from lambdanets.experiments.bench import contenders as experiments_contenders
from lambdanets.experiments.bench.cases import Case
from lambdanets.experiments.report.results import read_rows
from lambdanets.kernels.grid import costs
from lambdanets.kernels.grid.planner import GRID_KERNELS, kernels_for
from lambdanets.provenance import source_commit
from lambdanets_cli.app import app


def run(*words):
    return CliRunner().invoke(app, words, env={"COLUMNS": "200"}, catch_exceptions=True)


def test_kernels_shows_all_with_reasons_and_the_choice():
    result = run("kernels", "--shape", "2,9,9,9,16")
    assert result.exit_code == 0
    assert all(name in result.output for name in GRID_KERNELS)
    assert "cannot run: it is for sequences and images, and this grid has rank 3" in result.output
    assert "chosen for" in result.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shape", "8,14"], "--shape must be B,LENGTH,DIM.*got '8,14'; for example --shape 8,14,14,256"),
        (["--shape", "8,a,3"], "got '8,a,3'"),
        (["--scope", "4"], "--scope must be odd and positive, one number or one for each of the 2 axes of --shape"),
        (["--scope", "3,5,7"], "got '3,5,7'"),
        (["--scope", "wide"], "got 'wide'"),
        (["--heads", "7"], "--heads must divide the channels 256 of --shape, got 7"),
        (["--device", "tpu"], "--device must be cpu or cuda, got 'tpu'"),
        (["--dtype", "int8"], "--dtype must be one of float32.*got 'int8'"),
    ],
)
def test_kernels_refuses(words, message):
    result = run("kernels", *words)
    with pytest.raises(ValueError, match=message):
        raise result.exception


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_kernels_names_the_device_and_where_the_constants_are_from(device):
    output = run("kernels", "--device", device).output
    assert constants.device_name(device) in output
    assert constants.where_from(device) in output


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(cases, "QUICK", (Case(1, (5, 5), 16), Case(1, (6, 5), 16, 3)))


def test_bench_writes_results_that_name_the_machine(small, tmp_path):
    result = run("bench", "--quick", "--seconds", "0.01", "--output", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert "global-5x5-d16-b1" in result.output
    with open(tmp_path / "bench.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["case"] for row in rows} == {"global-5x5-d16-b1", "scope3-6x5-d16-b1"}
    assert rows[0]["machine"]
    assert rows[0]["commit"] == source_commit()
    assert (tmp_path / "bench.png").stat().st_size > 10_000
    assert rows[0]["machine"] in (tmp_path / "bench.md").read_text()
    table = run("bench", "--table", str(tmp_path / "bench.csv"))
    assert "best of lucidrains and timm" in table.output


def test_growth_writes_its_own_files(monkeypatch, tmp_path):
    monkeypatch.setattr(growth, "SIZES", (4, 5))
    result = run("bench", "--growth", "--seconds", "0.01", "--output", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert (tmp_path / "growth.png").exists()
    assert "fit from n = 700" in run("bench", "--table", str(tmp_path / "growth.csv")).output


def test_calibrate_writes_what_is_shipped(monkeypatch, tmp_path):
    from lambdanets.experiments.bench import calibrate
    from lambdanets.kernels.grid import costs

    monkeypatch.setattr(calibrate, "CALIBRATION_CASES", calibrate.CALIBRATION_CASES[:0])
    shipped = costs.shipped()
    monkeypatch.setattr(calibrate, "calibrate", lambda cases, **_: shipped)
    path = tmp_path / "new" / "costs.json"
    result = run("bench", "--calibrate", "--output", str(path))
    assert result.exit_code == 0, result.output
    assert path.read_bytes() == costs.shipped_file().read_bytes()
    assert not costs.cache_file().exists()


def test_calibrate_keeps_the_constants_in_the_cache(monkeypatch, tmp_path):
    from lambdanets.experiments.bench import calibrate

    monkeypatch.setattr(costs, "cache_file", lambda: tmp_path / "cache" / "costs.json")
    chosen = (Case(1, (4, 4), 16), Case(1, (6, 6), 16, 3))
    monkeypatch.setattr(calibrate, "CALIBRATION_CASES", chosen)
    result = run("bench", "--calibrate", "--seconds", "0.01")
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "cache" / "costs.json").read_text())
    assert set(written["devices"]["cpu"]) == set(kernels_for("cpu"))
    monkeypatch.undo()
    costs.reload()


@pytest.mark.parametrize("words", [["--quick"], ["--growth"]])
def test_ctrl_c_keeps_the_cases_that_were_finished(small, monkeypatch, tmp_path, words):
    monkeypatch.setattr(growth, "SIZES", (4, 5))

    def interrupt(*_, **__):
        if seen:
            raise KeyboardInterrupt
        seen.append(1)
        return contenders(*_, **__)

    seen, contenders = [], experiments_contenders.contenders
    for module in (bench, growth):
        monkeypatch.setattr(module, "contenders", interrupt)
    result = run("bench", *words, "--seconds", "0.01", "--output", str(tmp_path))
    assert result.exit_code != 0
    assert "Interrupted after 1 of 2 cases." in result.output
    name = "growth.csv" if "--growth" in words else "bench.csv"
    assert f"Wrote {tmp_path / name}" in result.output
    assert len({row["positions"] for row in read_rows(tmp_path / name)}) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--seconds 0", "--seconds must be above 0 and finite, got 0; leave it out for the default"),
        ("--seconds -1", "--seconds must be above 0 and finite, got -1"),
        ("--seconds nan", "--seconds must be above 0 and finite, got nan"),
        ("--growth --quick", "--quick means nothing together with --growth; leave one of them out"),
        ("--growth --cases scope7-*", "--cases means nothing together with --growth"),
        ("--growth --device cuda", "--device cuda means nothing together with --growth"),
        ("--calibrate --growth", "--growth means nothing together with --calibrate"),
        ("--table bench.csv --seconds 1", "--seconds means nothing together with --table"),
        ("--device tpu", "--device must be cpu or cuda, got 'tpu'"),
    ],
)
def test_bench_refuses_what_it_would_ignore(words, message):
    result = run("bench", *words.split())
    with pytest.raises(ValueError, match=re.escape(message)):
        raise result.exception


def test_the_place_of_the_results_is_tried_before_anything_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "run", lambda *_, **__: pytest.fail("measured"))
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"the output .*file is a file; give a folder"):
        raise run("bench", "--quick", "--output", str(tmp_path / "file")).exception
    with pytest.raises(OSError, match="/proc"):
        raise run("bench", "--quick", "--output", "/proc").exception


def test_a_pattern_that_matches_nothing_lists_the_names():
    result = run("bench", "--cases", "nothing")
    with pytest.raises(ValueError, match="cases must match at least one of global-7x7-d512-b8"):
        raise result.exception


def test_the_profiler_keeps_quiet(tmp_path):
    """In a new process, since PyTorch asks on import how much it shall say."""
    code = f"""
import sys
from lambdanets_cli import app as cli
from lambdanets_cli import op as cli_op

def measure(*_):
    import torch
    from lambdanets.experiments.bench.measure import peak_bytes
    print(peak_bytes(lambda: torch.ones(4)))

cli_op._bench = measure
sys.argv = ["lambdanets", "bench", "--output", {str(tmp_path)!r}]
cli.main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert (done.stdout, done.stderr) == ("16\n", "")
