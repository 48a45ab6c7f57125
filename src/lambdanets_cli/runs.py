"""The command ``lambdanets runs``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["runs"]


def runs(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder that contains the runs.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the runs in a folder with their best results, grouped by data and sorted by validation accuracy.

    The validation accuracy is that of the best epoch, and the test accuracy that of its weights. A run is running,
    finished, interrupted (`lambdanets train --resume RUN` continues it), diverged or damaged.

    For example:

      lambdanets runs

      lambdanets runs experiments/ --json
    """
    from lambdanets.console import make_console, print_json
    from lambdanets.training.display.comparison import print_runs
    from lambdanets.training.runs.overview import list_runs

    found = list_runs(folder)
    if as_json:
        print_json([run.to_dict() for run in found])
    else:
        print_runs(make_console(), found)
