"""The command ``lambdanets train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lambdanets_cli.options import number, refuse_together
from lambdanets_cli.recipe_options import chosen, recipe_names, with_recipe_options

__all__ = ["train"]

_EVERY, _TIMEOUT = "10m", 120.0


@with_recipe_options
def train(
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help=f"Base configuration: {', '.join(recipe_names())}; FILE.yaml, as printed by --print-recipe; or "
            "FILE.py, your own program, which sets RECIPE. Other options override it.  \\[default: depends on --data]",
        ),
    ] = None,
    print_recipe: Annotated[
        bool, typer.Option("--print-recipe", help="Print the resulting recipe as YAML and exit.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(help="Run folder to create.  \\[default: runs/<model>-<data>-<time>]"),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Continue a stopped run with its own settings. RUN/checkpoint/NAME continues from that checkpoint.",
        ),
    ] = None,
    checkpoint_every: Annotated[
        str,
        typer.Option(
            metavar="N|MINUTESm",
            help="Steps (500) or minutes (10m) between checkpoints; there is also one at the end of each epoch.",
        ),
    ] = _EVERY,
    timeout: Annotated[
        float,
        number("Seconds without a response before a data or training process is considered dead.", float),
    ] = _TIMEOUT,
    profile: Annotated[
        bool,
        typer.Option(
            "--profile", help="Profile a few of the first steps: show where their time goes, and write a trace."
        ),
    ] = False,
    **choices: str | bool | None,
) -> None:
    """Train a LambdaResNet and test it; without options, a small one on handwritten digits.

    For example:

      lambdanets train

      lambdanets train --data fashion-mnist

      lambdanets train --data my-images/ --image-size 64 --epochs 50

      lambdanets train --init-from runs/other --data my-images/

      lambdanets train --recipe imagenet-90 --print-recipe > mine.yaml

      lambdanets train --resume runs/lambda_resnet_tiny-digits-20260101-120000

      torchrun --nproc-per-node 8 -m lambdanets train --recipe imagenet-90 --data imagenet/

    Every field of a recipe has an option; "none" means no value. The recipe sets the defaults of these options;
    --print-recipe shows them. Ctrl-C and SIGTERM stop the training after the current step and save its state; --resume
    continues from there, to the same result as without the interruption.
    """
    given = chosen(choices)
    if print_recipe:
        idle = {
            "--output": output,
            "--profile": profile,
            "--checkpoint-every": checkpoint_every != _EVERY,
            "--timeout": timeout != _TIMEOUT,
        }
        refuse_together(idle, "--print-recipe, which trains nothing")
    if resume is not None:
        _refuse_with_resume({"recipe": recipe, "output": output, **given})

    from lambdanets import training
    from lambdanets.console import make_console
    from lambdanets.training.engine.checkpoint import split_checkpoint
    from lambdanets.training.recipes.files import write_recipe
    from lambdanets_cli.summary import print_training

    if print_recipe:
        planned = (
            training.plan_recipe(recipe, given)
            if resume is None
            else training.Run.open(split_checkpoint(resume)[0]).recipe
        )
        print(write_recipe(planned), end="")
        return
    console = make_console()
    options: dict[str, Any] = {"checkpoint_every": checkpoint_every, "timeout": timeout, "profile": profile}
    if resume is None:
        result = training.train(training.plan_recipe(recipe, given), output=output, console=console, **options)
    else:
        result = training.resume(resume, console=console, **options)
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
