"""Count the models on the meta device, and measure what some keep: ``python scripts/collect_models.py``.

Writes results/models.csv: parameters and multiply-adds of the family and of the paper's ablations beside the published
figures, and the bytes that some models keep for the backward pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm

from lambdanets.experiments.bench.measure import saved_bytes
from lambdanets.experiments.compare.measured import build, images
from lambdanets.experiments.paper import ABLATION, FAMILY, PLACEMENTS
from lambdanets.files import write_csv
from lambdanets.models import model_cost
from lambdanets.provenance import environment

Row = dict[str, Any]

# Models whose memory is measured -> name, arguments and side of their images; ImageNet's classes.
KEPT: Mapping[str, tuple[str, Mapping[str, Any], int]] = {
    "resnet50": ("resnet50", {}, 224),
    "lambda_resnet50_llll": ("lambda_resnet50_llll", {}, 224),
    "lambda_resnet50_llll, recompute=False": ("lambda_resnet50_llll", {"lambda_args": {"recompute": False}}, 224),
    "botnet26t_256": ("botnet26t_256", {}, 256),
}
KEPT_BATCH = 8


def run() -> list[Row]:
    """Count every model of the family, every row of the ablation and every placement; measure what some models keep.

    Returns:
        Rows of one shape: table ("family", "ablation", "placement" or "kept"), what was counted, our figures, the
        paper's parameters in millions, "" where it gives none, and in the table "kept" the bytes that a forward pass of
        ``KEPT_BATCH`` images keeps for the backward pass beyond images, parameters and running statistics.
    """
    rows = []
    for table, label, paper, cost, kept in _costs():
        height, width = cost.image_size
        row = {
            "table": table,
            "model": label,
            "stages": cost.stages,
            "image_size": f"{height}x{width}",
            "parameters": cost.parameters,
            "multiply_adds": cost.multiply_adds,
            "activations": cost.activations,
            "paper_parameters_m": paper,
            "kept_bytes": kept,
            **environment("timm", "lambdanets", "commit"),
        }
        rows.append(row)
        print(row, flush=True)
    return rows


def _costs() -> Any:
    for name in sorted(timm.list_models(module="lambda_resnet"), key=_depth):
        yield "family", name, FAMILY.get(name, {}).get("params", ""), model_cost(name), ""
    for (k, h, u), figures in ABLATION.items():
        layer = {"dim_key": k, "num_heads": h, "intra_depth": u, "scope": 23 if u == 1 else 7}
        cost = model_cost("lambda_resnet50_llll", lambda_args=layer)
        yield "ablation", f"k={k} h={h} u={u}", figures["params"], cost, ""
    for stages, figures in PLACEMENTS.items():
        cost = model_cost("lambda_resnet50_llll", stages=stages)
        yield "placement", stages, figures["params"], cost, ""
    for label, (name, arguments, side) in KEPT.items():
        shape = {"image_size": side, "channels": 3, "classes": 1000}
        kept = saved_bytes(build(name, arguments, shape), images(shape, KEPT_BATCH))
        yield "kept", label, "", model_cost(name, side), kept


def _depth(name: str) -> tuple[int, str]:
    digits = name.removeprefix("lambda_resnet").split("_")[0]
    return (int(digits) if digits else 0, name)


if __name__ == "__main__":
    write_csv(Path(__file__).parents[1] / "results" / "models.csv", run())
