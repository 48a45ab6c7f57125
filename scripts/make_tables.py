"""Fill tables and figures from the files in results/: ``python scripts/make_tables.py [--check]``.

In README.md and docs/ a table stands between ``<!-- table: NAME -->`` and ``<!-- end -->`` on lines of their own, a
figure in a sentence between ``<!-- figure: NAME -->`` and ``<!-- end -->``. In the docstring of a recipe it is the
paragraph that begins with "Measured". A table with a row that is marked as noisy is refused.
"""

from __future__ import annotations

import re
import sys

from result_tables import ROOT, bench, gpu, layer, models, studies, training

RECIPES = ROOT / "src" / "lambdanets" / "training" / "recipes"
TABLE = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
FIGURE = re.compile(r"(<!-- figure: ([\w.-]+) -->)[^<\n]*(<!-- end -->)")
MEASURED = re.compile(r"^Measured\b.*?\n(?=\n|\"\"\")", re.DOTALL | re.MULTILINE)

SUBJECTS = (bench, gpu, layer, models, studies, training)
TABLES = {name: make for subject in SUBJECTS for name, make in subject.TABLES.items()}
FIGURES = {name: make for subject in SUBJECTS for name, make in subject.FIGURES.items()}


def _table(name: str) -> str:
    return studies.study(name) if name.partition("-")[0] in studies.FOLDERS else TABLES[name]()


def filled(text: str) -> str:
    """The text of a page with every table and figure made anew."""
    text = TABLE.sub(lambda match: f"{match[1]}{_table(match[2])}\n{match[3]}", text)
    return FIGURE.sub(lambda match: f"{match[1]}{FIGURES[match[2]]()}{match[3]}", text)


def filled_recipe(text: str) -> str:
    """The text of a recipe with its measurement made anew; its command is the last indented line of the docstring."""
    lines = [line for line in text.split('"""')[1].split("\n") if line.startswith("    ")]
    paragraph = training.measured(lines[-1].partition(" #")[0].strip())
    return text if paragraph is None else MEASURED.sub(lambda _: paragraph, text, count=1)


def main(check: bool) -> int:
    """Fill the tables, or say which files are not up to date."""
    pages = [(path, filled) for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))]
    recipes = [(path, filled_recipe) for path in sorted(RECIPES.glob("*.py")) if "RECIPE = " in path.read_text("utf-8")]
    stale = []
    for path, fill in (*pages, *recipes):
        text = path.read_text(encoding="utf-8")
        try:
            new = fill(text)
        except ValueError as error:
            print(error)
            return 1
        if new != text:
            stale.append(path.relative_to(ROOT))
            if not check:
                path.write_text(new, encoding="utf-8")
    for path in stale:
        print(f"{path}: {'not up to date, run python scripts/make_tables.py' if check else 'filled'}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
