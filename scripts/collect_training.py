"""Collect run folders of this machine into results/training.json: ``python scripts/collect_training.py RUN...``.

A run takes the place of the one before with the same command and seed; the others stay.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from lambdanets.files import read_csv, write_json
from lambdanets.provenance import processor

RESULTS = Path(__file__).parents[1] / "results" / "training.json"
COMMANDS = {
    "digits": "lambdanets train",
    "fashion-mnist": "lambdanets train --data fashion-mnist",
    "cifar10": "lambdanets train --recipe cifar10 --data cifar10/",
}


def entry(run: Path) -> dict:
    """Return the scores, time and conditions of a run."""
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    recipe = config["recipe"]
    return {
        "command": COMMANDS[recipe["name"]],
        "model": recipe["model"],
        "parameters": result["parameters"],
        "seed": recipe["seed"],
        "epochs": result["epochs"],
        "test_top1": result["test"]["top1"],
        "test_images": result["test"]["images"],
        "validation_top1": result["validation"]["top1"],
        # Of a resumed training version 0.1.0 wrote the last part's time.
        "seconds": max(result["seconds"], round(sum(row["seconds"] for row in read_csv(run / "metrics.csv")), 2)),
        "machine": processor(),
        "threads": result["threads"],
        "precision": result["precision"],
        "versions": result["versions"],
    }


if __name__ == "__main__":
    before = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []
    entries = {(run["command"], run["seed"]): run for run in before}
    entries |= {(run["command"], run["seed"]): run for run in (entry(Path(folder)) for folder in sys.argv[1:])}
    write_json(RESULTS, list(entries.values()))
