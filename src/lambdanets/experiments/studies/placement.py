"""Places of lambda layers in a network of four stages (paper, table on hybrids): eight placements of C and L.

lambdanets compare placement --quick
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lambdanets.experiments.bench.measure import TRAINING
from lambdanets.experiments.compare.claims import pair_claim, rate_claim
from lambdanets.experiments.compare.outcome import Claim
from lambdanets.experiments.compare.rows import Row
from lambdanets.experiments.compare.summary import Summary
from lambdanets.experiments.compare.trained import TrainedStudy
from lambdanets.experiments.paper import PLACEMENTS

ROWS = {
    stages: Row(stages, {"scope": None} if "L" in stages else {}, paper=figures)
    for stages, figures in PLACEMENTS.items()
}


def judge(rows: Mapping[str, Summary]) -> Sequence[Claim]:
    """Say what the paper leads to expect, and what was found."""
    return [
        *rate_claim(rows, "CCLL", ["LLLL"], TRAINING),
        *pair_claim(rows, "LLLL", "CCCC", "0 or more"),
        *pair_claim(rows, "CCLL", "CCCC", "0 or more"),
        *pair_claim(rows, "CLLL", "CCCC", "0 or more"),
        # Nearly as accurate as LLLL: the paper's difference is that of its trainings to each other.
        *pair_claim(rows, "CCLL", "LLLL", "-0.5 or more", paper="-0.1"),
        *pair_claim(rows, "CLLL", "LLLL", "-0.5 or more", paper="-0.1"),
    ]


STUDY = TrainedStudy(
    name="placement",
    title="Where lambda layers go",
    question="In which of the four stages are lambda layers worth their cost?",
    rows=ROWS,
    judge=judge,
)
