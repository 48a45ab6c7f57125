"""The command ``lambdanets bench``."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from lambdanets_cli.options import number, quiet_profiler, stop_insisting

if TYPE_CHECKING:
    from rich.console import Console

    from lambdanets.experiments.bench.bench import Row
    from lambdanets.experiments.bench.cases import Case

    Report = Callable[[Case, list[Row]], None]

__all__ = ["bench"]


def bench(
    quick: Annotated[bool, typer.Option("--quick", help="Only three shapes, in less than a minute.")] = False,
    cases: Annotated[
        str | None, typer.Option(help="Only cases whose name matches a pattern, for example 'global-*,scope7-*'.")
    ] = None,
    seconds: Annotated[
        float | None,
        number(
            "Minimum time for each case and pass (--calibrate: each case).  "
            "\\[default: 2; with --quick or --calibrate: 1]",
            float,
        ),
    ] = None,
    max_seconds: Annotated[
        float | None,
        number(
            "Maximum time; medians that are not known to 10 % by then are marked.  "
            "\\[default: 15; with --quick or --calibrate: 5]",
            float,
        ),
    ] = None,
    noisy: Annotated[
        bool, typer.Option("--noisy", help="Measure again only the cases with a marked row in the files in --output.")
    ] = False,
    growth: Annotated[
        bool, typer.Option("--growth", help="Measure the time as a function of n, from 49 to 16,384, instead.")
    ] = False,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate", help="Fit the planner to this machine instead, and keep the result in the cache folder."
        ),
    ] = False,
    device: Annotated[
        str, typer.Option(help="cpu or cuda; on cuda in bfloat16, with other shapes, also against FlexAttention.")
    ] = "cpu",
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the result files; with --calibrate, the file for the constants.  "
            "\\[default: bench-results; --calibrate: the cache folder]"
        ),
    ] = None,
    table: Annotated[
        Path | None, typer.Option(metavar="CSV", help="Only print the table of a result file as Markdown.")
    ] = None,
) -> None:
    """Compare the speed of the layer with lucidrains' and timm's layers, attention and convolution.

    The outputs and gradients of all lambda layers are compared first. All are then timed in turns. A ratio is the
    median over turns, with a bootstrap interval of 95 %; measuring continues until the interval is within 10 % or the
    time is up. Writes a CSV file that names machine, versions, threads and precision, a table and a plot.

    For example:

      lambdanets bench --quick

      lambdanets bench --cases 'scope7-*' --output results/

      lambdanets bench --calibrate

      lambdanets bench --device cuda --output results/
    """
    given = {
        "--table": table is not None,
        "--calibrate": calibrate,
        "--growth": growth,
        "--device cuda": device == "cuda",
        "--quick": quick,
        "--cases": cases is not None,
        "--seconds": seconds is not None,
        "--max-seconds": max_seconds is not None,
        "--noisy": noisy,
        "--output": output is not None,
    }
    _refuse_ignored([name for name, is_given in given.items() if is_given])
    _check(device, seconds, max_seconds)
    quiet_profiler()
    from lambdanets.console import make_console, print_whole
    from lambdanets.experiments.report.results import table_of

    console = make_console()
    if table is not None:
        print_whole(console, table_of(table))
        return
    if calibrate:
        _calibrate(console, output, _limits(seconds, max_seconds, 1.0, 5.0))
        return
    _need_peers()
    output = output or Path("bench-results")
    limits = _limits(seconds, max_seconds, *((1.0, 5.0) if quick else (2.0, 15.0)))
    kept = _rows_to_keep(output / _FILES[growth, device]) if noisy else []
    if growth:
        _growth(console, output, kept, limits)
    elif device == "cuda":
        _bench_cuda(console, output, cases, quick, kept, limits)
    else:
        _bench(console, output, cases, quick, kept, limits)


def _check(device: str, seconds: float | None, max_seconds: float | None) -> None:
    if device not in ("cpu", "cuda"):
        raise ValueError(f"--device must be cpu or cuda, got {device!r}")
    for name, value in (("--seconds", seconds), ("--max-seconds", max_seconds)):
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} must be above 0 and finite, got {value:g}; leave it out for the default")


_FILES = {(False, "cpu"): "bench.csv", (False, "cuda"): "bench-cuda.csv", (True, "cpu"): "growth.csv"}


def _limits(seconds: float | None, max_seconds: float | None, least: float, most: float) -> tuple[float, float]:
    """Return the least and the most time for the turns of a case; one that is given moves the other's default."""
    if seconds is not None and max_seconds is not None and max_seconds < seconds:
        raise ValueError(f"--max-seconds must be at least --seconds {seconds:g}, got {max_seconds:g}")
    if seconds is None:
        seconds = least if max_seconds is None else min(least, max_seconds)
    return seconds, max(most, seconds) if max_seconds is None else max_seconds


