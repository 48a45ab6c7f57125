"""Importing the package, and the direction in which its parts import each other."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lambdanets

ROOT = Path(__file__).parents[1]


def in_new_process(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_registers_models_and_ops():
    code = "import lambdanets, timm, torch; print(timm.is_model('lambda_resnet50'), torch.ops.lambdanets.grid_term)"
    assert in_new_process(code) == "True lambdanets.grid_term"


def test_import_changes_nobody_elses_import():
    code = "import sys; before = list(sys.meta_path); import lambdanets; print(sys.meta_path[: len(before)] == before)"
    assert in_new_process(code) == "True"


@pytest.mark.smoke
def test_all_names_are_there():
    namespace = {}
    exec("from lambdanets import *", namespace)
    assert set(lambdanets.__all__) <= set(namespace)
    assert lambdanets.positions.GridPositions is lambdanets.GridPositions


@pytest.mark.parametrize("words", [[], ["train"], ["adopt"], ["models"], ["bench"]])
def test_help_waits_for_no_large_import(words):
    """PyTorch and timm take seconds: the command parses before it imports."""
    code = (
        f"import sys; sys.argv = ['lambdanets', *{words!r}, '--help']\n"
        "from lambdanets_cli.app import app\n"
        "try: app()\n"
        "except SystemExit: pass\n"
        "print('loaded', sorted({'torch', 'timm', 'lambdanets'} & set(sys.modules)))"
    )
    shown = in_new_process(code)
    assert "Usage" in shown
    assert shown.endswith("loaded []")


def lint(folder):
    """Run import-linter on the packages in a folder with the contracts of pyproject.toml."""
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-cache"]
    here = {**os.environ, "PYTHONPATH": str(folder / "src")}
    done = subprocess.run(command, cwd=folder, env=here, capture_output=True, text=True, timeout=1800, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.smoke
def test_imports_point_one_way():
    code, report = lint(ROOT)
    assert code == 0, report


def test_an_import_that_points_up_is_found(tmp_path):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    with open(tmp_path / "src/lambdanets/layers/arguments.py", "a", encoding="utf-8") as file:
        file.write("\nfrom lambdanets.models import LambdaResNet  # noqa\n")
    code, report = lint(tmp_path)
    assert code != 0
    assert re.search(r"lambdanets\.layers\.arguments -> lambdanets\.models", report), report
