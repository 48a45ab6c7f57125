"""The counts behind the tables of docs/models.md."""

import csv
from pathlib import Path

import timm
import torch

from helpers import load_script
from lambdanets.experiments.bench.measure import saved_bytes

RESULTS = Path(__file__).parents[1] / "results" / "models.csv"
collect_models = load_script("collect_models")


def test_rows_are_those_of_the_result_file(monkeypatch):
    """A few of them, so that a change of the models or of the counting shows."""
    monkeypatch.setattr(timm, "list_models", lambda **kwargs: ["lambda_resnet101", "lambda_resnet50"])
    monkeypatch.setattr(collect_models, "ABLATION", {(8, 8, 4): {"params": 15.3}})
    monkeypatch.setattr(collect_models, "PLACEMENTS", {"CLLL": {"params": 15.1}})
    monkeypatch.setattr(collect_models, "KEPT", {})
    rows = collect_models.run()
    assert [row["model"] for row in rows] == ["lambda_resnet50", "lambda_resnet101", "k=8 h=8 u=4", "CLLL"]
    with open(RESULTS, encoding="utf-8", newline="") as file:
        kept = {(row["table"], row["model"]): row for row in csv.DictReader(file)}
    for row in rows:
        counted = {key: str(value) for key, value in row.items() if key not in ("timm", "lambdanets", "commit")}
        expected = kept[row["table"], row["model"]]
        assert counted == {key: expected[key] for key in counted}


def test_lambda_layers_keep_no_more_than_convolutions():
    """In the result file, and measured in a small network."""
    with open(RESULTS, encoding="utf-8", newline="") as file:
        kept = {row["model"]: int(row["kept_bytes"]) for row in csv.DictReader(file) if row["table"] == "kept"}
    assert list(kept) == list(collect_models.KEPT)
    assert kept["lambda_resnet50_llll"] <= kept["resnet50"]
    x = torch.randn(2, 3, 64, 64)
    convolutions, lambdas = (
        saved_bytes(timm.create_model("lambda_resnet50_llll", stages=stages, layers=(1, 1, 1, 1)), x)
        for stages in ("CCCC", "LLLL")
    )
    assert lambdas <= convolutions
