"""Importing the package, and the direction in which its parts import each other."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lambdanets

ROOT = Path(__file__).parents[1]


def in_new_process(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_registers_models_and_ops_and_changes_nobody_elses_import():
    code = """
import sys, accelerate, timm, torch, torchvision
before = list(sys.meta_path)
import lambdanets
print(timm.is_model("lambda_resnet50"), torch.ops.lambdanets.grid_term, sys.meta_path == before)
"""
    assert in_new_process(code) == "True lambdanets.grid_term True"


@pytest.mark.smoke
def test_what_a_module_takes_from_another_is_in_its_all():
    """Where a module says what is for others."""
    trees = {}
    for file in sorted((ROOT / "src").rglob("*.py")):
        name = ".".join(file.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")
        trees[name] = ast.parse(file.read_text(encoding="utf-8"))
    public = {
        name: set(ast.literal_eval(node.value))
        for name, tree in trees.items()
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    }
    taken = {
        (name, node.module, alias.name)
        for name, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module in public
        for alias in node.names
        if f"{node.module}.{alias.name}" not in trees  # a module
    }
    assert len(taken) > 500
    assert not {each for each in taken if each[2] not in public[each[1]]}


@pytest.mark.smoke
def test_all_names_are_there():
    namespace = {}
    exec("from lambdanets import *", namespace)
    assert set(lambdanets.__all__) <= set(namespace)
    assert lambdanets.positions.GridPositions is lambdanets.GridPositions


def test_the_command_parses_before_it_imports():
    """PyTorch and timm take seconds, which neither help nor a refusal of the command's own waits for."""
    code = """
import sys
from lambdanets_cli import app as cli
from typer.main import get_command

commands = sorted(get_command(cli.app).commands)
refused = [
    ["tarin"],
    ["train", "--epoch", "3"],
    ["train", "--epochs", "many"],
    ["adopt"],
    ["adopt", "--from", "timm:x"],
    ["models", "--image-size", "wide"],
    ["kernels", "--shape", "8"],
    ["bench", "--device", "tpu"],
]
for words, expected in [
    (["--version"], 0),
    *((words, 0) for words in ([], *([name] for name in commands)) for words in [[*words, "--help"]]),
    *((words, 2) for words in refused),
]:
    sys.argv = ["lambdanets", *words]
    try:
        cli.main()
    except SystemExit as end:
        assert (end.code or 0) == expected, (words, end.code)
    large = {"torch", "timm", "numpy", "matplotlib", "lambdanets"} & set(sys.modules)
    assert not large, (words, large)
print("tried", len(commands))
"""
    assert int(in_new_process(code).split()[-1]) >= 8


@pytest.mark.parametrize("module", ["lambdanets", "lambdanets_cli"])
def test_python_m_is_the_command(module):
    command = [sys.executable, "-m", module, "tarin"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 2
    assert "Did you mean 'train'?" in done.stderr


def test_an_exported_file_needs_an_import_of_the_package_alone(tmp_path):
    """The ops are registered by it; without it ``torch.export.load`` does not know them."""
    program = torch.export.export(lambdanets.LambdaLayer(8, scope=3).eval(), (torch.zeros(1, 8, 4, 4),))
    torch.export.save(program, tmp_path / "layer.pt2")
    code = """
import sys, torch
try:
    torch.export.load(sys.argv[1])
except Exception as error:
    print(type(error).__name__, end=" ")
import lambdanets
print(torch.export.load(sys.argv[1]).module()(torch.ones(1, 8, 4, 4)).shape)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "layer.pt2")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"\w*Error torch.Size\(\[1, 8, 4, 4\]\)\n", done.stdout)


def lint(folder):
    """Run import-linter on the packages in a folder with the contracts of pyproject.toml.

    An editable installation finds its packages by a finder of its own, whatever the path says: it is taken out.
    """
    code = """
import sys
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder
sys.meta_path[:] = [BuiltinImporter, FrozenImporter, PathFinder]
from importlinter.cli import lint_imports_command
lint_imports_command()
"""
    command = [sys.executable, "-c", code, "--no-cache"]
    here = {**os.environ, "PYTHONPATH": str(folder / "src")}
    done = subprocess.run(command, cwd=folder, env=here, capture_output=True, text=True, timeout=1800, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.smoke
def test_imports_point_one_way():
    code, report = lint(ROOT)
    assert code == 0, report


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("layers.arguments", "models"),
        ("training.runs.lock", "training.engine.devices"),
        ("training.engine.state", "training.engine.loop"),  # a cycle within a package
    ],
)
def test_an_import_that_points_up_is_found(tmp_path, importer, imported):
    """Also one that is for annotations only."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    path = tmp_path / "src" / "lambdanets" / f"{importer.replace('.', '/')}.py"
    with open(path, "a", encoding="utf-8") as file:
        file.write(f"\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import lambdanets.{imported}\n")
    code, report = lint(tmp_path)
    assert code != 0
    assert re.search(rf"{importer.rpartition('.')[2]} -> \S*{imported.rpartition('.')[2]}\b", report), report


PRIVATE = re.compile(
    r"\btorch(\.\w+)*\._(?!_)|\b(_opoverload|_is_view|_current_level|_qkv_same_embed_dim|_reset_state)\b|\._(base|modules)\b"
)


@pytest.mark.smoke
def test_private_names_of_pytorch_stand_where_they_are_listed():
    package = ROOT / "src" / "lambdanets"
    files = {str(file.relative_to(package)): file.read_text(encoding="utf-8") for file in package.rglob("*.py")}
    interop = {"dry_run.py", "tree.py", "replace/recognise.py", "replace/stand_ins.py"}
    expected = {"kernels/autograd/modes.py", "training/engine/devices.py", *(f"interop/{name}" for name in interop)}
    assert {name for name, text in files.items() if PRIVATE.search(text)} == expected
