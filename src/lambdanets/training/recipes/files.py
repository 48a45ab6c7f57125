"""Recipes from outside of the package: from a YAML file, a Python file, the words of a command line."""

from __future__ import annotations

import dataclasses
import re
import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lambdanets.files import read_text
from lambdanets.training.recipes import get_recipe
from lambdanets.training.recipes.recipe import Augmentation, Recipe
from lambdanets.training.rules import short

_YAML = (".yaml", ".yml")
_BYTES = 1024**2


class _Loader(yaml.SafeLoader):
    """YAML's plain values alone, each key once, without references; 1e-3 is a number, as in YAML 1.2."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.composer.ComposerError(None, None, "a reference (*) is not taken", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    what = f"the key {key.value!r} occurs twice"
                    raise yaml.constructor.ConstructorError(None, None, what, key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """YAML writer of what ``_Loader`` reads: a text that looks like 1e-3 in quotes."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+"), list("-+.0123456789")
    )


def load_recipe(word: str, model: str | None = None) -> Recipe:
    """The recipe that a word after ``--recipe`` means: a name, a YAML file, or a Python file with a ``RECIPE``.

    Args:
        word: the name of a recipe of the package, or a path that ends with ``.yaml``, ``.yml`` or ``.py``. A Python
            file is the user's own program and is run.
        model: the model to train, for recipes of the package that make choices by the model.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: there is no such name, or the file holds no recipe; the message names what is wrong.
    """
    path = Path(word).expanduser()
    if path.suffix.lower() in _YAML:
        return read_recipe(path)
    if path.suffix.lower() == ".py":
        return _run(path)
    return get_recipe(word, model)


def read_recipe(path: Path) -> Recipe:
    """The recipe in a YAML file. ``model`` must be there; what else is not there has the class's default.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no YAML of plain values, or a field is unknown or its value does not do.
    """
    fields = _parse(read_text(path, _BYTES), str(path))
    if not isinstance(fields, Mapping):
        raise ValueError(
            f"{path} holds {short(fields)}; a recipe has names with values, as `--print-recipe` prints them"
        )
    try:
        return Recipe.from_dict({"name": path.stem, "data": None, **fields})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def write_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, as ``read_recipe`` reads it."""
    return yaml.dump(recipe.to_dict(), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _parse(text: str, name: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        what = " ".join(str(error).split()) or "it is nested too deeply"
        raise ValueError(f"{name} is no YAML of plain values: {what}") from error


def _run(path: Path) -> Recipe:
    if not path.is_file():
        raise FileNotFoundError(f"the recipe {path} does not exist")
    if any((folder / "last.safetensors").exists() for folder in path.resolve().parents):
        raise ValueError(
            f"the recipe {path} is a program in a run folder, which is not run; copy it out if you trust it"
        )
    found = runpy.run_path(str(path)).get("RECIPE")
    if not isinstance(found, Recipe):
        raise ValueError(f"{path} must set RECIPE to a lambdanets.training.Recipe, and RECIPE is {short(found)}")
    return found


_KINDS = {field.name: str(field.type) for kind in (Augmentation, Recipe) for field in dataclasses.fields(kind)}


def parse_choices(words: Mapping[str, str | bool]) -> dict[str, Any]:
    """Values of recipe fields from words of a command line; what does not read is left for the fields' own checks.

    Args:
        words: a word for each field; ``"none"`` means None where a field may be None. Flags are True or False.
    """
    return {name: value if isinstance(value, bool) else _value(name, value) for name, value in words.items()}


def _value(name: str, word: str) -> Any:
    kind, _, optional = _KINDS[name].partition(" | ")
    if optional and word.lower() == "none":
        return None
    if kind.startswith("Mapping"):
        return _parse(word, name)
    try:
        if kind == "int":
            return int(word)
        if kind == "float":
            return float(word)
        if kind.startswith("tuple"):
            return tuple(map(float, word.split(",")))
    except ValueError:
        pass
    return word
