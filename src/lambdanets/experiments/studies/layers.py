"""Lambda layers beside convolution and self-attention in the same place of the same network (paper, tables 3 and 4).

lambdanets compare layers --quick
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lambdanets.experiments import paper
from lambdanets.experiments.bench.measure import INFERENCE, TRAINING
from lambdanets.experiments.compare.claims import memory_claim, pair_claim, rate_claim
from lambdanets.experiments.compare.outcome import Claim
from lambdanets.experiments.compare.rows import Row, forms_of
from lambdanets.experiments.compare.summary import Summary
from lambdanets.experiments.compare.trained import TrainedStudy

CONVOLUTION = "convolution"
LAMBDAS = ("lambda", "lambda, u = 4", "lambda convolution")
# Attention has two forms that compute the same numbers, with stored maps and fused. One of them is trained; both are
# measured, and lambda layers are held against the better one.
ATTENTIONS = ("local attention", "axial attention", "global attention")
FUSED = {"fused": True}

ROWS: dict[str, Row] = {
    CONVOLUTION: Row("CCCC", paper=paper.PLACEMENTS["CCCC"]),
    "convolution + SE": Row("SSSS", paper=paper.LAYERS["convolution + SE"]),
    "convolution + linear attention": Row("EEEE", paper=paper.LAYERS["convolution + linear attention"]),
    "augmented convolution": Row("AAAA", layer_args={"A": FUSED}, paper=paper.LAYERS["augmented convolution"]),
    "augmented convolution, stored maps": Row("AAAA", form_of="augmented convolution"),
    "local attention": Row("WWWW", layer_args={"W": {"scope": 7, **FUSED}}, paper=paper.COSTS["local attention"]),
    "local attention, stored maps": Row("WWWW", layer_args={"W": {"scope": 7}}, form_of="local attention"),
    "axial attention": Row("XXXX", paper=paper.COSTS["axial attention"]),
    "axial attention, fused": Row("XXXX", layer_args={"X": FUSED}, form_of="axial attention"),
    "global attention": Row("GGGG", layer_args={"G": FUSED}),
    "global attention, stored maps": Row("GGGG", form_of="global attention"),
    "lambda": Row("LLLL", {"scope": None}, paper=paper.PLACEMENTS["LLLL"]),
    "lambda, u = 4": Row("LLLL", {"scope": 7, "intra_depth": 4}, paper=paper.LAYERS["lambda, u = 4"]),
    "lambda convolution": Row("LLLL", {"scope": 7}, paper=paper.COSTS["lambda convolution"]),
}


def judge(rows: Mapping[str, Summary]) -> Sequence[Claim]:
    """Say what the paper leads to expect, and what was found."""
    claims: list[Claim] = []
    base = rows.get(CONVOLUTION)
    for name in LAMBDAS:
        row = rows.get(name)
        if row and base and row.parameters and base.parameters:
            share = row.parameters / base.parameters
            text = f"{name}: {share:.2f} of the convolution's parameters; expected are at most 0.65."
            claims.append(Claim(text, share <= 0.65))
        claims += pair_claim(rows, name, CONVOLUTION, "0 or more")
        claims += memory_claim(rows, name, [CONVOLUTION])
        for way in (TRAINING, INFERENCE):
            claims += rate_claim(rows, name, [CONVOLUTION], way)
    for name in ATTENTIONS:
        claims += memory_claim(rows, "lambda", forms_of(ROWS, name))
        claims += rate_claim(rows, "lambda", forms_of(ROWS, name), TRAINING)
    return claims


STUDY = TrainedStudy(
    name="layers",
    title="Lambda layers, convolution and self-attention",
    question="Do lambda layers reach the accuracy of convolution and self-attention in the same place of a network, "
    "with fewer parameters, less memory and less time?",
    rows=ROWS,
    judge=judge,
)
