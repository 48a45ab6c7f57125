"""``lambdanets models`` as a user types it."""

import csv
import json

import pytest
import timm
from typer.testing import CliRunner

from lambdanets_cli.app import app

FAMILY = timm.list_models(module="lambda_resnet")


def run(*words, columns=80):
    return CliRunner().invoke(app, ["models", *words], env={"COLUMNS": str(columns)}, catch_exceptions=True)


def test_the_family_with_its_costs(tmp_path, monkeypatch):
    # What makes the columns wide and the order matter; the deeper ones take seconds.
    few = [name for name in FAMILY if name.startswith(("lambda_resnet50", "lambda_resnet_tiny"))]
    monkeypatch.setattr(timm, "list_models", lambda **kwargs: few)
    file = tmp_path / "models.csv"
    result = run("--csv", str(file), "--image-size", "64x32")
    assert result.exit_code == 0, result.output
    assert all(name in result.output for name in few)
    assert "…" not in result.output
    with open(file, encoding="utf-8") as text:
        rows = {row["name"]: row for row in csv.DictReader(text)}
    assert set(rows) == set(few)
    assert len(few) == 4
    assert rows["lambda_resnet50_llll"]["parameters"] == "14995592"
    assert {row["image_size"] for row in rows.values()} == {"64x32"}


def test_one_models_stages():
    result = run("lambda_resnet50")
    assert result.exit_code == 0, result.output
    assert "lambda_resnet50, CCLL, 160x160" in result.output
    lines = {line.split()[0]: line.split()[1:] for line in result.output.splitlines() if line.strip()}
    assert lines["layer3"][:3] == ["6", "L", "1024x10x10"]
    assert lines["all"][0] == "16.22"


def test_a_placement_within_a_stage():
    assert "12 C, 11 E" in run("lambda_resnet101", "--stages", "C-C-CE-L", "--image-size", "64").output
    result = run("lambda_resnet50", "--stages", "C-C-CL-L", "--image-size", "64")
    assert "lambda_resnet50, C-C-CL-L, 64x64" in result.output
    assert "CLCLCL" in result.output


def test_json_adds_up():
    cost = json.loads(run("lambda_resnet_tiny", "--json").output)
    assert cost["stages"] == "CLLL"
    for count in ("parameters", "multiply_adds", "activations"):
        assert cost[count] == sum(part[count] for part in cost["parts"])


def test_padding_is_counted_on_demand():
    plain, padded = (
        json.loads(run("lambda_resnet_tiny", "--json", *flag).output) for flag in ([], ["--count-padding"])
    )
    assert padded["multiply_adds"] > plain["multiply_adds"]
    assert padded["parts"][1] == plain["parts"][1]  # the convolution stage


def test_other_models_of_timm():
    result = run("resnet18", "--image-size", "64")
    assert result.exit_code == 0, result.output
    assert "layer4" in result.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lambda_resnet5"], "unknown model 'lambda_resnet5'. Did you mean 'lambda_resnet50'"),
        (["--image-size", "0"], "--image-size must be SIDE or HEIGHTxWIDTH.*got '0'"),
        (["--image-size", "3x4x5"], "--image-size must be SIDE or HEIGHTxWIDTH.*got '3x4x5'"),
        (["--stages", "CCLL"], "--stages is for one model, got 'CCLL' without NAME"),
        (["lambda_resnet50", "--stages", "CCCX"], "--image-size must be given"),
        (["resnet18", "--stages", "CCLL"], "--stages is for LambdaResNets, and resnet18 is none"),
        (["lambda_resnet_tiny", "--stages", "CQLL"], "stages must be one letter a stage.*got 'CQLL'"),
        (["--csv", "nofolder/x.csv"], "--csv nofolder/x.csv is in nofolder, which is no folder; make it first"),
        (["--csv", "."], "--csv . is a folder; name a file in it"),
        (["inception_v3", "--image-size", "8"], "inception_v3 does not take images of 8x8"),
    ],
)
def test_refuses(words, message):
    result = run(*words)
    with pytest.raises(ValueError, match=message):
        raise result.exception
