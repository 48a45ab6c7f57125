"""The scope of a lambda layer (paper, table on scopes): local contexts from 3x3 on, and the global one.

lambdanets compare scope --quick
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lambdanets.experiments.compare.claims import pair_claim
from lambdanets.experiments.compare.outcome import Claim
from lambdanets.experiments.compare.rows import Row
from lambdanets.experiments.compare.summary import Summary
from lambdanets.experiments.compare.trained import TrainedStudy
from lambdanets.experiments.paper import SCOPES

ROWS = {
    "global" if scope is None else f"scope {scope}": Row("LLLL", {"scope": scope}, paper=figures)
    for scope, figures in SCOPES.items()
}


def judge(rows: Mapping[str, Summary]) -> Sequence[Claim]:
    """Say what the paper leads to expect, and what was found."""
    paper = f"{SCOPES[None]['top1'] - SCOPES[3]['top1']:.1f}"
    return pair_claim(rows, "global", "scope 3", "more than 0", paper=paper)


STUDY = TrainedStudy(
    name="scope",
    title="Scope of lambda layers",
    question="How many positions around it must a query see?",
    rows=ROWS,
    judge=judge,
)
