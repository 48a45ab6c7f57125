import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

from lambdanets.files import read_rows
from lambdanets.provenance import COLUMNS, environment, package_version, processor, source_commit

ROOT = Path(__file__).parents[1]
RESULTS, SOURCE = ROOT / "results", ROOT / "src" / "lambdanets" / "provenance.py"


@pytest.fixture
def clone(tmp_path):
    """A repository with one package in it, and the hash of its commit."""
    package = tmp_path / "clone" / "package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")

    def git(*words):
        identity = ["-c", "user.name=Nobody", "-c", "user.email=nobody@example.org"]
        command = ["git", *identity, "-C", str(package), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "first")
    source_commit.cache_clear()
    yield package, git("rev-parse", "--short", "HEAD")
    source_commit.cache_clear()


def test_a_clone_tells_its_commit(clone):
    package, commit = clone
    assert source_commit(package) == commit


def test_a_changed_clone_says_so(clone):
    package, commit = clone
    (package / "__init__.py").write_text("changed = True")
    assert source_commit(package) == f"{commit}+changes"


def test_changes_beside_the_package_do_not_count(clone):
    package, commit = clone
    (package.parent / "notes.txt").write_text("")
    assert source_commit(package) == commit


def test_a_package_installed_inside_of_another_repository_has_no_commit(clone):
    installed = clone[0].parent / "venv" / "package"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    assert source_commit(installed) == ""


def test_without_git_there_is_no_commit(clone, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert source_commit(clone[0]) == ""


def test_versions_and_the_processor_have_names():
    assert package_version("torch")[0].isdigit()
    assert package_version("no-such-package-anywhere") == "not installed"
    assert processor()


def test_a_result_names_machine_versions_and_date():
    found = environment()
    assert tuple(found) == COLUMNS
    assert (found["torch"], found["timm"]) == (torch.__version__.partition("+")[0], timm.__version__)
    assert found["threads"] == torch.get_num_threads()
    assert found["python"] == sys.version.split()[0]
    assert environment("commit", "processor") == {"commit": source_commit(), "processor": processor()}


@pytest.mark.parametrize("name", ["growth", "rates", "planner", "eager_path"])
def test_result_files_have_these_columns(name):
    (row, *_) = read_rows(RESULTS / f"{name}.csv")
    before = list(row).index("machine")
    assert list(row)[before:] == list(COLUMNS)


def test_versions_are_told_without_pytorch():
    code = "import sys, importlib.util as u; "
    code += f"spec = u.spec_from_file_location('p', {str(SOURCE)!r}); p = u.module_from_spec(spec); "
    code += "spec.loader.exec_module(p); p.environment('python', 'torch', 'machine', 'commit'); "
    code += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
