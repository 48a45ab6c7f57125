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
AVERAGED, TWO_BLOCKS = ", averaged shortcut", ", two blocks a stage"
# By what is behind the name of a row: arguments of the model, and what they make of the shortcuts.
SHORTCUTS: dict[str, tuple[dict[str, Any], str]] = {
    "": ({}, "its shortcuts are 1x1 convolutions, which leave positions out where they have a stride"),
    AVERAGED: (
        {"avg_down": True},
        "a shortcut with a stride averages the positions before its 1x1 convolution, as in ResNet-D (timm's avg_down)",
    ),
    TWO_BLOCKS: ({"layers": [2, 2, 2, 2]}, "the shortcut of the second block of each stage is an identity"),
}
ROWS = {
    f"{name}{shortcut}": Row(
        stages,
        {"scope": None} if "L" in stages else {},
        model_args=model_args,
        against=f"{CONVOLUTION}{shortcut}" if name == LAMBDA else None,
        about=about,
    )
    for shortcut, (model_args, about) in SHORTCUTS.items()
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
