"""Choices of the lambda layer made otherwise (paper, tables on k, h, u, normalisation and terms), and its start.

lambdanets compare ablation --quick
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lambdanets.experiments.compare.outcome import Claim
from lambdanets.experiments.compare.summary import Summary, at_least, signed
from lambdanets.experiments.compare.trained import Row, TrainedStudy

BASE = "k 16, h 4, u 1"
WORSE = ("content only", "keys as they are", "no batch-norm")
STARTS = ("start: balanced", "start: unit positions", "start: convolution")


def _changed(top1: float | None = None, **changes: Any) -> Row:
    """Global lambda layers in all stages with one choice made otherwise."""
    return Row("VVVV", layer_args={"V": {"scope": None, **changes}}, paper={} if top1 is None else {"top1": top1})


ROWS: dict[str, Row] = {
    BASE: _changed(78.4),
    "k 4": _changed(77.6, dim_key=4),
    "k 8": _changed(77.9, dim_key=8),
    "k 32": _changed(78.4, dim_key=32),
    "h 2": _changed(num_heads=2),
    "h 8": _changed(78.1, num_heads=8),
    "u 4": _changed(78.9, intra_depth=4),
    "content only": _changed(68.8, terms="content"),
    "position only": _changed(78.1, terms="position"),
    "softmax of queries too": _changed(78.1, normalise="softmax of queries too"),
    "keys by L2": _changed(78.0, normalise="l2"),
    "keys as they are": _changed(70.0, normalise="none"),
    "no batch-norm": _changed(76.2, norm_layer="none"),
    "start: balanced": _changed(start="balanced"),
    "start: unit positions": _changed(start="unit positions"),
    "start: convolution": _changed(start="convolution"),
}


def judge(rows: Mapping[str, Summary]) -> Sequence[Claim]:
    """Say what the paper leads to expect, and what was found."""
    claims = []
    for name in (*WORSE, *STARTS):
        difference = rows[name].difference if name in rows else None
        if difference is not None:
            better = at_least(difference)
            expected = "less than 0" if name in WORSE else "0 or less"
            text = f"{name}: {signed(difference)} points of accuracy against {BASE}; expected is {expected}."
            claims.append(Claim(text, None if better is None else not better))
    return claims


STUDY = TrainedStudy(
    name="ablation",
    title="Choices of the lambda layer",
    question="What do depth, heads, intra-depth, normalisations, the two terms and the start of the weights matter?",
    rows=ROWS,
    judge=judge,
)
