"""The command ``lambdanets export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lambdanets_cli.options import RunFolder, number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from lambdanets.interop.export import Check, Export

__all__ = ["export"]


def export(
    run: RunFolder,
    format: Annotated[
        str | None,
        typer.Option(help="onnx or torch-export.  \\[default: by the suffix of --output, otherwise onnx]"),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Output file, .onnx or .pt2.  \\[default: best.onnx or best.pt2 in the run folder]"),
    ] = None,
    checkpoint: Annotated[str, typer.Option(help="Weights to export: best or last.")] = "best",
    logits: Annotated[bool, typer.Option("--logits", help="Return logits instead of probabilities.")] = False,
    fixed_size: Annotated[
        bool,
        typer.Option(
            "--fixed-size", help="Accept only images of the run's size, for models that support no other size."
        ),
    ] = False,
    opset: Annotated[int | None, number("ONNX opset, 18 or higher.  \\[default: PyTorch's]")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
) -> None:
    """Export the model of a run to ONNX or torch.export, and check that the file gives the same outputs.

    The file accepts batches and images of any size and returns probabilities. Preprocessing and class names are in
    its metadata, so that it can be used without this package.

    For example:

      lambdanets export runs/my-run

      lambdanets export runs/my-run --format torch-export

      lambdanets export runs/my-run --checkpoint last --output model.onnx --opset 18
    """
    from lambdanets.console import make_console, one_line, print_whole
    from lambdanets.interop.export import ExportDifferenceError
    from lambdanets.training.inference.export import export_run

    console = make_console()
    print_whole(console, f"Exporting {one_line(run)}: tracing, writing and checking take some seconds.")
    try:
        result = export_run(
            run,
            format=format,
            output=output,
            checkpoint=checkpoint,
            logits=logits,
            fixed_size=fixed_size,
            opset=opset,
            overwrite=overwrite,
        )
    except ExportDifferenceError as error:
        _print_checks(console, error.checks)
        raise
    _print_export(console, result)


def _print_export(console: Console, result: Export) -> None:
    from lambdanets.console import one_line, print_whole

    if result.switched:
        count = len(result.switched)
        print_whole(
            console,
            f"{count} lambda layer{'s' if count > 1 else ''} switched to the kernel 'portable' in the file, a "
            f"convolution with the table of offsets: the kernels in use ({_kernels(result)}) have no form outside of "
            "this package.",
        )
    _print_checks(console, result.checks)
    size = result.path.stat().st_size / 2**20
    print_whole(console, f"Wrote {one_line(result.path)} ({size:.1f} MiB)")
    meta = result.metadata
    print_whole(
        console,
        f"  {result.format}: {meta['input']} (batch, channels, height, width) in, {meta['output']} (batch, classes) "
        "out; preprocessing and class names in its metadata",
    )


def _kernels(result: Export) -> str:
    names = sorted({kernel or "the fastest for each size" for kernel in result.switched.values()})
    return " and ".join(names)


def _print_checks(console: Console, checks: Sequence[Check]) -> None:
    from rich.table import Table

    console.print("Largest difference between the outputs of the file and of the model:")
    table = Table()
    table.add_column("height x width", justify="right")
    batches = sorted({check.batch for check in checks})
    for batch in batches:
        table.add_column(f"batch {batch}", justify="right")
    for size in dict.fromkeys((check.height, check.width) for check in checks):
        row = [check for check in checks if (check.height, check.width) == size]
        table.add_row(f"{size[0]} x {size[1]}", *(f"{check.difference:.1e}" for check in row))
    console.print(table)
