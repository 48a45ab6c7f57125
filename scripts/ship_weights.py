"""Make weights that come with the package of a finished run: ``python scripts/ship_weights.py RUN NAME``.

NAME is MODEL.DATA, as lambda_resnet_tiny.digits. The model card is written of what the run says; the licence of the
data is the caller's to state. Of a folder of images no image is taken along, and of its path the last part alone.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lambdanets.files import read_json, write_json, write_text
from lambdanets.models.shipped import FOLDER
from lambdanets.training import Run
from lambdanets.training.inference.card import model_card

MAX_BYTES = 2_000_000


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
    write_json(folder / "config.json", _without_parents(run.config))
    write_json(folder / "result.json", read_json(run.path / "result.json"))
    shutil.copyfile(run.path / "best.safetensors", folder / "best.safetensors")
    for sample in run.samples[:1]:
        (folder / "samples").mkdir(exist_ok=True)
        shutil.copyfile(sample, folder / "samples" / sample.name)
    write_text(folder / "README.md", model_card(run, given.name, given.name, given.data, given.licence))


def _without_parents(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a run; of the path of a folder of images its last part, at the root, which no user has."""
    kind, _, path = config["data"]["spec"].partition(":")
    if kind != "imagefolder":
        return dict(config)
    name = Path(path).name
    # The digest is of split.csv, which does not come with the weights.
    data = {key: value for key, value in config["data"].items() if key != "split"}
    return {
        **config,
        "data": {**data, "spec": f"imagefolder:/{name}"},
        "recipe": {**config["recipe"], "data": f"/{name}"},
    }


if __name__ == "__main__":
    main()
