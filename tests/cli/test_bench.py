"""``lambdanets bench`` as a user types it."""

import csv
import json
import re
import signal
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from helpers import PRESENT
from lambdanets.experiments.bench import bench, cases, growth, timing
from lambdanets.experiments.bench.cases import Case
from lambdanets.experiments.report.results import read_rows
from lambdanets.files import write_csv
from lambdanets.kernels.grid import costs
from lambdanets.provenance import source_commit
from lambdanets_cli.app import app


def run(*words):
    return CliRunner().invoke(app, words, env={"COLUMNS": "200"}, catch_exceptions=True)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(cases, "QUICK", (Case(1, (5, 5), 16), Case(1, (6, 5), 16, 3)))


def test_bench_writes_results_that_name_the_machine(small, tmp_path):
    result = run("bench", "--quick", "--seconds", "0.01", "--max-seconds", "0.01", "--output", str(tmp_path))
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
    result = run("bench", "--growth", "--seconds", "0.01", "--max-seconds", "0.01", "--output", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert (tmp_path / "growth.png").exists()
    assert "fit from n = 700" in run("bench", "--table", str(tmp_path / "growth.csv")).output


@pytest.mark.parametrize(("words", "name"), [((), "bench"), (("--growth",), "growth")])
def test_noisy_measures_marked_cases_again(monkeypatch, tmp_path, words, name):
    monkeypatch.setattr(growth, "SIZES", (4, 5))
    monkeypatch.setattr(cases, "CASES", (Case(1, (4, 4), 16), Case(1, (5, 5), 16)))
    options = ("--seconds", "0.01", "--max-seconds", "0.01", "--output", str(tmp_path))
    assert run("bench", *words, *options).exit_code == 0
    path = tmp_path / f"{name}.csv"
    rows = [{**row, "noisy": "", "note": "old"} for row in read_rows(path)]
    write_csv(path, rows)
    with pytest.raises(ValueError, match=r"--noisy has nothing to do: .* has no marked row"):
        raise run("bench", *words, "--noisy", *options).exception
    write_csv(path, [{**row, "noisy": "yes", "case" if "case" in row else "positions": "gone"} for row in rows])
    with pytest.raises(ValueError, match="the marked rows are of gone, which are not measured any more"):
        raise run("bench", *words, "--noisy", *options).exception
    write_csv(path, [{key: row[key] for key in row if key != "noisy"} for row in rows])
    with pytest.raises(ValueError, match=r"cannot tell which rows .* an earlier version wrote it"):
        raise run("bench", *words, "--noisy", *options).exception
    path.unlink()
    with pytest.raises(FileNotFoundError, match="--noisy needs the file of an earlier run"):
        raise run("bench", *words, "--noisy", *options).exception
    rows[-1]["noisy"] = "yes"
    write_csv(path, rows)
    result = run("bench", *words, "--noisy", *options)
    assert result.exit_code == 0, result.output
    again = read_rows(path)
    assert [row["contender"] for row in again] == [row["contender"] for row in rows]
    assert {row["positions"] for row in again if row["note"] == "old"} == {"16"}
    assert {row["positions"] for row in again if row["note"] != "old"} == {"25"}
    # Rows of another machine are refused after the first case.
    write_csv(path, [{**row, "noisy": "yes", "machine": "another"} for row in rows])
    before = path.read_bytes()
    result = run("bench", *words, "--noisy", *options)
    assert "were measured with machine another, now it is" in str(result.exception)
    assert "Stopped after 1 of 2 cases." in result.output
    assert path.read_bytes() == before


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


def test_calibrate_refuses_its_output_before_it_measures(monkeypatch, tmp_path):
    from lambdanets.experiments.bench import calibrate

    monkeypatch.setattr(calibrate, "calibrate", lambda *_, **__: pytest.fail("measured"))
    (tmp_path / "file").touch()
    for output, message in ((tmp_path, "is a folder; name a file in it"), (tmp_path / "file" / "c", "file is a file")):
        result = run("bench", "--calibrate", "--output", str(output))
        assert message in str(result.exception)


def test_calibrate_keeps_the_constants_in_the_cache(monkeypatch, tmp_path):
    from lambdanets.experiments.bench import calibrate

    monkeypatch.setattr(costs, "cache_file", lambda: tmp_path / "cache" / "costs.json")
    chosen = (Case(1, (4, 4), 16), Case(1, (6, 6), 16, 3))
    monkeypatch.setattr(calibrate, "CALIBRATION_CASES", chosen)
    result = run("bench", "--calibrate", "--seconds", "0.01", "--max-seconds", "0.01")
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "cache" / "costs.json").read_text())
    assert set(written["devices"]["cpu"]) == set(PRESENT)
    monkeypatch.undo()
    costs.reload()