def _rows_to_keep(path: Path) -> list[Row]:
    """Return the rows of an earlier run of which some cases are measured again."""
    from lambdanets.experiments.report.results import noisy_rows, read_rows

    if not path.exists():
        raise FileNotFoundError(f"--noisy needs the file of an earlier run, and {path} does not exist; leave it out")
    kept = read_rows(path)
    if "noisy" not in kept[0]:
        raise ValueError(f"--noisy cannot tell which rows of {path} to measure again: an earlier version wrote it")
    if not noisy_rows(kept):
        raise ValueError(f"--noisy has nothing to do: {path} has no marked row")
    return kept


_Choice = TypeVar("_Choice")


def _only_noisy(kept: list[Row], subject: str, choices: dict[str, _Choice]) -> list[_Choice]:
    """Return those to measure again, by what the column of a marked row says of them; without rows to keep, all."""
    from lambdanets.experiments.report.results import noisy_rows

    marked = {row[subject] for row in noisy_rows(kept)}
    found = [choice for name, choice in choices.items() if not kept or name in marked]
    if not found:
        names = ", ".join(sorted(marked))
        raise ValueError(f"--noisy has nothing to do: the marked rows are of {names}, which are not measured any more")
    return found


# What each way to measure takes beside itself.
_TAKES = {
    "--table": (),
    "--calibrate": ("--seconds", "--max-seconds", "--output"),
    "--growth": ("--seconds", "--max-seconds", "--noisy", "--output"),
    "--noisy": ("--growth", "--device cuda", "--seconds", "--max-seconds", "--output"),
    "--device cuda": ("--quick", "--cases", "--seconds", "--max-seconds", "--noisy", "--output"),
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
    kept: list[Row],
) -> None:
    """Measure, show each case as it ends and write the rows, after Ctrl-C or an error those of the finished cases.

    They replace the rows of the same cases among those that are kept.
    """
    from lambdanets.console import one_line, print_whole
    from lambdanets.experiments.report.results import merged, open_folder

    open_folder(output)
    rows: list[Row] = []
    finished = 0

    def report(case: Case, measured: list[Row]) -> None:
        nonlocal finished
        finished += 1
        rows.extend(measured)
        show(case, measured)
        if kept and finished == 1:
            merged(kept, measured)  # rows that cannot be kept beside these are refused now, not after all cases

    def write_rows() -> None:
        first, *others = write(merged(kept, rows) if kept else rows, output)
        names = ", ".join([str(first), *(file.name for file in others)])
        print_whole(console, f"Wrote {one_line(names)}")

    try:
        run(report)
    except BaseException:  # Ctrl-C, a case without room, a wrong result: what is finished may have taken hours
        stop_insisting()
        console.print(f"\nStopped after {finished} of {total} cases.")
        if rows:
            write_rows()
        raise
    write_rows()


