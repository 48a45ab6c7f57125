"""Run the examples and write them as notebooks with their outputs beside them.

pip install -e '.[examples]'
python scripts/make_notebooks.py                 # all of examples/*.py
python scripts/make_notebooks.py graphs          # one of them
"""

import sys
import time
from pathlib import Path

import jupytext
from nbconvert.preprocessors import ExecutePreprocessor

EXAMPLES = Path(__file__).parents[1] / "examples"


def tidy(outputs: list) -> list:
    """Return what a cell printed as one piece and without warnings, whose text names folders of this machine."""
    kept: list = []
    for output in outputs:
        if output.get("name") == "stderr":
            continue
        if kept and output.get("name") == "stdout" == kept[-1].get("name"):
            kept[-1]["text"] += output["text"]
        else:
            kept.append(output)
    return kept


def make(source: Path) -> None:
    """Run one example in a new kernel and write its notebook."""
    notebook = jupytext.read(source)
    start = time.perf_counter()
    ExecutePreprocessor(timeout=None).preprocess(notebook, {"metadata": {"path": str(source.parent)}})
    for number, cell in enumerate(notebook.cells):
        cell["id"] = str(number)  # the same in every run, as random ones are not
        cell.metadata.pop("execution", None)  # when it ran
        if cell.cell_type == "code":
            cell.outputs = tidy(cell.outputs)
    # What the file itself does not say: versions of the kernel, and how jupytext reads it.
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"], "language_info": {"name": "python"}}
    jupytext.write(notebook, source.with_suffix(".ipynb"))
    print(f"{source.name}: {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    for name in sys.argv[1:] or sorted(file.stem for file in EXAMPLES.glob("*.py")):
        make(EXAMPLES / f"{name}.py")
