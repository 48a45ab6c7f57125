"""``lambdanets env`` as a user types it."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from lambdanets.kernels.grid.compiled import binding
from lambdanets.kernels.grid.planner import GRID_KERNELS
from lambdanets_cli.app import app

pytestmark = pytest.mark.smoke


def run(*words):
    return CliRunner().invoke(app, words, env={"COLUMNS": "200"}, catch_exceptions=False)


def test_env_names_versions_devices_kernels_and_folders(monkeypatch):
    monkeypatch.setenv("LAMBDANETS_SOME", "[b]x")
    monkeypatch.setenv("HF_TOKEN", "secret word")
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    output = run("env").output
    assert "secret word" not in output
    caches = ("costs.json", "hub", "torchinductor", str(Path(".triton/cache")))
    for text in (torch.__version__, "timm", "LAMBDANETS_SOME", "[b]x", *caches, *GRID_KERNELS):
        assert text in output
    if not torch.cuda.is_available():
        assert "query_first_triton               absent: there is no CUDA device" in output


@pytest.mark.skipif(binding.absence() is not None, reason="the compiled kernels are absent")
def test_env_names_the_library_of_compiled_kernels():
    told = json.loads(run("env", "--json").output)["kernels"]
    named = {name for name, text in told.items() if text == f"present, {binding.library().name}"}
    assert named == {"query_first_compiled", "spectral_compiled"}


def test_env_says_why_a_kernel_is_absent(monkeypatch):
    monkeypatch.setattr(binding, "absence", lambda: "nobody built it")
    told = json.loads(run("env", "--json").output)
    assert told["kernels"]["query_first_compiled"] == "absent: nobody built it"
    assert {told["kernels"][name] for name in ("query_first", "banded", "spectral")} == {"present"}
    assert set(told) == {"lambdanets", "versions", "devices", "kernels", "folders", "variables"}
