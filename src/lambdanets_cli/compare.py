"""The command ``lambdanets compare``."""

from __future__ import annotations

import re
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Annotated

import typer

from lambdanets_cli.options import number, quiet_profiler, refuse_together

if TYPE_CHECKING:
    from lambdanets.experiments.compare.study import Study

__all__ = ["compare", "study_names"]

SEEDS = 3
_STUDIES = Path(__file__).parents[1] / "lambdanets" / "experiments" / "studies"


def study_names() -> list[str]:
    """The names of the studies, of the files that make them, without an import of these."""
    return sorted(module.name for module in iter_modules([str(_STUDIES)]))


def compare(
    study: Annotated[str, typer.Argument(metavar="STUDY", help=f"One of {', '.join(study_names())}.")],
    quick: Annotated[bool, typer.Option("--quick", help="Minutes on two CPU cores instead of hours.")] = False,
    data: Annotated[
        str | None,
        typer.Option(
            help="Images to train on, any that lambdanets train takes except streams.  \\[default: digits, which need "
            "no download; family: none]"
        ),
    ] = None,
    seeds: Annotated[int | None, number(f"Number of trainings per row.  \\[default: {SEEDS}]", least=1)] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ROW",
            help="Only this row and the one it is compared with; can be given several times.",
        ),
    ] = None,
    epochs: Annotated[
        int | None, number("Passes over the training images.  \\[default: depends on their number]", least=1)
    ] = None,
    jobs: Annotated[
        int | None,
        number("Number of cells run in parallel.  \\[default: one per CPU core; 1 with a GPU]", least=1),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="slurm|local", help="Run the cells as cluster jobs with submitit (pip install '.\\[cluster]')."
        ),
    ] = None,
    job: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="A submitit parameter for --cluster, such as timeout_min=600; can be given several times.",
        ),
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for the results, with a subfolder for each study.")] = Path(
        "compare-results"
    ),
    report: Annotated[
        bool,
        typer.Option(
            "--report",
            help="Run nothing, only write the report of the existing cells: those of --quick, --data and --epochs, or "
            "of the most frequent kind.",
        ),
    ] = False,
) -> None:
    """Run a comparison: the paper's experiments, and more. Its report is an HTML page with tables and plots.

    Each cell of a study (a row and a seed, or a measurement) is one file in OUTPUT/STUDY/cells. If a study was stopped,
    by Ctrl-C or otherwise, the same command continues it; existing cells are not run again.

    For example:

      lambdanets compare layers --quick

      lambdanets compare layers --data cifar10/ --only lambda --only 'global attention'
    """
    if report:
        given = {"--seeds": seeds, "--only": only, "--jobs": jobs, "--cluster": cluster, "--job": job}
        refuse_together(given, "--report, which runs nothing")
    if job and cluster is None:
        raise ValueError(f"--job is {job[0]!r}, for jobs of a cluster; give --cluster too, or leave it out")
    parameters = dict(_parameter(word) for word in job or ())
    quiet_profiler()
    import torch

    from lambdanets.console import make_console
    from lambdanets.experiments.compare.cell import Wanted
    from lambdanets.experiments.compare.grid import run_cells
    from lambdanets.experiments.compare.study import Options, StoppedError, check_images, choose_rows, inspect
    from lambdanets.experiments.compare.workers import Cluster
    from lambdanets.experiments.report.study_report import check_place, report_cells
    from lambdanets.experiments.studies import get_study
    from lambdanets.provenance import usable_cores

    chosen, console, folder = get_study(study), make_console(), output / study
    spec = chosen.default_data if data is None and not report else data
    _refuse_idle_options(chosen, data, epochs, seeds)
    facts = None if spec is None else inspect(spec)
    if report:
        wanted = Wanted("quick" if quick else None, facts.fingerprint if facts else None, epochs)
        report_cells(chosen, folder, console, wanted=wanted)
        return
    options = Options(quick=quick, seeds=seeds or SEEDS, only=tuple(only or ()), data=facts, epochs=epochs)
    choose_rows(chosen, options)
    jobs = jobs or (1 if torch.accelerator.is_available() else usable_cores())
    to = None if cluster is None else Cluster(cluster, parameters)
    check_place(folder)
    check_images(spec)
    try:
        done = run_cells(chosen, options, folder, jobs, console, to)
    except StoppedError as error:
        raise typer.Exit(128 + error.number) from None
    report_cells(chosen, folder, console, like=done)


def _refuse_idle_options(study: Study, data: str | None, epochs: int | None, seeds: int | None) -> None:
    """Raise a ValueError for options that mean nothing to a study."""
    no_images = data is None and study.default_data is None
    if data is not None and not study.takes_data:
        raise ValueError(f"--data is {data!r}, and the study {study.name} has no data; leave it out")
    if seeds is not None and no_images and not study.trains_without_data:
        remedy = "give --data, or leave it out" if study.takes_data else "leave it out"
        raise ValueError(f"--seeds is {seeds}, and the study {study.name} trains nothing here; {remedy}")
    if epochs is not None and no_images:
        trains = "trains nothing without --data" if study.takes_data else "trains on no images"
        raise ValueError(f"--epochs is {epochs}, and the study {study.name} {trains}; leave it out")


def _parameter(word: str) -> tuple[str, bool | float | str]:
    """A parameter of a job: "timeout_min=600"."""
    name, sign, value = word.partition("=")
    if not (name.isidentifier() and sign and value):
        raise ValueError(f"--job is {word!r}; give NAME=VALUE, as timeout_min=600")
    if value.lower() in ("true", "false"):
        return name, value.lower() == "true"
    for kind, digits in ((int, r"[+-]?\d+"), (float, r"[+-]?(\d+\.\d*|\.\d+)")):
        if re.fullmatch(digits, value, re.ASCII):
            return name, kind(value)
    return name, value
