"""The recipe that a command line means: the one it names, with what its other words change."""

from __future__ import annotations

from collections.abc import Mapping

from lambdanets.training.data import recipe_for_data
from lambdanets.training.engine.start import without_effect
from lambdanets.training.engine.weights import open_source
from lambdanets.training.recipes.files import load_recipe, parse_choices
from lambdanets.training.recipes.recipe import Recipe
from lambdanets.training.rules import refuse


def plan_recipe(recipe: str | None, words: Mapping[str, str | bool]) -> Recipe:
    """The recipe with the given choices.

    Weights to start from bring their model with its arguments, unless the model is chosen too.

    Args:
        recipe: a name or a file, see ``lambdanets.training.recipes.files.load_recipe``; None for the recipe that suits
            the data.
        words: a word for each field that is chosen, those of the augmentation by their own names.

    Raises:
        FileNotFoundError: a file, the data or the weights are missing.
        ValueError: a name or a value does not do, or a choice changes nothing without another one.
    """
    choices = parse_choices(words)
    if choices.get("init_from") is not None:
        source = open_source(choices["init_from"])
        if source.model is not None and choices.get("model", source.model) == source.model:
            choices = {"model": source.model, "model_kwargs": dict(source.kwargs or {}), **choices}
    model = choices.get("model")
    chosen = load_recipe(recipe or recipe_for_data(choices.get("data") or "digits"), model)
    planned = chosen.replace(choices)
    needs = without_effect(planned)
    for name in words:
        if name in needs:
            raise refuse(choices[name], name, f"it changes nothing without {needs[name]}; give both, or leave it out")
    return planned
