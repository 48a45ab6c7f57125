"""Images per second of whole lambda networks against ResNet-50's, taking turns in one run: writes results/rates.csv.

    python scripts/measure_rates.py [SECONDS]            # at the most, for the turns of each pass; default 300

The last two rows are ResNet-50 with 3x3 convolutions left out, of all stages and of the last two: the limit of what any
layer in their place could reach, since the rest of the network takes as long as before.

A row holds, for one pass of one network, its images a second and how many times those of ResNet-50 at 224 pixels that
are: the median of the ratios of the turns, with its 95 % bootstrap interval. Training is a forward and a backward pass.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import timm
from torch import Tensor, nn

from lambdanets import adopt, replace_convs
from lambdanets.experiments.compare.measured import images, measure_speed
from lambdanets.files import write_csv
from lambdanets.provenance import environment

BATCH = 4
SECONDS = 300.0


def _swapped() -> nn.Module:
    return replace_convs(timm.create_model("resnet50"), stages="CCLL", verbose=False)


def _adopted() -> nn.Module:
    return adopt(timm.create_model("lambda_resnet26t")).model


class _LeftOut(nn.Module):
    """Layer that takes every ``stride``-th position, and nothing else."""

    def __init__(self, stride: int):
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :: self.stride, :: self.stride].contiguous()


def _without(*stages: str) -> nn.Module:
    model = timm.create_model("resnet50")
    for name in stages:
        for block in getattr(model, name):
            block.conv2 = _LeftOut(block.conv2.stride[0])
    return model


# Name -> side of its images in pixels, and the network. The first is what the others are compared with.
NETWORKS: dict[str, tuple[int, Callable[[], nn.Module]]] = {
    "resnet50": (224, partial(timm.create_model, "resnet50")),
    "lambda_resnet50_llll": (224, partial(timm.create_model, "lambda_resnet50_llll")),
    "lambda_resnet50_llll, recompute=False": (
        224,
        partial(timm.create_model, "lambda_resnet50_llll", lambda_args={"recompute": False}),
    ),
    "lambda_resnet50": (224, partial(timm.create_model, "lambda_resnet50")),
    "resnet50 with CCLL swapped in": (224, _swapped),
    "lambda_resnet26t": (256, partial(timm.create_model, "lambda_resnet26t")),
    "lambda_resnet26t, adopted": (256, _adopted),
    "resnet50 without 3x3": (224, partial(_without, "layer1", "layer2", "layer3", "layer4")),
    "resnet50 without 3x3 in stages 3 and 4": (224, partial(_without, "layer3", "layer4")),
}


def main(seconds: float) -> None:
    """Measure every network and write the table."""
    where = environment()
    models = {
        name: (make(), images({"channels": 3, "image_size": side}, BATCH)) for name, (side, make) in NETWORKS.items()
    }
    rows = []
    for way, found in measure_speed(models, min(60.0, seconds), seconds).items():
        for name, speed in found.items():
            ratio, low, high = speed["ratio"]
            row = {"network": name, "image_size": NETWORKS[name][0], "batch": BATCH, "pass": way}
            row |= {"images_per_second": speed["images_per_second"][0], "ratio": ratio, "low": low, "high": high}
            rows.append({**row, "turns": speed["turns"], **where})
            print({column: rows[-1][column] for column in (*row, "turns")}, flush=True)
    write_csv(Path(__file__).parents[1] / "results" / "rates.csv", rows)


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else SECONDS)
