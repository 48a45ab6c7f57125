"""The command ``lambdanets predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lambdanets_cli.options import RunFolder, number

__all__ = ["predict"]


def predict(
    run: RunFolder,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Image files of any size.")],
    top: Annotated[int, number("Number of classes to show, most probable first.", least=1)] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Classify images with the best weights of a run.

    Images are converted, resized and cropped to the middle as for the validation in training, and their colours are not
    changed: a model of the digits expects bright strokes on black, not pencil on paper.

    For example:

      lambdanets predict runs/lambda_resnet_tiny-digits-20260101-120000 seven.png

      lambdanets predict runs/my-run photos/*.jpg --top 1 --json
    """
    from lambdanets import training
    from lambdanets.console import make_console, print_json
    from lambdanets_cli.summary import print_predictions

    predictions = training.predict_images(run, images, top=top)
    if as_json:
        print_json([prediction.to_dict() for prediction in predictions])
    else:
        print_predictions(make_console(), predictions)
