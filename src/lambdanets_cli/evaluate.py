"""The command ``lambdanets evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lambdanets_cli.options import Debug, RunFolder

__all__ = ["evaluate"]


def evaluate(
    run: RunFolder,
    data: Annotated[
        str | None,
        typer.Option(
            help="Other data, scored whole: a test part if there is one, else a validation part, else all images. "
            "Classes are matched by name.  \\[default: the run's own test images]"
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for the files.  \\[default: the run folder]"),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step.", min=1)] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Processes that read images; 0: none.", min=0),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON.")] = False,
    debug: Debug = False,
) -> None:
    """Measure a run's best weights on the test images: top-1, top-5, loss, a picture of the confusion matrix.

    The test images are those of the split that is stored with the run. Other data are a source of their own: a
    folder of class folders, or one with test/ or val/, with any number of images for each class.

    Writes evaluation.json, confusion.csv and confusion.png.

    For example:

      lambdanets evaluate runs/lambda_resnet_tiny-digits-20260101-120000

      lambdanets evaluate runs/my-run --data exam/
    """
    from lambdanets import training
    from lambdanets.console import make_console, print_json
    from lambdanets.training.display.summary import print_evaluation

    result = training.evaluate_run(run, data=data, output=output, batch_size=batch_size, workers=workers)
    if not result.main_process:
        return
    if as_json:
        print_json(result.to_dict())
    else:
        print_evaluation(make_console(), result)
