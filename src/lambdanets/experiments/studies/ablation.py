"""Choices of the lambda layer made otherwise (paper, tables on k, h, u, normalisation and terms), and its start.

lambdanets compare ablation --quick
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lambdanets.experiments.compare.claims import pair_claim
from lambdanets.experiments.compare.outcome import Claim
from lambdanets.experiments.compare.rows import Row
from lambdanets.experiments.compare.summary import Summary
from lambdanets.experiments.compare.trained import TrainedStudy
from lambdanets.experiments.paper import ABLATION, CHOICES, Figures

BASE = "k 16, h 4, u 1"
DEEP = "u 4, scope 7"
_DEEP: dict[str, Any] = {"intra_depth": 4, "scope": 7}
WORSE = ("content only", "keys as they are", "no batch-norm")
STARTS = ("start: balanced", "start: unit positions", "start: convolution")


def _changed(paper: Figures | None = None, **changes: Any) -> Row:
    """Global lambda layers in all stages with one choice made otherwise; of the paper's figures the accuracy."""
    shown = {"top1": paper["top1"]} if paper else {}
    return Row("VVVV", layer_args={"V": {"scope": None} | changes}, paper=shown)


ROWS: dict[str, Row] = {
    BASE: _changed(ABLATION[16, 4, 1]),
    "k 4": _changed(ABLATION[4, 4, 1], dim_key=4),
    "k 8": _changed(ABLATION[8, 4, 1], dim_key=8),
    "k 32": _changed(ABLATION[32, 4, 1], dim_key=32),
    "h 2": _changed(num_heads=2),
    "h 8": _changed(ABLATION[16, 8, 1], num_heads=8),
    "u 4": _changed(ABLATION[16, 4, 4], intra_depth=4),
    "content only": _changed(CHOICES["content only"], terms="content"),
    "position only": _changed(CHOICES["position only"], terms="position"),
    "softmax of queries too": _changed(CHOICES["softmax of queries too"], normalise="softmax of queries too"),
    "keys by L2": _changed(CHOICES["keys by L2"], normalise="l2"),
    "keys as they are": _changed(CHOICES["keys as they are"], normalise="none"),
    "no batch-norm": _changed(CHOICES["no batch-norm"], norm_layer="none"),
    "no batch-norm of queries": _changed(norms="values"),
    "no batch-norm of values": _changed(norms="queries"),
    "start: balanced": _changed(start="balanced"),
    "start: unit positions": _changed(start="unit positions"),
    "start: convolution": _changed(start="convolution"),
    # Where the content term starts with the largest variance: intra-depth, small maps.
    DEEP: _changed(**_DEEP),
    f"{DEEP}, start: balanced": _changed(**_DEEP, start="balanced"),
    f"{DEEP}, start: unit positions": _changed(**_DEEP, start="unit positions"),
    f"{DEEP}, start: convolution": _changed(**_DEEP, start="convolution"),
}


def judge(rows: Mapping[str, Summary]) -> Sequence[Claim]:
    """Say what the paper leads to expect, and what was found."""
    claims = [claim for name in WORSE for claim in pair_claim(rows, name, BASE, "less than 0")]
    claims += [claim for name in STARTS for claim in pair_claim(rows, name, BASE, "0 or less")]
    return claims + [claim for start in STARTS for claim in pair_claim(rows, f"{DEEP}, {start}", DEEP, "0 or less")]


STUDY = TrainedStudy(
    name="ablation",
    title="Choices of the lambda layer",
    question="What do depth, heads, intra-depth, normalisations, the two terms and the start of the weights matter?",
    rows=ROWS,
    judge=judge,
)
