"""Where lambda layers go in a network of four stages (paper, table on hybrids): eight placements of C and L.

lambdanets compare placement --quick
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lambdanets.experiments.compare.outcome import Claim
from lambdanets.experiments.compare.summary import TRAINING, Summary, at_least, signed
from lambdanets.experiments.compare.trained import Row, TrainedStudy

# Parameters of the paper's ResNet-50 in millions, and its accuracy on ImageNet.
PAPER = {
    "CCCC": (25.6, 76.9),
    "LCCC": (25.5, 77.3),
    "LLCC": (25.0, 77.2),
    "LLLC": (21.7, 77.8),
    "LLLL": (15.0, 78.4),
    "CLLL": (15.1, 78.3),
    "CCLL": (15.4, 78.3),
    "CCCL": (18.8, 77.3),
}
ROWS = {
    stages: Row(stages, {"scope": None} if "L" in stages else {}, paper={"params": params, "top1": top1})
    for stages, (params, top1) in PAPER.items()
}


def judge(rows: Mapping[str, Summary]) -> Sequence[Claim]:
    """Say what the paper leads to expect, and what was found."""
    claims = []
    whole, hybrid = rows.get("LLLL"), rows.get("CCLL")
    if whole is None or hybrid is None:
        return []
    if TRAINING in whole.rate and TRAINING in hybrid.rate:
        faster = hybrid.rate[TRAINING][0] / whole.rate[TRAINING][0]
        text = f"CCLL trains {faster:.2f} times as many images a second as LLLL; expected are more than 1 (paper: 4.3)."
        claims.append(Claim(text, faster > 1))
    for row in (whole, hybrid):
        if row.difference is not None:
            text = f"{row.name}: {signed(row.difference)} points of accuracy against CCCC; expected is 0 or more."
            claims.append(Claim(text, at_least(row.difference)))
    return claims


STUDY = TrainedStudy(
    name="placement",
    title="Where lambda layers go",
    question="In which of the four stages are lambda layers worth their cost?",
    rows=ROWS,
    judge=judge,
)
