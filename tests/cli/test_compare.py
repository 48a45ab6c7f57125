"""``lambdanets compare`` as a user types it."""

import signal

import pytest
from typer.testing import CliRunner

from compare_toy import Toy
from lambdanets.console import make_console
from lambdanets.experiments import studies
from lambdanets.experiments.compare.cell import Wanted
from lambdanets.experiments.compare.outcome import Claim, Outcome
from lambdanets.experiments.report.study_report import report_cells
from lambdanets_cli.app import app
from lambdanets_cli.compare import _parameter, study_names


def run(*words):
    return CliRunner().invoke(app, ["compare", *map(str, words)], env={"COLUMNS": "200"}, catch_exceptions=True)


def test_the_help_names_all_studies():
    assert study_names() == studies.list_studies()
    assert f"One of {', '.join(studies.list_studies())}." in run("--help").output


@pytest.fixture
def toy(tmp_path, monkeypatch):
    toy = Toy(str(tmp_path / "log"))
    toy.takes_data, toy.default_data, toy.trains_without_data = False, None, True
    toy.outcome = lambda cells: Outcome("toy", "Toy", "Which?", [Claim(f"{len(cells)} cells", True)], [], [])
    monkeypatch.setattr(studies, "get_study", lambda name: toy)
    return toy


def test_it_runs_reports_and_goes_on(toy, tmp_path):
    out = tmp_path / "out"
    result = run("toy", "--jobs", 1, "--quick", "--seeds", 2, "--output", out)
    assert result.exit_code == 0, result.output
    assert "[6/6] train of b, seed 1" in result.output
    assert "as expected: 6 cells" in result.output
    assert f"Report: {out / 'toy' / 'report.html'}" in result.output
    # The report is of all cells of this kind in the folder, whatever rows this run was for.
    result = run("toy", "--jobs", 1, "--quick", "--seeds", 3, "--only", "a", "--output", out)
    assert "as expected: 7 cells" in result.output
    (damaged, *_) = sorted((out / "toy" / "cells").iterdir())
    damaged.write_text("{")
    result = run("toy", "--report", "--output", out)
    assert f"{damaged} is damaged" in result.output
    assert "as expected: 6 cells" in result.output
    assert "1 file of cells that cannot be read" in (out / "toy" / "report.html").read_text()
    # Cells of another size are there too: those that the report was asked for.
    assert "as expected: 4 cells" in run("toy", "--jobs", 1, "--seeds", 1, "--output", out).output
    assert "as expected: 6 cells" in run("toy", "--report", "--quick", "--output", out).output
    with pytest.raises(ValueError, match="no trainings of 7 epochs"):
        report_cells(toy, out / "toy", make_console(), wanted=Wanted(epochs=7))
    toy.stop = "a"
    damaged.unlink()
    run("toy", "--jobs", 1, "--output", out)
    assert run("toy", "--jobs", 1, "--output", out).exit_code == 128 + signal.SIGTERM


def test_cells_that_fail_end_it_with_an_error_and_are_counted(toy, tmp_path):
    toy.fail = "search"
    result = run("toy", "--jobs", 1, "--seeds", 2, "--output", tmp_path / "out")
    assert result.exit_code != 0
    assert "search of b failed: KeyError: 'lr'; its log is " in result.output
    assert "1 of 6 cells failed, 2 that come after them did not run, 3 are done" in str(result.exception)
    assert isinstance(result.exception, ValueError)  # which is told without a traceback
    assert "3 cells" in run("toy", "--report", "--output", tmp_path / "out").output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_a_cell_in_this_process(toy, tmp_path, number):
    toy.run = lambda config, place: signal.raise_signal(number)
    result = run("toy", "--jobs", 1, "--output", tmp_path)
    assert result.exit_code == 128 + number
    assert "Stopped with 8 of 8 cells left; the same command goes on." in result.output


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("a=600", 600),
        ("a=-1", -1),
        ("a=1.5", 1.5),
        ("a=-.5", -0.5),
        ("a=true", True),
        ("a=False", False),
        ("a=0-10:00", "0-10:00"),
        ("a=nan", "nan"),
        ("a=1_000", "1_000"),
        ("a=²", "²"),
        ("a=b=c", "b=c"),
    ],
)
def test_parameters_of_jobs(word, value):
    name, found = _parameter(word)
    assert (name, found, type(found)) == ("a", value, type(value))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("layer",), "unknown study 'layer'. Did you mean 'layers'"),
        (
            ("layers", "--only", "lambda", "--only", "globl attention"),
            "'globl attention'. Did you mean 'global attention'",
        ),
        (("layers", "--data", "digts"), "unknown data 'digts'. Did you mean 'digits'"),
        (("layers", "--report"), "has no cells of the study layers"),
        (("layers", "--report", "--data", "digts"), "unknown data 'digts'. Did you mean 'digits'"),
        (("layers", "--report", "--seeds", 3), "--seeds means nothing together with --report"),
        (("layers", "--report", "--only", "lambda"), "--only means nothing together with --report"),
        (("layers", "--report", "--job", "timeout_min=9"), "--job means nothing together with --report"),
        (("memory", "--epochs", 3), "--epochs is 3, and the study memory trains on no images"),
        (("family", "--epochs", 3), "--epochs is 3, and the study family trains nothing without --data"),
        (("memory", "--data", "digits"), "--data is 'digits', and the study memory has no data"),
        (("memory", "--seeds", 3), "--seeds is 3, and the study memory trains nothing here; leave it out"),
        (("family", "--seeds", 3), "--seeds is 3, and the study family trains nothing here; give --data, or"),
        (("layers", "--data", ""), "data '' name nothing"),
        (("memory", "--job", "timeout_min=9"), "--job is 'timeout_min=9', for jobs of a cluster"),
        (("memory", "--cluster", "local", "--job", "long"), "--job is 'long'; give NAME=VALUE"),
    ],
)
def test_refuses(words, message, tmp_path):
    result = run(*words, "--output", tmp_path)
    assert result.exit_code != 0
    assert message in str(result.exception)
    assert not list(tmp_path.iterdir())


def test_the_help_names_every_study():
    text = run("--help").output
    assert all(name in text for name in studies.list_studies())
