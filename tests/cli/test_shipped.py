"""Names of weights that come with the package, where a command takes a run."""

import json
from pathlib import Path

import pytest

from lambdanets.models.shipped import shipped_folder
from lambdanets.training import Run

NAME = "lambda_resnet_tiny.digits"


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def test_a_name_is_taken_and_its_folder_is_left_alone(run, tmp_path):
    folder = shipped_folder(NAME)
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    (sample,) = (folder / "samples").iterdir()
    code, output, error = run("predict", NAME, sample, "--json", "--top", 1)
    assert code == 0, error
    (prediction,) = json.loads(output)
    assert prediction["classes"][0]["class"] == sample.name[0]
    code, output, error = run("evaluate", NAME)
    assert code == 0, error
    expected = json.loads((folder / "result.json").read_text())["test"]["top1"]
    told = json.loads((tmp_path / "runs" / NAME / "evaluation.json").read_text())
    assert (told["run"], told["top1"]) == (NAME, expected)
    assert Run.open_trained(NAME).output == Path("runs") / NAME  # where an exported file goes too
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["predict", "lambda_resnet_tiny.digit", "x.png"], "Did you mean the weights 'lambda_resnet_tiny.digits'"),
        (["export", NAME, "--checkpoint", "last"], f"{NAME} comes with its best weights alone, not with 'last'"),
        (["train", "--resume", NAME], f"the run folder {NAME} does not exist"),
    ],
)
def test_what_is_wrong_is_said(run, words, message):
    code, _, error = run(*words)
    assert code == 2
    assert message in error
