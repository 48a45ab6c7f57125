"""The command ``lambdanets evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lambdanets_cli.options import RunFolder, number

__all__ = ["evaluate"]


def evaluate(
    run: RunFolder,
    data: Annotated[
        str | None,
        typer.Option(
            help="Other data: their test split if there is one, otherwise their validation split, otherwise all "
            "images. Classes are matched by name.  \\[default: the run's own test images]"
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for the files.  \\[default: the run folder; runs/NAME for bundled weights]"),
    ] = None,
    batch_size: Annotated[int | None, number("Images per step.  \\[default: as in the training]", least=1)] = None,
    workers: Annotated[
        int | None,
        number(
            "Number of processes that read images; 0: the main process reads them.  \\[default: as in the training]",
            least=0,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON.")] = False,
) -> None:
    """Evaluate the best weights of a run on the test images: top-1, top-5, loss, and a plot of the confusion matrix.

    The test images are those of the split that is stored with the run. Other data (--data) are a folder of class
    folders, or one with test/ or val/, with any number of images per class; nothing is held out.

    Writes evaluation.json, confusion.csv and confusion.png.

    For example:

      lambdanets evaluate runs/lambda_resnet_tiny-digits-20260101-120000

      lambdanets evaluate runs/my-run --data exam/
    """
    from lambdanets import training
    from lambdanets.console import make_console, print_json
    from lambdanets_cli.summary import print_evaluation

    result = training.evaluate_run(run, data=data, output=output, batch_size=batch_size, workers=workers)
    if not result.main_process:
        return
    if as_json:
        print_json(result.to_dict())
    else:
        print_evaluation(make_console(), result)
