"""The networks of the study, each at its own resolution, with published accuracies (``family.csv``)."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from importlib.resources import files

__all__ = ["GROUPS", "REFERENCE", "ROWS", "Network"]

# Takes turns with every row: all rates are its rate times a ratio of turns.
REFERENCE = "ResNet-50"
# The groups of lambda networks.
GROUPS = ("LambdaResNet", "timm's lambda networks")


@dataclass(frozen=True)
class Network:
    """A row of the study.

    Args:
        group: the family it belongs to.
        model: its name in timm's registry.
        image_size: side of its images in pixels.
        top1: the published accuracy on ImageNet in percent; None if there is none.
        source: of that figure.
    """

    group: str
    model: str
    image_size: int
    top1: float | None
    source: str


def _read_rows() -> dict[str, Network]:
    text = (files(__package__) / "family.csv").read_text("utf-8")
    found = {}
    for row in csv.DictReader(text.splitlines()):
        top1 = float(row["top1"]) if row["top1"] else None
        found[row["row"]] = Network(row["group"], row["model"], int(row["image_size"]), top1, row["source"])
    return found


ROWS = _read_rows()
