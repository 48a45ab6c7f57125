"""What is said about the planner's constants."""

import json

import pytest
import torch

from lambdanets.experiments.bench import constants
from lambdanets.kernels.grid import costs

COSTS = {"query_first": {"forward": [1, 1, 1], "backward": [1, 1, 1]}}


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """The cache folder's file, on a processor called Mine."""
    monkeypatch.setattr(constants, "processor", lambda: "Mine")
    monkeypatch.setattr(costs, "cache_file", lambda: tmp_path / "costs.json")
    monkeypatch.setattr(constants.torch, "get_num_threads", lambda: 2)
    return tmp_path / "costs.json"


@pytest.mark.parametrize(("machine", "where"), [("Mine", "a processor of this name"), ("Theirs", "another processor")])
def test_constants_of_the_package(cache, monkeypatch, machine, where):
    package = {"measured_on": {"machine": machine, "threads": 2}, "devices": {"cpu": COSTS}}
    monkeypatch.setattr(costs, "shipped", lambda: package)
    assert constants.where_from("cpu") == f"Constants: of the package, measured on {where} ({machine}, 2 threads)."


@pytest.mark.parametrize(("machine", "where"), [("Mine", "this processor"), ("Theirs", "another processor")])
def test_calibrated_constants(cache, machine, where):
    cache.write_text(json.dumps({"measured_on": {"machine": machine, "threads": 8}, "devices": {"cpu": COSTS}}))
    other = "The times are of that number of threads, and this process has 2."
    assert constants.where_from("cpu") == f"Constants: calibrated on {where} ({machine}, 8 threads). {other}"


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"devices": []}', '{"devices": {"cpu": {"query_first": {}}}}'])
def test_a_damaged_calibration_counts_as_none(cache, content):
    cache.write_text(content)
    assert "of the package, measured on" in constants.where_from("cpu")


def test_a_device_that_nobody_has_measured(cache):
    assert "cuda" not in costs.shipped()["devices"]
    assert constants.where_from("cuda").startswith("Constants: none were measured on cuda.")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there():
    assert constants.device_name("cuda") == "cuda, which this machine does not have"
