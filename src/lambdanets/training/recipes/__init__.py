"""The recipes that come with the package, one file each.

Every file opens with its command and the accuracy that was measured; ``RECIPE`` holds its choices.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from lambdanets.names import unknown_name
from lambdanets.training.recipes.recipe import Recipe


def list_recipes() -> list[str]:
    """The names of all recipes."""
    names = {module.name.replace("_", "-") for module in iter_modules(__path__)}
    return sorted(names - {"recipe"})  # the module of the class itself


def get_recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        ValueError: there is none; the message shows the nearest names.
    """
    if name not in list_recipes():
        raise unknown_name("recipe", name, list_recipes())
    return import_module(f"{__name__}.{name.replace('-', '_')}").RECIPE
