"""Lambda layers beside convolution and self-attention in the same place of the same network (paper, tables 3 and 4).

lambdanets compare layers --quick
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lambdanets.experiments.compare.outcome import Claim
from lambdanets.experiments.compare.summary import TRAINING, Summary, at_least, signed
from lambdanets.experiments.compare.trained import Row, TrainedStudy

CONVOLUTION = "convolution"
LAMBDAS = ("lambda", "lambda, u = 4", "lambda convolution")
# The forms of attention that compute the same numbers are compared by the study of memory. Fused is the faster one on
# CPUs too, but for axial attention, whose stored maps are small.
FUSED = {"fused": True}
ATTENTIONS = ("local attention", "axial attention", "global attention")

# Parameters of the paper's ResNet-50 in millions, and its accuracy on ImageNet.
ROWS: dict[str, Row] = {
    CONVOLUTION: Row("CCCC", paper={"params": 25.6, "top1": 76.9}),
    "convolution + SE": Row("SSSS", paper={"params": 28.1, "top1": 77.6}),
    "convolution + linear attention": Row("EEEE", paper={"params": 33.0, "top1": 77.0}),
    "augmented convolution": Row("AAAA", layer_args={"A": FUSED}, paper={"params": 25.8, "top1": 77.7}),
    "local attention": Row("WWWW", layer_args={"W": {"scope": 7, **FUSED}}, paper={"top1": 77.4}),
    "axial attention": Row("XXXX", paper={"top1": 77.5}),
    "global attention": Row("GGGG", layer_args={"G": FUSED}),
    "lambda": Row("LLLL", {"scope": None}, paper={"params": 15.0, "top1": 78.4}),
    "lambda, u = 4": Row("LLLL", {"scope": 7, "intra_depth": 4}, paper={"params": 16.0, "top1": 78.9}),
    "lambda convolution": Row("LLLL", {"scope": 7}, paper={"top1": 78.1}),
}


def judge(rows: Mapping[str, Summary]) -> Sequence[Claim]:
    """Say what the paper leads to expect, and what was found."""
    base = rows.get(CONVOLUTION)
    claims: list[Claim] = []
    for name in LAMBDAS:
        row = rows.get(name)
        if row is None or base is None:
            continue
        if row.parameters and base.parameters:
            share = row.parameters / base.parameters
            text = f"{name}: {share:.2f} of the convolution's parameters; expected are at most 0.65."
            claims.append(Claim(text, share <= 0.65))
        if row.difference is not None:
            text = f"{name}: {signed(row.difference)} points of accuracy against convolution; expected is 0 or more."
            claims.append(Claim(text, at_least(row.difference)))
    ours = rows.get("lambda")
    for name in ATTENTIONS:
        row = rows.get(name)
        if ours is None or row is None:
            continue
        if ours.saved_bytes and row.saved_bytes:
            share = ours.saved_bytes / row.saved_bytes
            text = f"lambda keeps {share:.2f} of the memory for backward that {name} keeps; expected is less."
            claims.append(Claim(text, share < 1))
        if TRAINING in ours.rate and TRAINING in row.rate:
            faster = ours.rate[TRAINING][0] / row.rate[TRAINING][0]
            text = f"lambda trains {faster:.2f} times as many images a second as {name}; expected are more than 1."
            claims.append(Claim(text, faster > 1))
    return claims


STUDY = TrainedStudy(
    name="layers",
    title="Lambda layers, convolution and self-attention",
    question="Do lambda layers reach the accuracy of convolution and self-attention in the same place of a network, "
    "with fewer parameters, less memory and less time?",
    rows=ROWS,
    judge=judge,
)
