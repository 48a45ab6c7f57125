"""The command ``lambdanets``: turns words into calls."""

from __future__ import annotations

import inspect
import os
import sys
import traceback
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer

from lambdanets_cli.adopt import adopt
from lambdanets_cli.export import export
from lambdanets_cli.models import models
from lambdanets_cli.op import bench, kernels

# The modules that do the work take seconds to import, so every command imports its own: --help stays quick.

app = typer.Typer(
    name="lambdanets",
    help="Lambda layers and LambdaResNets: train, evaluate and use them.",
    epilog="Start with: lambdanets train",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_PACKAGES = tuple(str(Path(__file__).parents[1] / name) + os.sep for name in ("lambdanets", "lambdanets_cli"))


def _set_debug(value: bool) -> None:
    if value:
        os.environ["LAMBDANETS_DEBUG"] = "1"


def _show_version(value: bool) -> None:
    if value:
        try:
            print(f"lambdanets {version('lambdanets')}")
        except PackageNotFoundError:
            print("lambdanets (not installed)")
        raise typer.Exit


Debug = Annotated[
    bool,
    typer.Option("--debug", help="Show the traceback of an error (or set LAMBDANETS_DEBUG=1).", callback=_set_debug),
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A folder that `lambdanets train` wrote.")]


@app.callback()
def _options(
    show_version: Annotated[
        bool, typer.Option("--version", help="Show the version.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    pass


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
        typer.Option(metavar="RUN", help="Go on with a run that was stopped; takes no other option."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Train a LambdaResNet and test it; without options: a small one on handwritten digits.

    For example:

      lambdanets train

      lambdanets train --data fashion-mnist

      lambdanets train --data my-images/ --image-size 64 --epochs 50

      lambdanets train --resume runs/lambda_resnet_tiny-digits-20260101-120000

      torchrun --nproc-per-node 8 -m lambdanets_cli.app train --recipe imagenet-90 --data imagenet/

    Ctrl-C ends the training at the next step and keeps the best weights so far.
    """
    from rich.console import Console

    from lambdanets import training
    from lambdanets.training.data import recipe_for_data
    from lambdanets.training.display.summary import print_training

    console = Console(emoji=False)
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
        result = training.resume(resume, console=console)
    else:
        chosen = training.get_recipe(recipe or recipe_for_data(data or "digits")).override(**choices)
        result = training.train(chosen, output=output, console=console)
    if result.main_process:
        print_training(console, result)
    if result.stopped_by is not None:
        raise typer.Exit(128 + result.stopped_by)


def evaluate(
    run: RunFolder,
    data: Annotated[
        str | None,
        typer.Option(help="Other data with the same classes.  \\[default: the run's]"),
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

    Writes evaluation.json, confusion.csv and confusion.png.

    For example:

      lambdanets evaluate runs/lambda_resnet_tiny-digits-20260101-120000
    """
    import json

    from rich.console import Console

    from lambdanets import training
    from lambdanets.training.display.summary import print_evaluation

    result = training.evaluate_run(run, data=data, output=output, batch_size=batch_size, workers=workers)
    if not result.main_process:
        return
    if as_json:
        print(json.dumps({"part": result.part, **result.scores.to_dict()}, indent=2))
    else:
        print_evaluation(Console(emoji=False), result)


def predict(
    run: RunFolder,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Image files of any size.")],
    top: Annotated[int, typer.Option(help="How many classes to show.", min=1)] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    debug: Debug = False,
) -> None:
    """Say what is in images: the most probable classes by a run's best weights.

    Images are converted and resized as those of the training were, and not changed otherwise: a model of the
    digits knows bright strokes on black, not pencil on paper.

    For example:

      lambdanets predict runs/lambda_resnet_tiny-digits-20260101-120000 seven.png

      lambdanets predict runs/my-run photos/*.jpg --top 1 --json
    """
    import json

    from rich.console import Console

    from lambdanets import training
    from lambdanets.training.display.summary import print_predictions

    predictions = training.predict_images(run, images, top=top)
    if as_json:
        print(json.dumps([prediction.to_dict() for prediction in predictions], indent=2, ensure_ascii=False))
    else:
        print_predictions(Console(emoji=False), predictions)


def _paragraphs(function: Callable[..., None]) -> str:
    """A docstring for terminals of every width: paragraphs without line ends, examples as they are."""
    paragraphs = inspect.cleandoc(function.__doc__ or "").split("\n\n")
    return "\n\n".join(text if text.startswith(" ") else text.replace("\n", " ") for text in paragraphs)


def _refuse_with_resume(choices: dict[str, object]) -> None:
    for name, value in choices.items():
        if value is not None:
            option = "--" + name.replace("_", "-")
            raise ValueError(
                f"{option} is {str(value)!r} together with --resume; a resumed run keeps its own choices, leave it out"
            )


def _is_ours(error: BaseException) -> bool:
    """Whether an error was raised by this package's own checks, not by a fault further down."""
    last = traceback.extract_tb(error.__traceback__)[-1].filename
    if last.startswith(_PACKAGES):
        return True
    # An error in a data worker arrives as text, with the worker's traceback in its message.
    files = [line.split('"')[1] for line in str(error).splitlines() if line.lstrip().startswith('File "')]
    return bool(files) and files[-1].startswith(_PACKAGES)


def _message(error: BaseException) -> str:
    text = str(error)
    if "Original Traceback" in text:
        last = [line for line in text.splitlines() if line.strip() and not line.startswith(" ")][-1]
        return last.partition(": ")[2]
    return text


for _function in (train, evaluate, predict, adopt, export, kernels, bench, models):
    app.command(help=_paragraphs(_function))(_function)


def main() -> None:
    """The command's entry point.

    Exit codes: 0 done; 1 the loss diverged; 2 wrong input, told in one message; 130 Ctrl-C. Other errors are
    faults and show their traceback.
    """
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if os.environ.get("LAMBDANETS_DEBUG", "0") not in ("", "0"):
            raise
        diverged = type(error).__name__ == "TrainingDivergedError"
        # An OSError tells what the machine refused: a full disk, a folder that may not be written.
        told = isinstance(error, (ValueError, TypeError, ImportError)) and _is_ours(error)
        if not (diverged or told or isinstance(error, OSError)):
            raise
        from rich.console import Console

        Console(stderr=True, emoji=False).print(
            f"Error: {_message(error)}", style="bold red", highlight=False, markup=False, soft_wrap=True
        )
        sys.exit(1 if diverged else 2)


if __name__ == "__main__":
    main()
