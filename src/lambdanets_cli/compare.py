"""The command ``lambdanets compare``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from lambdanets_cli.options import Debug

__all__ = ["compare"]


def compare(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="layers, placement, ablation, scope or memory.")],
    quick: Annotated[bool, typer.Option("--quick", help="Minutes on two CPU cores instead of hours.")] = False,
    data: Annotated[
        str | None,
        typer.Option(
            help="Images to train on, as of lambdanets train.  \\[default: digits, which come with the install]"
        ),
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Trainings of each row.  \\[default: 3; --quick 2]", min=1)] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="ROW", help="Only this row of the study, and the first one; may be given several times."),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the training images.  \\[default: by their number]", min=1)
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(help="Cells at the same time.  \\[default: one a CPU core; 1 with a GPU]", min=1)
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder of the results; each study has one in it.")] = Path(
        "compare-results"
    ),
    report: Annotated[
        bool, typer.Option("--report", help="Run nothing, only write the report of the cells that are there.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Run one of the paper's experiments and write its report, one HTML page with tables and plots.

    Each cell of a study (a row and a seed, a measurement) is one file in OUTPUT/STUDY/cells. A study that was stopped
    with Ctrl-C or otherwise goes on with the same command; cells that are there are not run again.

    For example:

      lambdanets compare layers --quick

      lambdanets compare layers --data cifar10/ --only lambda --only 'global attention'
    """
    # See lambdanets bench: PyTorch's profiler reports on the terminal otherwise.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    import torch

    from lambdanets.console import make_console, one_line, print_whole
    from lambdanets.experiments.compare.cell import coherent, read_cells
    from lambdanets.experiments.compare.grid import run_cells
    from lambdanets.experiments.compare.study import Options, StoppedError, choose_rows, inspect
    from lambdanets.experiments.report.study_report import write_report
    from lambdanets.experiments.studies import get_study

    chosen, console = get_study(study), make_console()
    if data is not None and not chosen.needs_data:
        raise ValueError(f"--data is {data!r}, and the study {study} has no data; leave it out")
    folder = output / study
    done = []
    if not report:
        options = Options(
            quick=quick,
            seeds=seeds or (2 if quick else 3),
            only=tuple(only or ()),
            data=inspect(data or "digits") if chosen.needs_data else None,
            epochs=epochs,
        )
        choose_rows(chosen, options)
        jobs = jobs or (1 if torch.accelerator.is_available() else os.cpu_count() or 1)
        try:
            done = run_cells(chosen, options, folder, jobs, console)
        except StoppedError as error:
            raise typer.Exit(128 + error.number) from None
    cells, damaged = read_cells(folder)
    for message in damaged:
        print_whole(console, one_line(f"{message}; left out"))
    cells, others = coherent(cells, done)
    if not cells:
        raise ValueError(f"{folder} has no cells of the study {study}; run it without --report")
    warnings = []
    if others:
        warnings.append(f"Left out are {len(others)} cells of another size, other data or another version.")
    if damaged:
        warnings.append(f"Left out are {len(damaged)} damaged files of cells.")
    outcome = chosen.outcome(cells)
    page = write_report(outcome, folder, warnings)
    for claim in outcome.claims:
        word = "no answer" if claim.held is None else "as expected" if claim.held else "not as expected"
        print_whole(console, f"{word}: {claim.text}")
    print_whole(console, f"Report: {page}")
