"""The command ``lambdanets train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lambdanets_cli.options import Debug

__all__ = ["train"]


def train(
    recipe: Annotated[
        str | None,
        typer.Option(
            help="What is not chosen below: digits, fashion-mnist, image-folder, imagenet-90 or imagenet-350.  "
            "\\[default: by --data]"
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="digits, fashion-mnist, fashion-mnist:DIR, a folder of images (DIR or imagefolder:DIR), or "
            "what timm's readers take (hfds/NAME, torch/NAME, wds/:DIR).  \\[default: digits]"
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="A model of timm's registry, where the LambdaResNets are too."),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(help="Side of the input in pixels.", min=1),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data.", min=1)] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Images a step, over all processes together.", min=1),
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights, order and augmentation.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16.")] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Processes that read images; 0: none."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="The run folder to make.  \\[default: runs/<model>-<data>-<time>]"),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Go on with a run that was stopped; it keeps its choices. RUN/checkpoint/NAME goes on from that one.",
        ),
    ] = None,
    checkpoint_every: Annotated[
        str,
        typer.Option(
            metavar="N|MINUTESm",
            help="Steps (500) or minutes (10m) between two checkpoints; each epoch ends with one.",
        ),
    ] = "10m",
    timeout: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            help="Time without an answer after which a process that reads images or trains counts as dead.",
        ),
    ] = 120,
    debug: Debug = False,
) -> None:
    """Train a LambdaResNet and test it; without options: a small one on handwritten digits.

    For example:

      lambdanets train

      lambdanets train --data fashion-mnist

      lambdanets train --data my-images/ --image-size 64 --epochs 50

      lambdanets train --resume runs/lambda_resnet_tiny-digits-20260101-120000

      torchrun --nproc-per-node 8 -m lambdanets train --recipe imagenet-90 --data imagenet/

    Ctrl-C and SIGTERM end the training at the next step and save its state; --resume goes on from there to the same
    result as without the interruption.
    """
    from lambdanets import training
    from lambdanets.console import make_console
    from lambdanets.training.data import recipe_for_data
    from lambdanets.training.display.summary import print_training

    console = make_console()
    choices = {
        "data": data,
        "model": model,
        "image_size": image_size,
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "seed": seed,
        "precision": precision,
        "workers": workers,
    }
    if resume is not None:
        _refuse_with_resume({"recipe": recipe, "output": output, **choices})
        result = training.resume(resume, console=console, checkpoint_every=checkpoint_every, timeout=timeout)
    else:
        chosen = training.get_recipe(recipe or recipe_for_data(data or "digits")).override(**choices)
        result = training.train(
            chosen, output=output, console=console, checkpoint_every=checkpoint_every, timeout=timeout
        )
    if result.main_process:
        print_training(console, result)
    if result.stopped_by is not None:
        raise typer.Exit(128 + result.stopped_by)


def _refuse_with_resume(choices: dict[str, object]) -> None:
    for name, value in choices.items():
        if value is not None:
            option = "--" + name.replace("_", "-")
            raise ValueError(
                f"{option} is {str(value)!r} together with --resume; a resumed run keeps its own choices, leave it out"
            )
