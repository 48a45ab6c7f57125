"""The command ``lambdanets publish``."""

from __future__ import annotations

from typing import Annotated

import typer

from lambdanets_cli.options import RunFolder

__all__ = ["publish"]


def publish(
    run: RunFolder,
    to: Annotated[
        str,
        typer.Option(
            metavar="PLACE",
            help="hf-hub:USER/NAME, a repository on the Hugging Face hub, or local-dir:FOLDER, a new or empty folder.",
        ),
    ],
    checkpoint: Annotated[str, typer.Option(help="Weights to publish: best or last.")] = "best",
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
) -> None:
    """Publish the model of a run for timm to load, with its input transform, classes and a model card.

    Before anything is published, the model is read back and compared with that of the run.

    For example:

      lambdanets publish runs/my-run --to hf-hub:me/my-model

      lambdanets publish runs/my-run --to local-dir:my-model
    """
    from lambdanets.console import make_console, one_line, print_whole
    from lambdanets.training.inference.publish import publish_run

    name = publish_run(run, to, checkpoint=checkpoint, private=private)
    console = make_console()
    print_whole(console, "Published. In Python:")
    print_whole(console, "  import timm, lambdanets")
    print_whole(console, f"  model = timm.create_model({one_line(repr(name))}, pretrained=True)")
