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
RECOMPUTED = "lambda, recomputed"
# Attention has two forms that compute the same numbers, with stored maps and fused. One of them is trained; both are
# measured, and lambda layers are held against the better one.
ATTENTIONS = ("local attention", "axial attention", "global attention")
FUSED = {"fused": True}
FUSED_FORM = "by PyTorch's fused attention, positions as further channels of queries and keys: more multiply-adds"
STORED_FORM = "the same numbers with stored maps"

ROWS: dict[str, Row] = {
    CONVOLUTION: Row("CCCC", paper=paper.PLACEMENTS["CCCC"], about="3x3 convolutions, as in ResNets"),
    "convolution + SE": Row(
        "SSSS", paper=paper.LAYERS["convolution + SE"], about="with squeeze-and-excitation at the end of each block"
    ),
    "convolution + linear attention": Row(
        "EEEE",
        paper=paper.LAYERS["convolution + linear attention"],
        about="with linear attention over the map after each convolution",
    ),
    "augmented convolution": Row(
        "AAAA",
        layer_args={"A": FUSED},
        paper=paper.LAYERS["augmented convolution"],
        about=f"convolutions whose last channels are global relative self-attention; {FUSED_FORM}",
    ),
    "augmented convolution, stored maps": Row("AAAA", about=STORED_FORM, form_of="augmented convolution"),
    "local attention": Row(
        "WWWW",
        layer_args={"W": {"scope": 7, **FUSED}},
        paper=paper.COSTS["local attention"],
        about=f"relative self-attention over 7x7 positions; {FUSED_FORM}",
    ),
    "local attention, stored maps": Row(
        "WWWW", layer_args={"W": {"scope": 7}}, about=STORED_FORM, form_of="local attention"
    ),
    "axial attention": Row(
        "XXXX",
        paper=paper.COSTS["axial attention"],
        about="relative self-attention along the columns, then along the rows; with stored maps",
    ),
    "axial attention, fused": Row(
        "XXXX", layer_args={"X": FUSED}, about=f"the same numbers {FUSED_FORM}", form_of="axial attention"
    ),
    "global attention": Row(
        "GGGG",
        layer_args={"G": FUSED},
        paper=paper.COSTS["global attention"],
        about=f"relative self-attention over the whole map; {FUSED_FORM}",
    ),
    "global attention, stored maps": Row("GGGG", about=STORED_FORM, form_of="global attention"),
    "lambda": Row(
        "LLLL",
        {"scope": None},
        paper={**paper.COSTS["lambda"], **paper.PLACEMENTS["LLLL"]},
        about="global lambda layers, k = 16 and u = 1",
    ),
    RECOMPUTED: Row(
        "LLLL",
        {"scope": None, "recompute": True},
        about="the same numbers; the layers keep only their input for backward and repeat their projection there",
        form_of="lambda",
    ),
    "lambda, u = 4": Row(
        "LLLL",
        {"scope": 7, "intra_depth": 4},
        paper=paper.LAYERS["lambda, u = 4"],
        about="local lambda layers over 7x7 positions with intra-depth u = 4, as in the paper",
    ),
    "lambda convolution": Row(
        "LLLL",
        {"scope": 7},
        paper=paper.COSTS["lambda convolution"],
        about="local lambda layers over 7x7 positions, k = 16 and u = 1",
    ),
}


def judge(rows: Mapping[str, Summary]) -> Sequence[Claim]:
    """Say what the paper leads to expect, and what was found."""
    claims: list[Claim] = []
    base = rows.get(CONVOLUTION)
    for name in LAMBDAS:
        row = rows.get(name)
        if row and base and row.parameters and base.parameters:
            share = row.parameters / base.parameters
            text = f"{name}: {share:.2f} of the convolution's parameters; expected: at most 0.65."
            claims.append(Claim(text, share <= 0.65))
        claims += pair_claim(rows, name, CONVOLUTION, "0 or more")
        claims += memory_claim(rows, name, [CONVOLUTION])
        for way in (TRAINING, INFERENCE):
            claims += rate_claim(rows, name, [CONVOLUTION], way)
    claims += memory_claim(rows, RECOMPUTED, [CONVOLUTION])
    claims += rate_claim(rows, RECOMPUTED, [CONVOLUTION], TRAINING)
    for attention in ATTENTIONS:
        for name in LAMBDAS:
            claims += pair_claim(rows, name, attention, "0 or more")
            claims += memory_claim(rows, name, forms_of(ROWS, attention))
            claims += rate_claim(rows, name, forms_of(ROWS, attention), TRAINING)
    return claims


STUDY = TrainedStudy(
    name="layers",
    title="Lambda layers, convolution and self-attention",
    question="Do lambda layers reach the accuracy of convolution and self-attention in the same place of a network, "
    "with fewer parameters, less memory and less time?",
    rows=ROWS,
    judge=judge,
)
