"""The command ``lambdanets plot``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["plot"]


def plot(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders (written by `lambdanets train`).")],
    output: Annotated[
        Path, typer.Option(help="Output file: .png, .svg or .pdf.  \\[default: runs.png]", show_default=False)
    ] = Path("runs.png"),
) -> None:
    """Plot the curves of several runs in one figure: training loss, validation loss, validation error.

    Each run has the same colour in all three plots, and is labelled with the name of its folder.

    For example:

      lambdanets plot runs/first runs/second

      lambdanets plot runs/* --output comparison.svg
    """
    from lambdanets.console import make_console, one_line, print_whole
    from lambdanets.training.display.comparison import plot_runs

    plot_runs(output, runs)
    print_whole(make_console(), one_line(output))
