"""Makes weights that come with the package of a finished run: ``python scripts/ship_weights.py RUN NAME``.

NAME is MODEL.DATA, as lambda_resnet_tiny.digits. The model card is written of what the run says; the licence of the
data is the caller's to state.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from lambdanets.files import read_json, write_json, write_text
from lambdanets.models.shipped import FOLDER
from lambdanets.training import Run

MAX_BYTES = 2_000_000
CARD = """# {name}

{model} for {count} classes of images of {size}x{size} pixels in {colours}: {classes}.

| | |
| --- | --- |
| test accuracy | {accuracy:.2%} of {images:,} images ({wrong} wrong) |
| trained by | `{command}`, recipe `{recipe}`, {epochs} epochs, seed {seed} |
| versions | {versions} |
| data | {data} |
| licence of the data | {licence} |

```python
import timm, lambdanets

model = timm.create_model("{name}", pretrained=True).eval()
model.pretrained_cfg["label_names"]  # the classes, in the order of the outputs
```

```bash
lambdanets predict {name} IMAGE
lambdanets evaluate {name}
lambdanets explain {name}
```

{intended}
"""
INTENDED = (
    "To try the library with, and to start from on images of this kind. The model has seen nothing but its small data "
    "set: on other images its classes mean nothing."
)


def card(run: Run, name: str, data: str, licence: str) -> str:
    """The model card of a run, in Markdown."""
    result, recipe = read_json(run.path / "result.json"), run.recipe
    test = result["test"]
    command = "lambdanets train" if recipe.data == "digits" else f"lambdanets train --recipe {recipe.name}"
    kept = ("lambdanets", "commit", "torch", "timm", "accelerate")
    return CARD.format(
        name=name,
        model=recipe.model,
        count=len(run.class_names),
        size=run.transform.image_size,
        colours="grey" if run.transform.channels == 1 else "colour",
        classes=", ".join(run.class_names),
        accuracy=test["top1"],
        images=test["images"],
        wrong=round((1 - test["top1"]) * test["images"]),
        command=command if recipe.seed == 0 else f"{command} --seed {recipe.seed}",
        recipe=recipe.name,
        epochs=recipe.epochs,
        seed=recipe.seed,
        versions=", ".join(f"{key} {run.config['versions'][key]}" for key in kept if run.config["versions"].get(key)),
        data=data,
        licence=licence,
        intended=INTENDED,
    )


def main() -> None:
    """Copy what belongs to the weights and write the card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("name", help="MODEL.DATA")
    parser.add_argument("--data", required=True, help="the data set, in words")
    parser.add_argument("--licence", required=True, help="of the data set")
    given = parser.parse_args()
    run = Run.open(given.run)
    if given.name.split(".")[0] != run.config["model"]["name"] or given.name.count(".") != 1:
        sys.exit(f"NAME is {given.name}; it must be {run.config['model']['name']}.DATA")
    if (run.path / "best.safetensors").stat().st_size > MAX_BYTES:
        sys.exit(f"{run.path}/best.safetensors is larger than {MAX_BYTES:,} bytes")
    folder = FOLDER / given.name
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", run.config)
    write_json(folder / "result.json", read_json(run.path / "result.json"))
    shutil.copyfile(run.path / "best.safetensors", folder / "best.safetensors")
    (folder / "samples").mkdir(exist_ok=True)
    shutil.copyfile(run.samples[0], folder / "samples" / run.samples[0].name)
    write_text(folder / "README.md", card(run, given.name, given.data, given.licence))


if __name__ == "__main__":
    main()
