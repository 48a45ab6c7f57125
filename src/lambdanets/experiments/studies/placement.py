"""Places of lambda layers in a network of four stages (paper, table on hybrids): eight placements of C and L.

lambdanets compare placement --quick
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lambdanets.experiments.compare.claims import first_claim, rate_claim
from lambdanets.experiments.compare.outcome import Claim
from lambdanets.experiments.compare.summary import TRAINING, Summary
from lambdanets.experiments.compare.trained import Row, TrainedStudy

# Parameters of the paper's ResNet-50 in millions, images a second in training, and accuracy on ImageNet.
PAPER = {
    "CCCC": (25.6, 7240, 76.9),
    "LCCC": (25.5, 1880, 77.3),
    "LLCC": (25.0, 1280, 77.2),
    "LLLC": (21.7, 1160, 77.8),
    "LLLL": (15.0, 1160, 78.4),
    "CLLL": (15.1, 2200, 78.3),
    "CCLL": (15.4, 4980, 78.3),
    "CCCL": (18.8, 7160, 77.3),
}
ROWS = {
    stages: Row(stages, {"scope": None} if "L" in stages else {}, paper={"params": params, "rate": rate, "top1": top1})
    for stages, (params, rate, top1) in PAPER.items()
}


def judge(rows: Mapping[str, Summary]) -> Sequence[Claim]:
    """Say what the paper leads to expect, and what was found."""
    return [
        *rate_claim(rows, "CCLL", ["LLLL"], TRAINING),
        *first_claim(rows, "LLLL", "CCCC", "0 or more"),
        *first_claim(rows, "CCLL", "CCCC", "0 or more"),
    ]


STUDY = TrainedStudy(
    name="placement",
    title="Where lambda layers go",
    question="In which of the four stages are lambda layers worth their cost?",
    rows=ROWS,
    judge=judge,
)
