"""What ``import lambdanets`` promises, though it loads PyTorch and timm only when they are wanted."""

import subprocess
import sys

import pytest

import lambdanets
from lambdanets._imports import load_after

BOTH = "import timm, torch; print(timm.is_model('lambda_resnet50'), torch.ops.lambdanets.grid_term)"


def in_new_process(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "first",
    [
        "import lambdanets",
        "import timm, lambdanets",
        "import lambdanets.positions",
        "from lambdanets.models import LambdaResNet",
        "import lambdanets, importlib.util as util; util.find_spec('torch'); util.find_spec('timm')",
    ],
)
def test_models_and_ops_are_registered_in_every_order(first):
    assert in_new_process(f"{first}; {BOTH}") == "True lambdanets.grid_term"


def test_names_load_what_they_need():
    code = "import lambdanets, sys; before = 'torch' in sys.modules; lambdanets.LambdaLayer(8, scope=3); print(before)"
    assert in_new_process(code) == "False"


def test_all_names_are_there():
    namespace = {}
    exec("from lambdanets import *", namespace)
    assert set(lambdanets.__all__) <= set(namespace)
    assert set(lambdanets.__all__) <= set(dir(lambdanets))
    assert lambdanets.positions.GridPositions is lambdanets.GridPositions


def test_a_name_that_does_not_exist():
    with pytest.raises(AttributeError, match="module 'lambdanets' has no attribute 'LambdaLayr'"):
        lambdanets.LambdaLayr  # noqa: B018


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Two small packages that note when they are loaded."""
    for name in ("watched_package", "loaded_after"):
        (tmp_path / f"{name}.py").write_text(f"import sys\nsys.loads.append({name!r})\n")
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "loads", [], raising=False)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))


@pytest.mark.parametrize("look", [False, True])
def test_load_after_waits_for_the_import_and_ends_its_watch(packages, look):
    from importlib import import_module, reload
    from importlib.util import find_spec

    before = list(sys.meta_path)
    load_after("watched_package", "loaded_after")
    if look:
        assert find_spec("watched_package").origin.endswith("watched_package.py")
        assert sys.loads == []
    module = import_module("watched_package")
    assert sys.loads == ["watched_package", "loaded_after"]
    assert sys.meta_path == before
    reload(module)
    assert sys.loads == ["watched_package", "loaded_after", "watched_package"]


def test_load_after_leaves_modules_that_are_in_the_middle_of_it(packages, monkeypatch):
    from importlib import import_module

    load_after("watched_package", "loaded_after", unless=["half_loaded"])
    monkeypatch.setitem(sys.modules, "half_loaded", object())
    import_module("watched_package")
    assert sys.loads == ["watched_package"]


def test_a_watched_package_need_not_be_installed(packages):
    load_after("not_installed_anywhere", "loaded_after")
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        import not_installed_anywhere  # noqa: F401