def _bench(
    console: Console, output: Path, pattern: str | None, quick: bool, kept: list[Row], limits: tuple[float, float]
) -> None:
    from lambdanets.experiments.bench import bench
    from lambdanets.experiments.bench.cases import select_cases
    from lambdanets.experiments.report import bench_report, results

    def show(case: Case, rows: list[Row]) -> None:
        compared = bench_report.comparisons(rows)[case.name]
        parts = [
            f"{way} {_milliseconds(rows, way):.1f} ms, "
            + ", ".join(f"{name} {bench_report.times(row)}" for name, row in compared[way].items())
            for way in bench_report.PASSES
        ]
        console.print(f"{case.name}: " + "; ".join(parts))

    def run(on_case: Report) -> None:
        bench.run(selected, seconds=limits[0], max_seconds=limits[1], kernels=not quick, report=on_case)

    selected = _only_noisy(kept, "case", {case.name: case for case in select_cases(pattern, quick)})
    console.print(
        f"{len(selected)} cases; a ratio is the other's time over ours, above 1 we are faster; "
        f"{bench_report.NOISY}: noisy."
    )
    _measure(console, output, len(selected), run, show, results.write_bench, kept)


def _bench_cuda(
    console: Console, output: Path, pattern: str | None, quick: bool, kept: list[Row], limits: tuple[float, float]
) -> None:
    from lambdanets.experiments.bench import gpu
    from lambdanets.experiments.bench.cases import select_cases
    from lambdanets.experiments.bench.constants import device_name
    from lambdanets.experiments.report import results

    gpu.require_cuda()

    def show(case: Case, rows: list[Row]) -> None:
        console.print(case.name)
        for row in rows:
            time = f"{row['median_ms']:.3f} ms" if row["median_ms"] else row["note"]
            console.print(f"  {row['contender']}, {row['pass']}: {time}")

    def run(on_case: Report) -> None:
        gpu.run(selected, seconds=limits[0], max_seconds=limits[1], report=on_case)

    selected = _only_noisy(kept, "case", {case.name: case for case in select_cases(pattern, quick, gpu.GPU_CASES)})
    console.print(f"{len(selected)} cases on {device_name('cuda')}.")
    _measure(console, output, len(selected), run, show, results.write_cuda, kept)


def _milliseconds(rows: list[Row], way: str) -> float:
    return next(float(row["median_ms"]) for row in rows if row["contender"] == "lambdanets" and row["pass"] == way)


def _growth(console: Console, output: Path, kept: list[Row], limits: tuple[float, float]) -> None:
    from lambdanets.experiments.bench import growth
    from lambdanets.experiments.report import results

    def show(case: Case, rows: list[Row]) -> None:
        times = ", ".join(f"{row['contender']} {row['median_ms']:.1f}" for row in rows if row["pass"] == "forward")
        console.print(f"n = {case.positions}: {times} ms forward")

    def run(on_case: Report) -> None:
        growth.run(sizes, seconds=limits[0], max_seconds=limits[1], report=on_case)

    sizes = _only_noisy(kept, "positions", {str(size**2): size for size in growth.SIZES})
    console.print(f"{len(sizes)} sizes, three visits of each; times are shown at the last.")
    _measure(console, output, len(sizes), run, show, results.write_growth, kept)


def _calibrate(console: Console, output: Path | None, limits: tuple[float, float]) -> None:
    from lambdanets.console import one_line, print_whole
    from lambdanets.experiments.bench import calibrate
    from lambdanets.experiments.report import results
    from lambdanets.files import check_file, check_folder, make_folder
    from lambdanets.kernels.grid.costs import cache_file

    file = output or cache_file()
    check_folder(file.parent)
    make_folder(file.parent)
    check_file(file, "--output")
    cases = calibrate.CALIBRATION_CASES
    console.print(f"Timing every kernel on {len(cases)} shapes: some minutes.")
    constants = calibrate.calibrate(
        cases,
        seconds=limits[0],
        max_seconds=limits[1],
        report=lambda case: console.print(f"  {case.name}"),
    )
    path = results.write_calibration(constants, output)
    back = "" if output else " Delete it to go back to the constants of the package."
    print_whole(console, f"Wrote {one_line(path)}.{back}")
