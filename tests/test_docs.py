"""README and docs: snippets run, tables are those of the result files, links lead somewhere."""

import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lambdanets

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "examples" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SNIPPETS = [
    pytest.param(code, id=f"{page.relative_to(ROOT)}-{number}")
    for page in PAGES
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))
]


@pytest.mark.parametrize("code", SNIPPETS)
def test_snippets_run(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "snippet", "exec"), {})


def test_tables_are_those_of_the_result_files():
    command = [sys.executable, str(ROOT / "scripts" / "make_tables.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_local_links_lead_somewhere(page):
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", prose):
        assert (page.parent / target).exists(), target


def test_commands_of_the_readme_exist():
    from typer.main import get_command

    from lambdanets_cli.app import app

    known = get_command(app).commands
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    used = {words.split()[1] for words in re.findall(r"^(?:pip install \. && )?(lambdanets \w+)", text, re.MULTILINE)}
    assert {"train", "evaluate", "predict", "bench", "kernels"} <= used
    assert used <= set(known)


def test_tests_that_the_table_of_faults_names_exist():
    text = (ROOT / "docs" / "long-trainings.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ") and "tests/" in line]
    assert len(rows) > 20
    for row in rows:
        file, names = "", re.findall(r"`((?:tests/[\w/]+\.py)?(?:::\w+)+)`", row)
        assert len(names) == row.count("::test_")
        for name in names:
            file, function = name.split("::")[0] or file, name.split("::")[-1]
            assert f"def {function}(" in (ROOT / file).read_text(encoding="utf-8"), name


def test_every_public_name_is_on_a_page_of_the_api():
    pages = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "api").glob("*.md"))
    described = [pkgutil.resolve_name(name) for name in re.findall(r"^::: ([\w.]+)$", pages, re.MULTILINE)]
    for package in ("", ".explanation", ".interop", ".layers", ".models", ".training"):
        module = importlib.import_module(f"lambdanets{package}")
        names = set(module.__all__) - {"__version__"}
        assert not [name for name in names if getattr(module, name) not in described], module


def test_one_version_everywhere():
    patterns = {"pyproject.toml": '^version = "(.+)"$', "CITATION.cff": "^version: (.+)$"}
    found = {file: re.findall(text, (ROOT / file).read_text(encoding="utf-8"), re.M) for file, text in patterns.items()}
    assert found == {file: [lambdanets.__version__] for file in patterns}
