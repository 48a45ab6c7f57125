"""What CONTRIBUTING.md promises: a smoke set, the form of docstrings, examples that work in a copy of the package."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests"
FOLDERS = sorted({file.parent for file in TESTS.rglob("test_*.py")})
# What a reader adds by hand, by file: the line in front of which it goes, and what.
BY_HAND = {
    "src/lambdanets/kernels/grid/planner.py": [
        ("from lambdanets.kernels.grid import banded, query_first", "from lambdanets.kernels.grid import mine\n"),
        ("        query_first.KERNEL,\n", "        mine.KERNEL,\n"),
    ],
    "src/lambdanets/layers/registry.py": [
        ("from lambdanets.layers.scriptable import", "from lambdanets.layers.mine import Mine\n"),
        ('    "C": LayerEntry("convolution"),\n', None),
    ],
    "tests/helpers.py": [('    if kernel == "banded":\n', None)],
}
CHECKS = """
import lambdanets, timm, torch
from lambdanets.experiments.compare.study import DataFacts, Options
from lambdanets.experiments.studies import get_study, list_studies
from lambdanets.training import get_recipe

layer = timm.create_model("lambda_resnet50", stages="CCMM").layer4[0].conv2
assert layer.mix.groups == 8 and layer(torch.randn(1, 512, 4, 4)).shape == (1, 512, 2, 2)
assert get_recipe("my-recipe").model == "lambda_resnet50"
study = get_study("mine")
assert study.judge({}) == []
cells = study.cells(Options(quick=True, data=DataFacts("images", "f", 32, 3, 10, (450, 50, 100))))
models = {cell.config["row"]: cell.config["model_kwargs"] for cell in cells if "model_kwargs" in cell.config}
assert list(models) == ["4 heads", "2 heads"]
for arguments in models.values():
    timm.create_model("lambda_resnet_tiny", **arguments)
"""


@pytest.mark.smoke
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(ROOT)))
def test_the_smoke_set_has_tests_of_every_folder(folder):
    """Of the folder itself, or of those in it."""
    assert any("pytest.mark.smoke" in file.read_text(encoding="utf-8") for file in folder.rglob("test_*.py"))


# Of words in a single s these may open a docstring, as plural nouns, and any other with "of" behind it.
NOUNS = (
    "Arguments|Arrays|Batches|Bytes|Calls|Cells|Channels|Chunks|Configurations|Distances|Docstrings|Entries|Epochs"
    "|Examples|Facts|Faults|Files|Findings|Gradients|Graphs|Grids|Images|Influences|Kernels|Layers|Layouts|Losses|Means"
    "|Measurements|Models|Modules|Multiply-adds|Names|Networks|Operations|Optimizers|Options|Outputs|Pages|Pixels"
    "|Places|Points|Positions|Predicates|Processes|Programs|Properties|Queries|Recipes|Rows|Rules|Scores|Seconds"
    "|Sentences|Sequences|Settings|Shapes|Shards|Stages|Steps|Tables|Tensors|Texts|Tokens|Values|Weights|Zeros"
)
# With an article behind it such a word is a verb: "Names the operation".
ALLOWED = rf"(?:As|Its|This)\b|(?:{NOUNS})\b(?! (?:the|an?|each|every|all)\b)"
QUESTION = r"(?:What|How|Whether|Those|Which|Where)\b"
NOT_AN_OPENING = re.compile(rf"{QUESTION}|(?!{ALLOWED})[A-Z][a-z-]*(?<!s)s\b(?! of\b)")
MODULES = [file for name in ("src", "scripts") for file in sorted((ROOT / name).rglob("*.py"))]


def test_docstrings_open_with_an_imperative_or_a_noun():
    found = []
    for file in MODULES:
        name = str(file.relative_to(ROOT))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                opening = (ast.get_docstring(node) or "").partition("\n")[0]
                if NOT_AN_OPENING.match(opening):
                    found.append(f"{name}: {opening}")
    assert not found


def examples():
    """(the file that was named last before it, the code) of every example."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for found in re.finditer(r"^ *```python\n(.*?)```", text, re.DOTALL | re.MULTILINE):
        named = re.findall(r"`((?:src|tests)/[\w/]+\.py)`", text[: found.start()])
        yield named[-1], textwrap.dedent(found[1]).rstrip() + "\n"


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the package with the files and lines of all examples."""
    copy = tmp_path_factory.mktemp("copy")
    shutil.copy(ROOT / "pyproject.toml", copy)
    for name in ("src", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    parts = dict(examples())
    for name, code in parts.items():
        if name not in BY_HAND:
            assert not (copy / name).exists()
            (copy / name).write_text(code, encoding="utf-8")
    for name, changes in BY_HAND.items():
        text = (copy / name).read_text(encoding="utf-8")
        for before, added in changes:
            assert text.count(before) == 1
            text = text.replace(before, (textwrap.indent(parts[name], "    ") if added is None else added) + before)
        (copy / name).write_text(text, encoding="utf-8")
    # An editable installation finds its packages by a finder of its own, whatever the path says: it is taken out.
    finders = "from importlib.machinery import *\nimport sys\n"
    finders += "sys.meta_path[:] = [BuiltinImporter, FrozenImporter, PathFinder]\n"
    (copy / "src" / "sitecustomize.py").write_text(finders, encoding="utf-8")
    # What the command measures; it takes minutes.
    costs = copy / "src/lambdanets/kernels/grid/costs.json"
    constants = json.loads(costs.read_text(encoding="utf-8"))
    constants["devices"]["cpu"]["mine"] = constants["devices"]["cpu"]["banded"]
    costs.write_text(json.dumps(constants), encoding="utf-8")
    return copy


def run(copy, *words):
    here = {**os.environ, "PYTHONPATH": str(copy / "src")}
    command = [sys.executable, *words]
    done = subprocess.run(command, cwd=copy, env=here, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_examples_of_layer_recipe_and_study_work(copy):
    run(copy, "-c", CHECKS)


def test_the_example_of_a_kernel_passes_the_tests_of_every_kernel(copy):
    files = ["grid/test_grid_kernels.py", "grid/test_planner.py", "test_masks.py", "test_walk.py"]
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", "mine or constants"]
    out = run(copy, *words, *(f"tests/kernels/{file}" for file in files))
    assert int(re.search(r"(\d+) passed", out)[1]) > 80


def test_the_examples_of_recipe_and_study_pass_their_tests(copy):
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", "my-recipe or mine"]
    run(copy, *words, "tests/training/recipes", "tests/experiments/compare/test_trained.py")