# Turns of the passes of two cases: the third ones are the second case's, and the last visit's in growth.
@pytest.mark.parametrize(("words", "interrupted"), [(["--quick"], 3), (["--growth"], 2 * 4 + 3)])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("out of memory")])
def test_what_stops_it_keeps_the_cases_that_were_finished(small, monkeypatch, tmp_path, words, interrupted, error):
    monkeypatch.setattr(growth, "SIZES", (4, 5))

    class Interrupted(timing.Turns):
        taken = 0

        def take(self, *arguments):
            Interrupted.taken += 1
            if Interrupted.taken == interrupted:
                # As the command does for Ctrl-C, until it has ended it.
                signal.setitimer(signal.ITIMER_REAL, 60, 60)
                raise error
            super().take(*arguments)

    for module in (bench, growth):
        monkeypatch.setattr(module, "Turns", Interrupted)
    result = run("bench", *words, "--seconds", "0.01", "--max-seconds", "0.01", "--output", str(tmp_path))
    assert result.exit_code != 0
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)  # what is finished is written in peace
    assert "Stopped after 1 of 2 cases." in result.output
    name = "growth.csv" if "--growth" in words else "bench.csv"
    assert f"Wrote {tmp_path / name}" in result.output
    assert len({row["positions"] for row in read_rows(tmp_path / name)}) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--seconds 0", "--seconds must be above 0 and finite, got 0; leave it out for the default"),
        ("--seconds -1", "--seconds must be above 0 and finite, got -1"),
        ("--seconds nan", "--seconds must be above 0 and finite, got nan"),
        ("--max-seconds 0", "--max-seconds must be above 0 and finite, got 0; leave it out for the default"),
        ("--seconds 3 --max-seconds 2", "--max-seconds must be at least --seconds 3, got 2"),
        ("--noisy --quick", "--quick means nothing together with --noisy"),
        ("--noisy --calibrate", "--noisy means nothing together with --calibrate"),
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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"case,contender,machine\n\xff,a,b\n", r"x\.csv is damaged: it is not UTF-8"),
        (b"case,contender,machine\na,b\n", r"x\.csv is damaged: line 2 has 2 values, the header 3"),
        (b"case,contender,machine\na,b,c\n", r"x\.csv is damaged: its rows do not read .*'pass'"),
        (b"case,contender,machine,pass,median_ms\na,lambdanets,c,forward,fast\n", r"x\.csv is damaged: .*'fast'"),
        (b"", "is not a result file of 'lambdanets bench'"),
        (b"a,b\n1,2\n", "is not a result file of 'lambdanets bench'"),
    ],
)
def test_a_table_of_a_damaged_file(tmp_path, content, message):
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        raise run("bench", "--table", str(tmp_path / "x.csv")).exception


def test_a_pattern_that_matches_nothing_lists_the_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("bench", "--cases", "nothing")
    with pytest.raises(ValueError, match="cases must match at least one of global-7x7-d64-b1"):
        raise result.exception
    assert not list(tmp_path.iterdir())


def test_the_profiler_keeps_quiet(tmp_path):
    """In a new process, since PyTorch asks on import how much it shall say."""
    code = f"""
import sys
from lambdanets_cli import app as cli
from lambdanets_cli import bench as cli_bench

def measure(*_):
    import torch
    from lambdanets.experiments.bench.measure import peak_bytes
    print(peak_bytes(lambda: torch.ones(4)))
    kept = [torch.ones(4)]
    peak_bytes(kept.clear)  # frees what was allocated before

cli_bench._bench = measure
sys.argv = ["lambdanets", "bench", "--output", {str(tmp_path)!r}]
cli.main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=1800, check=False)
    assert (done.stdout, done.stderr) == ("16\n", "")
