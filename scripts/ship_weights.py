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
from lambdanets.training.runs.card import model_card

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
    write_json(folder / "config.json", run.config)
    write_json(folder / "result.json", read_json(run.path / "result.json"))
    shutil.copyfile(run.path / "best.safetensors", folder / "best.safetensors")
    (folder / "samples").mkdir(exist_ok=True)
    shutil.copyfile(run.samples[0], folder / "samples" / run.samples[0].name)
    write_text(folder / "README.md", model_card(run, given.name, given.name, given.data, given.licence))


if __name__ == "__main__":
    main()
