"""Shortcuts of the residual blocks, not in the paper: a network of one block a stage has 1x1 convolutions alone.

lambdanets compare shortcut --quick
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lambdanets.experiments.compare.claims import pair_claim
from lambdanets.experiments.compare.outcome import Claim
from lambdanets.experiments.compare.rows import Row
from lambdanets.experiments.compare.summary import Summary
from lambdanets.experiments.compare.trained import TrainedStudy

CONVOLUTION, LAMBDA = "convolution", "lambda"
SHORTCUTS: dict[str, dict[str, Any]] = {
    "": {},
    # timm's, of ResNet-D: no position is left out where the shortcut has a stride.
    ", averaged shortcut": {"avg_down": True},
    # Every second block has an identity as its shortcut.
    ", two blocks a stage": {"layers": [2, 2, 2, 2]},
}
ROWS = {
    f"{name}{shortcut}": Row(stages, {"scope": None} if "L" in stages else {}, model_args=model_args)
    for shortcut, model_args in SHORTCUTS.items()
    for name, stages in ((CONVOLUTION, "CCCC"), (LAMBDA, "LLLL"))
}


def judge(rows: Mapping[str, Summary]) -> Sequence[Claim]:
    """Say what is expected if shortcuts do not decide, and what was found."""
    return [
        claim
        for shortcut in SHORTCUTS
        for claim in pair_claim(rows, f"{LAMBDA}{shortcut}", f"{CONVOLUTION}{shortcut}", "0 or more")
    ]


STUDY = TrainedStudy(
    name="shortcut",
    title="Shortcuts beside lambda layers",
    question="Does the difference between lambda layers and convolutions depend on the shortcuts of the blocks?",
    rows=ROWS,
    judge=judge,
)
