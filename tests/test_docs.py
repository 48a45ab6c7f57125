"""README, docs and docstrings: snippets run, tables are those of the result files, links lead somewhere."""

import doctest
import importlib
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from typer.main import get_command

import lambdanets
from lambdanets_cli.app import app

ROOT = Path(__file__).parents[1]
FIRST = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md")]
CARDS = (ROOT / "src" / "lambdanets" / "models" / "weights").glob("*/README.md")
PAGES = [*FIRST, *sorted((ROOT / "docs").rglob("*.md")), *sorted(CARDS)]
# Those of CONTRIBUTING.md are parts of files.
SNIPPETS = [
    pytest.param(code, id=f"{page.relative_to(ROOT)}-{number}")
    for page in PAGES
    if page.name != "CONTRIBUTING.md"
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_of_code_are_opened_and_closed(page):
    """A fence that is not on a line of its own would make code of the rest of the page."""
    fences = [line for line in page.read_text(encoding="utf-8").splitlines() if "```" in line]
    assert all(re.fullmatch(r" *```[\w-]*", fence) for fence in fences), fences
    assert all(fence.strip() == "```" for fence in fences[1::2]), fences
    assert len(fences) % 2 == 0


def test_commands_and_their_options_exist():
    known = get_command(app).commands
    texts = {name: command.help for name, command in known.items()}
    texts |= {str(page): page.read_text(encoding="utf-8") for page in [*PAGES, *(ROOT / "examples").glob("*.py")]}
    wrong, found = [], set()
    for place, text in texts.items():
        text = re.sub(r" *\\\n\s*", " ", text)  # commands of several lines
        lines = re.findall(r"^(?:# )?(?: *|.* && |nohup |.* -m )(lambdanets [a-z].*)", text, re.MULTILINE)
        for line in [*lines, *re.findall(r"`(lambdanets [a-z][^`]*)`", text)]:
            _, name, *words = shlex.split(re.split(r" [>|&]|[\[\]]", line)[0], comments=True)
            found.add(name)
            try:
                context = known[name].make_context(name, [], resilient_parsing=True)
                context.resilient_parsing = False
                known[name].make_parser(context).parse_args(words)
            except Exception as error:
                if type(error).__name__ != "BadOptionUsage":  # an option in a sentence, without its value
                    wrong.append(f"{place}: {line}: {error!r}")
    assert not wrong
    assert found == set(known)


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


DESCRIBED = sorted(
    {name for page in PAGES for name in re.findall(r"^::: ([\w.]+)$", page.read_text(encoding="utf-8"), re.MULTILINE)}
)


def test_every_public_name_is_on_a_page_of_the_api():
    described = [pkgutil.resolve_name(name) for name in DESCRIBED]
    for package in ("", ".explanation", ".interop", ".layers", ".models", ".training"):
        module = importlib.import_module(f"lambdanets{package}")
        names = set(module.__all__) - {"__version__"}
        assert not [name for name in names if getattr(module, name) not in described], module


GLOBALS = {**vars(lambdanets), **vars(lambdanets.interop), "lambdanets": lambdanets, "timm": timm, "torch": torch}
EXAMPLES = [
    pytest.param(example, id=example.name)
    for name in DESCRIBED
    for example in doctest.DocTestFinder(exclude_empty=True).find(pkgutil.resolve_name(name), name, globs=dict(GLOBALS))
    if example.examples
]


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_of_docstrings_run(example):
    report = []
    doctest.DocTestRunner(verbose=False).run(example, out=report.append)
    assert not report, "".join(report)


def test_one_version_everywhere():
    patterns = {"pyproject.toml": '^version = "(.+)"$', "CITATION.cff": "^version: (.+)$"}
    found = {file: re.findall(text, (ROOT / file).read_text(encoding="utf-8"), re.M) for file, text in patterns.items()}
    assert found == {file: [lambdanets.__version__] for file in patterns}
