"""The command ``lambdanets bench``."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from lambdanets.experiments.bench.bench import Row
    from lambdanets.experiments.bench.cases import Case

    Report = Callable[[Case, list[Row]], None]

__all__ = ["bench"]


def bench(
    quick: Annotated[bool, typer.Option("--quick", help="Three shapes, within a minute.")] = False,
    cases: Annotated[str | None, typer.Option(help="Only cases whose name matches, for example 'global-*'.")] = None,
    seconds: Annotated[
        float | None, typer.Option(help="Time for each contender and pass.  \\[default: 1; --quick 0.3]")
    ] = None,
    growth: Annotated[bool, typer.Option("--growth", help="Time against n from 49 to 16,384 instead.")] = False,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Fit the planner to this machine instead; kept in the cache folder.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, or cuda: bfloat16 and other shapes, beside FlexAttention.")] = "cpu",
    output: Annotated[Path | None, typer.Option(help="Folder of the result files.  \\[default: bench-results]")] = None,
    table: Annotated[
        Path | None, typer.Option(metavar="CSV", help="Only print the table of a result file, as Markdown.")
    ] = None,
) -> None:
    """Measure the layer beside lucidrains' and timm's, attention and convolution, turn by turn in one run.

    The outputs and gradients of all lambda layers are compared first. Writes a CSV that names machine, versions,
    threads and precision, a table and a plot.

    For example:

      lambdanets bench --quick

      lambdanets bench --cases 'scope7-*' --output results/

      lambdanets bench --calibrate

      lambdanets bench --device cuda --output results/
    """
    from rich.console import Console

    given = {
        "--table": table is not None,
        "--calibrate": calibrate,
        "--growth": growth,
        "--device cuda": device == "cuda",
        "--quick": quick,
        "--cases": cases is not None,
        "--seconds": seconds is not None,
        "--output": output is not None,
    }
    _refuse_ignored([name for name, is_given in given.items() if is_given])
    if device not in ("cpu", "cuda"):
        raise ValueError(f"--device must be cpu or cuda, got {device!r}")
    if seconds is not None and not 0 < seconds < math.inf:
        raise ValueError(f"--seconds must be above 0 and finite, got {seconds:g}; leave it out for the default")
    # PyTorch's profiler, which counts the memory, reports every start and stop on the terminal. Read on import.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    from lambdanets.experiments.report.results import open_folder, table_of

    console = Console(emoji=False)
    if table is not None:
        print(table_of(table))
    elif calibrate:
        _calibrate(console, seconds)
    else:
        _need_peers()
        output = output or Path("bench-results")
        open_folder(output)
        if growth:
            _growth(console, output, seconds)
        elif device == "cuda":
            _bench_cuda(console, output, cases, quick, seconds)
        else:
            _bench(console, output, cases, quick, seconds)


# What each way to measure takes beside itself.
_TAKES = {
    "--table": (),
    "--calibrate": ("--seconds",),
    "--growth": ("--seconds", "--output"),
    "--device cuda": ("--quick", "--cases", "--seconds", "--output"),
}


def _refuse_ignored(given: list[str]) -> None:
    for way, takes in _TAKES.items():
        ignored = [option for option in given if way in given and option not in (way, *takes)]
        if ignored:
            raise ValueError(f"{ignored[0]} means nothing together with {way}; leave one of them out")


def _need_peers() -> None:
    import importlib.util

    if importlib.util.find_spec("lambda_networks") is None:
        raise ValueError(
            "the benchmark compares with lucidrains' layer, and the package lambda-networks is not installed: "
            "pip install 'lambdanets[test]'"
        )


def _measure(
    console: Console,
    output: Path,
    total: int,
    run: Callable[[Report], object],
    show: Report,
    write: Callable[[list[Row], Path], list[Path]],
) -> None:
    """Measures, shows each case as it ends and writes the rows; on Ctrl-C those of the cases that were finished."""
    rows: list[Row] = []
    finished = 0

    def report(case: Case, measured: list[Row]) -> None:
        nonlocal finished
        finished += 1
        rows.extend(measured)
        show(case, measured)

    def write_rows() -> None:
        first, *others = write(rows, output)
        names = ", ".join([str(first), *(file.name for file in others)])
        console.print(f"Wrote {names}", highlight=False, markup=False, soft_wrap=True)

    try:
        run(report)
    except KeyboardInterrupt:
        console.print(f"\nInterrupted after {finished} of {total} cases.", highlight=False)
        if rows:
            write_rows()
        raise
    write_rows()


def _bench(console: Console, output: Path, pattern: str | None, quick: bool, seconds: float | None) -> None:
    from lambdanets.experiments.bench import bench
    from lambdanets.experiments.bench.cases import select_cases
    from lambdanets.experiments.report import report, results

    def show(case: Case, rows: list[Row]) -> None:
        times = report.ratios(rows)[case.name]
        parts = [
            f"{way} {_milliseconds(rows, way):.1f} ms, "
            + ", ".join(f"{name} {ratio:.2f}x" for name, ratio in times[way].items())
            for way in report.PASSES
        ]
        console.print(f"[bold]{case.name}[/]: " + "; ".join(parts), highlight=False)

    def run(on_case: Report) -> None:
        bench.run(selected, seconds=seconds or (0.3 if quick else 1.0), kernels=not quick, report=on_case)

    selected = select_cases(pattern, quick)
    console.print(f"{len(selected)} cases; a ratio is the other's time over ours, above 1 we are faster.")
    _measure(console, output, len(selected), run, show, results.write_bench)


def _bench_cuda(console: Console, output: Path, pattern: str | None, quick: bool, seconds: float | None) -> None:
    from lambdanets.experiments.bench import gpu
    from lambdanets.experiments.bench.cases import select_cases
    from lambdanets.experiments.bench.constants import device_name
    from lambdanets.experiments.report import results

    gpu.require_cuda()

    def show(case: Case, rows: list[Row]) -> None:
        console.print(f"[bold]{case.name}[/]")
        for row in rows:
            time = f"{row['median_ms']:.3f} ms" if row["median_ms"] else row["note"]
            console.print(f"  {row['contender']}, {row['pass']}: {time}", highlight=False)

    def run(on_case: Report) -> None:
        gpu.run(selected, seconds=seconds or (0.2 if quick else 0.5), report=on_case)

    selected = select_cases(pattern, quick, gpu.GPU_CASES)
    console.print(f"{len(selected)} cases on {device_name('cuda')}.", highlight=False)
    _measure(console, output, len(selected), run, show, results.write_cuda)


def _milliseconds(rows: list[Row], way: str) -> float:
    return next(float(row["median_ms"]) for row in rows if row["contender"] == "lambdanets" and row["pass"] == way)


def _growth(console: Console, output: Path, seconds: float | None) -> None:
    from lambdanets.experiments.bench import growth
    from lambdanets.experiments.report import results

    def show(case: Case, rows: list[Row]) -> None:
        times = ", ".join(f"{row['contender']} {row['median_ms']:.1f}" for row in rows if row["pass"] == "forward")
        console.print(f"n = {case.positions}: {times} ms forward", highlight=False)

    def run(on_case: Report) -> None:
        growth.run(growth.SIZES, seconds=seconds or 0.5, report=on_case)

    _measure(console, output, len(growth.SIZES), run, show, results.write_growth)


def _calibrate(console: Console, seconds: float | None) -> None:
    from lambdanets.experiments.bench import calibrate
    from lambdanets.experiments.report import results

    cases = calibrate.CALIBRATION_CASES
    console.print(f"Timing every kernel on {len(cases)} shapes: some minutes.")
    constants = calibrate.calibrate(
        cases, seconds=seconds or 0.2, report=lambda case: console.print(f"  {case.name}", highlight=False)
    )
    path = results.write_calibration(constants)
    console.print(f"Wrote {path}. Delete it to go back to the constants of the package.", soft_wrap=True)
