"""The options of ``lambdanets train`` that set a recipe's fields: one for each field, in the words of its class.

The fields are read from the source of ``lambdanets.training.recipes.recipe``, which is not imported: it stands above
PyTorch, and the help does not wait for that.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from lambdanets_cli.options import with_parameters

__all__ = ["RecipeField", "chosen", "recipe_fields", "recipe_names", "with_recipe_options"]

_FOLDER = Path(__file__).parents[1] / "lambdanets" / "training" / "recipes"
# The classes with the fields; the second is a field of the first.
_CLASSES = ("Recipe", "Augmentation")
# Fields that no option sets: the recipe's name, and the augmentation, whose own fields have options.
_WITHOUT = ("name", "augmentation")
_METAVARS = {
    "str": "TEXT",
    "int": "INTEGER",
    "float": "NUMBER",
    "tuple[float, float]": "LOW,HIGH",
    "Mapping[str, Any]": "YAML",
}
_NUMBERS: dict[str, tuple[Callable[[str], float], str]] = {"int": (int, "an integer"), "float": (float, "a number")}


@dataclass(frozen=True)
class RecipeField:
    """A field of a recipe.

    Attributes:
        name: its name.
        owner: the name of its class.
        kind: its annotation, as written.
        words: what the class's docstring says about it.
    """

    name: str
    owner: str
    kind: str
    words: str

    @property
    def option(self) -> str:
        """The option that sets it."""
        return "--" + self.name.replace("_", "-")


def recipe_names() -> list[str]:
    """The names of the recipes that come with the package: of the files that make a ``RECIPE``."""
    files = [path for path in _FOLDER.glob("*.py") if "\nRECIPE = " in path.read_text(encoding="utf-8")]
    return sorted(path.stem.replace("_", "-") for path in files)


def recipe_fields() -> list[RecipeField]:
    """The fields that options set, in the order of the classes."""
    tree = ast.parse((_FOLDER / "recipe.py").read_text(encoding="utf-8"))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    found = []
    for name in _CLASSES:
        words = _attributes(ast.get_docstring(classes[name]) or "")
        for node in classes[name].body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id not in _WITHOUT:
                found.append(RecipeField(node.target.id, name, ast.unparse(node.annotation), words[node.target.id]))
    return found


def _attributes(docstring: str) -> dict[str, str]:
    """The entries of a docstring's section "Attributes"."""
    section = docstring.partition("Attributes:\n")[2].partition("\n\n")[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def _help(words: str) -> str:
    """The words for a terminal: without the marks of code, None as it is typed, brackets not read as markup."""
    plain = re.sub(r'``"([^"`]*)"``', r"\1", words).replace("``", "").replace("[", "\\[")
    plain = re.sub(r"\bNone\b", "none", plain)
    # A value keeps its case.
    return plain if words.startswith("`") else plain[0].upper() + plain[1:]


def _parameter(field: RecipeField) -> inspect.Parameter:
    kind, _, optional = field.kind.partition(" | ")
    if kind == "bool":
        both = f"{field.option}/--no-{field.option[2:]}"
        option = typer.Option(both, help=_help(field.words), show_default=False, rich_help_panel="Flags of the recipe")
        annotation: Any = Annotated[bool | None, option]
    else:
        metavar = _METAVARS[kind] + ("|none" if optional else "")
        option = typer.Option(field.option, metavar=metavar, help=_help(field.words), rich_help_panel=field.owner)
        annotation = Annotated[str | None, option]
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def with_recipe_options(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for each field of a recipe; it gets them as keywords, None where one was not given."""
    signature = inspect.signature(function, eval_str=True)
    own = [parameter for parameter in signature.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
    return with_parameters(function, [*own, *map(_parameter, recipe_fields())])


def chosen(options: dict[str, str | bool | None]) -> dict[str, str | bool]:
    """The options that were given.

    Raises:
        ValueError: a word is no number where one is needed; this is found without importing PyTorch.
    """
    given = {name: value for name, value in options.items() if value is not None}
    for field in recipe_fields():
        word = given.get(field.name)
        kind, _, optional = field.kind.partition(" | ")
        if isinstance(word, str) and kind in _NUMBERS and not (optional and word.lower() == "none"):
            read, remedy = _NUMBERS[kind]
            try:
                read(word)
            except ValueError:
                raise ValueError(f"{field.name} is {word!r}; use {remedy}{', or none' if optional else ''}") from None
    return given
