"""The model card of a run: what was trained on what, how well it does, and how it is used."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lambdanets.console import one_line
from lambdanets.markdown_text import as_code, as_text
from lambdanets.models.shipped import shipped_folder
from lambdanets.names import count
from lambdanets.training.data.spec import DataSpec
from lambdanets.training.engine.start import without_effect
from lambdanets.training.recipes import get_recipe, list_recipes
from lambdanets.training.runs.folder import Run
from lambdanets.training.runs.schema import read_finished

_CARD = """# {name}

{model} for {count} classes of {colours} images of {size}x{size} pixels: {classes}.

| | |
| --- | --- |
| test accuracy | {accuracy} |
| trained by | recipe {recipe}, {epochs}, seed {seed}, from {start} |
| command | {command} |
| versions | {versions} |
| data | {data} |
| licence of the data | {licence} |

```python
import timm, lambdanets

model = timm.create_model({address}, pretrained=True).eval()
model.pretrained_cfg["label_names"]  # the classes, in the order of the outputs
```

The model has seen nothing but these data: on other images its classes mean nothing.
"""
_VERSIONS = ("lambdanets", "commit", "torch", "timm", "accelerate")


def model_card(run: Run, name: str, address: str, data: str | None = None, licence: str | None = None) -> str:
    """The card in Markdown.

    Args:
        run: the run.
        name: the heading.
        address: the model's name for timm.
        data: the data set in words, in Markdown. Default: its name, without the folders above it.
        licence: of the data set, in Markdown. Default: that it is not stated.
    """
    result, recipe = read_finished(run.path), run.recipe
    found = run.config.get("versions", {})
    return _CARD.format(
        name=as_text(name),
        address=_literal(address),
        model=as_code(recipe.model),
        count=len(run.class_names),
        size=run.transform.image_size,
        colours="grey" if run.transform.channels == 1 else "colour",
        classes=", ".join(map(as_text, run.class_names)),
        accuracy=_accuracy(result),
        recipe=as_code(recipe.name),
        epochs=count(recipe.epochs, "epoch", "epochs"),
        seed=recipe.seed,
        start=as_text(run.config["model"].get("weights", "random weights")),
        command=_command(run),
        versions=", ".join(f"{key} {as_text(found[key])}" for key in _VERSIONS if found.get(key)),
        data=as_text(DataSpec.parse(run.data_spec).label) if data is None else data,
        licence="not stated" if licence is None else licence,
    )


def published_card(run: Run, name: str, address: str) -> str:
    """The card of a run under another name; that of weights of the package states their data and licence itself.

    Args:
        run: the run.
        name: the heading.
        address: the model's name for timm.
    """
    folder = shipped_folder(run.path.resolve().name)
    if folder is None or folder.resolve() != run.path.resolve():
        return model_card(run, name, address)
    text = (folder / "README.md").read_text(encoding="utf-8").replace(f"# {folder.name}\n", f"# {as_text(name)}\n", 1)
    return text.replace(f"create_model({_literal(folder.name)}", f"create_model({_literal(address)}", 1)


def _literal(text: str) -> str:
    """A text as Python writes it in double quotes, in one line."""
    return one_line(json.dumps(text, ensure_ascii=False))


def _command(run: Run) -> str:
    """The command of a training, with what its recipe does not say by itself; folders by their last part."""
    recipe = dataclasses.replace(run.recipe, data=_data(DataSpec.parse(run.data_spec)))
    if recipe.name not in list_recipes():
        return f"`lambdanets train` by a recipe of the user's, {as_text(recipe.name)}"
    ours = get_recipe(recipe.name, recipe.model)
    words, idle = ["lambdanets", "train", "--recipe", recipe.name], without_effect(recipe)
    if recipe.model != get_recipe(recipe.name).model:
        words += _option("model", recipe.model)
    for mine, own in ((recipe, ours), (recipe.augmentation, ours.augmentation)):
        for field in dataclasses.fields(mine):
            value = getattr(mine, field.name)
            if field.name not in ("name", "augmentation", *idle) and value != getattr(own, field.name):
                words += _option(field.name, value)
    return as_code(shlex.join(words))


def _data(spec: DataSpec) -> str:
    folder = f"{spec.folder}/"
    if spec.kind == "imagefolder":
        return folder
    return str(DataSpec(spec.kind, folder)) if spec.place and "/" in spec.kind else spec.kind


def _option(name: str, value: object) -> list[str]:
    """The words that set a field of a recipe."""
    option = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{option}" if value else f"--no-{option}"]
    if isinstance(value, (tuple, list)):
        return [f"--{option}", ",".join(map(str, value))]
    if isinstance(value, str):
        return [f"--{option}", Path(value).name if Path(value).is_absolute() else value]
    return [f"--{option}", "none" if value is None else json.dumps(value)]


def _accuracy(result: Mapping[str, Any] | None) -> str:
    if result is None:
        return "not measured: the training was not finished"
    test = result["test"]
    if test is None:
        return "not measured: the data have no test images"
    wrong = round((1 - test["top1"]) * test["images"])
    return f"{test['top1']:.2%} of {test['images']:,} images ({wrong:,} wrong)"
