"""The command ``lambdanets adopt``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lambdanets_cli.options import number

if TYPE_CHECKING:
    from rich.console import Console

    from lambdanets.interop.adopt.migrate import Migration

__all__ = ["adopt"]


def adopt(
    checkpoint: Annotated[
        Path | None,
        typer.Argument(metavar="[CHECKPOINT]", help="File of weights: safetensors, or written by torch.save."),
    ] = None,
    origin: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="MODEL",
            help="Model of the weights: timm:NAME, or python:MODULE:FUNCTION for a function that creates it.",
        ),
    ] = "",
    output: Annotated[
        Path | None, typer.Option(metavar="FILE.safetensors", help="Write the adopted weights to this file.")
    ] = None,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Use timm's published weights instead of a CHECKPOINT.")
    ] = False,
    num_classes: Annotated[
        int | None, number("Number of classes of the model.  \\[default: the checkpoint's]", least=1)
    ] = None,
    image_size: Annotated[
        int | None, number("Side of the random images for the comparison.  \\[default: the model's]", least=1)
    ] = None,
    faithful: Annotated[
        bool,
        typer.Option(
            "--faithful",
            help="Reproduce leaderj1001's layers with u > 1 exactly: they read their values in two orders.",
        ),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
) -> None:
    """Put this library's lambda layers into another implementation's model, and compare its outputs before and after.

    Supports the lambda layers of timm, lucidrains, d-li14 and leaderj1001, in any model. A model of this library, such
    as timm:lambda_resnet50_llll, loads checkpoints of these implementations directly. Outputs are compared on two
    random images in float32 and float64; if they differ, no file is written and the exit code is 1.

    For example:

      lambdanets adopt lambda_resnet26t.pth --from timm:lambda_resnet26t --output adopted.safetensors

      lambdanets adopt --pretrained --from timm:lambda_resnet26t

      lambdanets adopt resnet50.pth --from timm:lambda_resnet50_llll --output ours.safetensors

      lambdanets adopt resnet50.pth --from python:lambda_resnet:lambda_resnet50
    """
    if not origin:
        raise ValueError("--from must name the model of the weights, for example --from timm:lambda_resnet26t")
    if (checkpoint is None) != pretrained:
        given = "neither" if checkpoint is None else "both"
        raise ValueError(f"exactly one of CHECKPOINT and --pretrained must be given, got {given}")
    if overwrite and output is None:
        raise ValueError("--overwrite is for a file that --output names; give --output too, or leave it out")
    if output is not None:
        _check_output(output, checkpoint, overwrite)
    from lambdanets.console import make_console, print_whole
    from lambdanets.interop.adopt.migrate import migrate

    console = make_console(soft_wrap=True)
    migration = migrate(
        checkpoint, origin, num_classes=num_classes, image_size=image_size, faithful=True if faithful else None
    )
    console.print(str(migration.report))
    _print_comparison(console, migration)
    if not migration.equal:
        what = "differ" if migration.finite else "are not finite numbers, which nothing can be compared with"
        print_whole(make_console(stderr=True), f"Error: the outputs {what}; nothing was written", style="bold red")
        raise typer.Exit(1)
    if output is None:
        console.print("Nothing was written; --output FILE.safetensors writes the adopted weights.")
    else:
        _write(console, migration, output, checkpoint, origin)


def _check_output(output: Path, checkpoint: Path | None, overwrite: bool) -> None:
    if output.suffix != ".safetensors":
        raise ValueError(f"--output must end in .safetensors, got {str(output)!r}")
    from lambdanets.files import check_file

    check_file(output, "--output")
    if output.exists() and not overwrite:
        raise ValueError(f"--output {output} exists already; give another name, or --overwrite to replace it")
    if checkpoint is not None and output.exists() and checkpoint.exists() and output.samefile(checkpoint):
        raise ValueError(f"--output {output} is the checkpoint itself; give another name")


def _print_comparison(console: Console, migration: Migration) -> None:
    if not migration.comparisons:
        console.print(
            "The model has this library's layers from the start: there are no outputs before to compare with. "
            "--from python:MODULE:FUNCTION with the original's own code compares."
        )
        return
    console.print(f"\nOutputs before and after, on random images {'x'.join(map(str, migration.images))}:")
    for each in migration.comparisons:
        verdict = "equal" if each.equal else "DIFFERENT"
        console.print(
            f"  {each.dtype}  largest difference {each.difference:.1e}, largest output {each.scale:.2g}: "
            f"{verdict} (within {each.tolerance:.0e}, relative above 1)"
        )
    if migration.equal and not migration.telling:
        console.print(
            "  Not one bit differs: with these weights the outputs do not seem to depend on the lambda layers, as in a "
            "model that was never trained. The differences of the layers themselves, above, tell more."
        )


def _write(console: Console, migration: Migration, output: Path, checkpoint: Path | None, origin: str) -> None:
    from lambdanets import __version__
    from lambdanets.console import one_line
    from lambdanets.training.runs.model import save_weights

    metadata: dict[str, object] = {
        "format": "pt",
        "library": f"lambdanets {__version__}",
        "adopted_from": origin,
        "checkpoint": checkpoint.name if checkpoint else "published by timm",
    }
    for each in migration.comparisons:
        metadata[f"difference_{each.dtype}"] = f"{each.difference:.3g}"
    replaced = output.exists()
    save_weights(output, migration.model.state_dict(), metadata)
    console.print(f"\n{'Replaced' if replaced else 'Wrote'} {one_line(output)}. In Python:")
    for line in _how_to_load(migration, output, origin):
        console.print(f"  {line}")


def _how_to_load(migration: Migration, output: Path, origin: str) -> list[str]:
    from lambdanets.interop import Adoption

    kind, _, name = origin.partition(":")
    classes = getattr(migration.model, "num_classes", None)
    if kind == "timm":
        lines = [f"model = timm.create_model({name!r}" + (f", num_classes={classes})" if classes else ")")]
    else:
        module, _, function = name.partition(":")
        lines = [f"from {module} import {function}", f"model = {function}(...)"]
    if isinstance(migration.report, Adoption):
        faithful = ", faithful=True" if any(layer.faithful for layer in migration.report.adopted) else ""
        lines.append(f"model = lambdanets.adopt(model{faithful}).model")
    return [*lines, f"lambdanets.load_weights(model, {str(output)!r})"]
