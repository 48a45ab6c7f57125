"""The examples, each in a reduced form: it runs to its end and shows a figure."""

import ast
import importlib.util
import json
import logging
import re
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
TAG = '# %% tags=["parameters"]\n'

# Values of each example's parameters, and the packages that it needs beyond those of the tests.
REDUCED = {
    "lambda_layer": ({"largest_side": 16, "repeats": 1}, []),
    "fine_tune": ({"image_size": 32, "steps": 2, "batch_size": 8}, []),
    "segmentation": ({"steps": 2, "crop": 32, "batch_size": 2}, ["stardist"]),
    "sequences": ({"steps": 2, "every": 50}, ["aeon"]),
    "graphs": ({"steps": 2, "parts": 2}, ["grakel"]),
    "other_weights": ({"steps": 2, "tested": 32, "repeats": 1}, []),
}


def reduced(source, values):
    """The code of an example with other values in its cell of parameters, whose names have to be the same."""
    before, found, rest = source.partition(TAG)
    assert found, "no cell tagged parameters"
    cell, mark, after = rest.partition("\n# %%")
    names = {target.id for line in ast.parse(cell).body for target in line.targets}
    assert set(values) <= names, f"no parameters {set(values) - names}"
    return before + found + cell + "".join(f"\n{name} = {value!r}" for name, value in values.items()) + mark + after


@pytest.mark.parametrize("name", REDUCED)
def test_examples_run_and_show_a_figure(name, tmp_path, monkeypatch):
    values, packages = REDUCED[name]
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"its data come with {package}: pip install -e '.[examples]'")
    shown = []
    plt.switch_backend("agg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    # PyTorch logs every step of a trace for whoever listens, as pytest does: that takes longer than the tracing.
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "disabled", True)
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.gcf()))
    code = reduced((EXAMPLES / f"{name}.py").read_text(encoding="utf-8"), values)
    exec(compile(code, f"{name}.py", "exec"), {"__name__": "__main__"})
    assert len(shown) == 1
    assert all(panel.has_data() for panel in shown[0].axes)
    plt.close("all")


@pytest.mark.smoke
def test_every_example_is_listed_and_has_its_notebook():
    assert {file.stem for file in EXAMPLES.glob("*.py")} == set(REDUCED)
    page = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"\]\((\w+)\.ipynb\)", page) == list(REDUCED)


@pytest.mark.parametrize("name", REDUCED)
def test_notebooks_are_those_of_the_files_and_hold_outputs(name):
    """Made by scripts/make_notebooks.py after the last change of the example."""
    cells = re.split(r"^# %%.*\n", (EXAMPLES / f"{name}.py").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    notebook = json.loads((EXAMPLES / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    assert len(cells) == len(notebook)
    for written, cell in zip(cells, notebook, strict=True):
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            written = re.sub(r"^# ?", "", written, flags=re.MULTILINE)
        assert text.strip() == written.strip()
    outputs = [output for cell in notebook if cell["cell_type"] == "code" for output in cell["outputs"]]
    assert "image/png" in outputs[-1]["data"], "it does not end in a figure"
    assert all(output["output_type"] in ("stream", "display_data") for output in outputs)
    texts = ["".join(output["text"]) for output in outputs if output["output_type"] == "stream"]
    assert not re.findall(r"(?i).*(?:warning|/tmp/|/home/|/root/).*", "".join(texts))
