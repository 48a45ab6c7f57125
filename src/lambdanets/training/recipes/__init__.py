"""The recipes that come with the package, one file each.

Every file opens with its command, the hardware, the time and the result. ``RECIPE`` holds its choices; ``BY_MODEL``,
where there is one, holds what other models change.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from lambdanets.names import unknown_name
from lambdanets.training.recipes.recipe import Recipe

# Modules of this folder that are no recipes.
_OTHERS = ("files", "recipe")


def list_recipes() -> list[str]:
    """The names of all recipes."""
    return sorted(module.name.replace("_", "-") for module in iter_modules(__path__) if module.name not in _OTHERS)


def get_recipe(name: str, model: str | None = None) -> Recipe:
    """The recipe of that name.

    Args:
        name: as ``list_recipes`` has it.
        model: the model to train. Default: the recipe's own.

    Returns:
        The recipe, with the choices that it makes for this model.

    Raises:
        ValueError: there is none of that name; the message shows the nearest names.
    """
    if name not in list_recipes():
        raise unknown_name("recipe", name, list_recipes(), "A file is given with its ending: FILE.yaml or FILE.py.")
    module = import_module(f"{__name__}.{name.replace('-', '_')}")
    recipe: Recipe = module.RECIPE
    if model is None or model == recipe.model:
        return recipe
    return recipe.override(model=model, **getattr(module, "BY_MODEL", {}).get(model, {}))
