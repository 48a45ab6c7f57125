"""The scope of a lambda layer (paper, table on scopes): local contexts from 3x3 on, and the global one.

lambdanets compare scope --quick
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lambdanets.experiments.compare.claims import first_claim
from lambdanets.experiments.compare.outcome import Claim
from lambdanets.experiments.compare.summary import Summary
from lambdanets.experiments.compare.trained import Row, TrainedStudy

# Accuracy of the paper's ResNet-50 on ImageNet, at 224 pixels.
PAPER = {3: 77.6, 7: 78.2, 15: 78.5, 23: 78.3, 31: 78.5}
ROWS = {
    **{f"scope {scope}": Row("LLLL", {"scope": scope}, paper={"top1": top1}) for scope, top1 in PAPER.items()},
    "global": Row("LLLL", {"scope": None}, paper={"top1": 78.4}),
}


def judge(rows: Mapping[str, Summary]) -> Sequence[Claim]:
    """Say what the paper leads to expect, and what was found."""
    return first_claim(rows, "global", "scope 3", "more than 0", paper="0.8")


STUDY = TrainedStudy(
    name="scope",
    title="Scope of lambda layers",
    question="How many positions around it must a query see?",
    rows=ROWS,
    judge=judge,
)
