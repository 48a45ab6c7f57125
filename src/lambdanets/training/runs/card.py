"""The model card of a run: what was trained on what, how well it does, and how it is used."""

from __future__ import annotations

from lambdanets.files import read_json
from lambdanets.training.runs.folder import Run

_CARD = """# {name}

`{model}` for {count} classes of {colours} images of {size}x{size} pixels: {classes}.

| | |
| --- | --- |
| test accuracy | {accuracy} |
| trained by | recipe `{recipe}`, {epochs} epochs, seed {seed}, from {start} |
| versions | {versions} |
| data | {data} |
| licence of the data | {licence} |

```python
import timm, lambdanets

model = timm.create_model("{address}", pretrained=True).eval()
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
        data: the data set in words. Default: its specification, without folders.
        licence: of the data set. Default: that it is not stated.
    """
    file = run.path / "result.json"
    test, recipe = read_json(file).get("test") if file.is_file() else None, run.recipe
    found = run.config.get("versions", {})
    return _CARD.format(
        name=name,
        address=address,
        model=recipe.model,
        count=len(run.class_names),
        size=run.transform.image_size,
        colours="grey" if run.transform.channels == 1 else "colour",
        classes=", ".join(run.class_names),
        accuracy=_accuracy(test) if test else "not measured: the training was not finished",
        recipe=recipe.name,
        epochs=recipe.epochs,
        seed=recipe.seed,
        start=run.config["model"].get("weights", "random weights"),
        versions=", ".join(f"{key} {found[key]}" for key in _VERSIONS if found.get(key)),
        data=run.data_spec.partition(":")[0] if data is None else data,
        licence="not stated" if licence is None else licence,
    )


def _accuracy(test: dict) -> str:
    wrong = round((1 - test["top1"]) * test["images"])
    return f"{test['top1']:.2%} of {test['images']:,} images ({wrong:,} wrong)"
