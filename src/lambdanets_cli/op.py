"""The commands about the op: ``lambdanets kernels`` and ``lambdanets bench``."""

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

__all__ = ["bench", "kernels"]

_DTYPES = ("float32", "float64", "bfloat16", "float16")


def _numbers(shape: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in shape.replace("x", ",").split(","))
    except ValueError:
        numbers = ()
    if len(numbers) not in (3, 4, 5) or any(number < 1 for number in numbers):
        raise ValueError(
            f"--shape must be B,LENGTH,DIM or B,HEIGHT,WIDTH,DIM or B,DEPTH,HEIGHT,WIDTH,DIM in positive numbers, "
            f"got {shape!r}; for example --shape 8,14,14,256"
        )
    return numbers


def _scopes(scope: str, rank: int) -> tuple[int, ...]:
    try:
        scopes = tuple(int(part) for part in scope.replace("x", ",").split(","))
    except ValueError:
        scopes = ()
    if len(scopes) not in (1, rank) or any(s < 1 or s % 2 == 0 for s in scopes):
        raise ValueError(
            f"--scope must be odd and positive, one number or one for each of the {rank} axes of --shape, got {scope!r}"
        )
    return scopes * rank if len(scopes) == 1 else scopes


def kernels(
    shape: Annotated[
        str, typer.Option(help="Batch, grid (one to three sizes) and channels, for example 8,14,14,256.")
    ] = "8,14,14,256",
    scope: Annotated[
        str | None, typer.Option(help="Odd scope of a local context, or one for each axis.  \\[default: global]")
    ] = None,
    heads: Annotated[int, typer.Option(help="Number of heads.", min=1)] = 4,
    dim_key: Annotated[int, typer.Option(help="Depth of the queries.", min=1)] = 16,
    intra_depth: Annotated[int, typer.Option(help="Intra-depth u.", min=1)] = 1,
    causal: Annotated[bool, typer.Option("--causal", help="Each position sees those before it only.")] = False,
    dtype: Annotated[str, typer.Option(help="float32, float64, bfloat16 or float16.")] = "float32",
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda.  \\[default: cuda if there is one, else cpu]")
    ] = None,
) -> None:
    """Show every kernel for a shape: whether it can run, what it would cost, and which one is chosen.

    Costs are estimated by constants of the package, or of this machine after `lambdanets bench --calibrate`.

    For example:

      lambdanets kernels --shape 8,14,14,256

      lambdanets kernels --shape 1,4096,256 --causal

      lambdanets kernels --shape 4,28,28,128 --scope 7
    """
    import torch
    from rich.console import Console
    from rich.table import Table

    from lambdanets.experiments.bench.constants import device_name, where_from
    from lambdanets.kernels.grid.contract import GridProblem, reachable_window
    from lambdanets.kernels.grid.planner import choose, explain

    batch, *grid, dim = _numbers(shape)
    if dtype not in _DTYPES:
        raise ValueError(f"--dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}")
    scopes = None if scope is None else _scopes(scope, len(grid))
    if dim % heads:
        raise ValueError(f"--heads must divide the channels {dim} of --shape, got {heads}")
    if device not in (None, "cpu", "cuda"):
        raise ValueError(f"--device must be cpu or cuda, got {device!r}")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    extents = scopes or tuple(2 * size - 1 for size in grid)
    window = reachable_window(extents, tuple(grid), causal)
    problem = GridProblem(
        batch,
        heads,
        dim_key,
        dim // heads,
        intra_depth,
        tuple(grid),
        tuple(stop - start for start, stop in window),
        tuple(extent // 2 - start for extent, (start, _) in zip(extents, window, strict=True)),
        getattr(torch, dtype),
        device,
    )
    chosen = {direction: choose(problem, direction == "backward").name for direction in ("forward", "backward")}
    table = Table("kernel", "forward", "backward", "")
    for verdict in sorted(explain(problem), key=lambda verdict: verdict.forward_seconds):
        if verdict.reason is not None:
            table.add_row(verdict.name, "-", "-", f"cannot run: {verdict.reason}", style="dim")
            continue
        marks = [direction for direction, name in chosen.items() if name == verdict.name]
        table.add_row(
            verdict.name,
            f"{verdict.forward_seconds * 1e3:.2f} ms",
            f"{verdict.backward_seconds * 1e3:.2f} ms",
            f"[bold green]chosen for {' and '.join(marks)}[/]" if marks else "",
        )
    console = Console(emoji=False)
    where = "global" if scope is None else f"scope {scope}"
    shape = f"{where}, {'x'.join(map(str, grid))} positions, {dim} channels, batch {batch}, {dtype}"
    threads = torch.get_num_threads()
    machine = device_name(device) + (f", {threads} thread{'s'[: threads - 1]}" if device == "cpu" else "")
    console.print(f"{shape}\n{machine}", highlight=False)
    console.print(table)
    console.print(where_from(device), highlight=False, markup=False)
    if device == "cpu":
        console.print("Times are estimates; [bold]lambdanets bench --calibrate[/] fits them to this machine.")


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
        _calibrate(console, seconds, output)
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
    "--calibrate": ("--seconds", "--output"),
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


def _calibrate(console: Console, seconds: float | None, output: Path | None) -> None:
    from lambdanets.experiments.bench import calibrate
    from lambdanets.experiments.report import results

    cases = calibrate.CALIBRATION_CASES
    console.print(f"Timing every kernel on {len(cases)} shapes: some minutes.")
    constants = calibrate.calibrate(
        cases, seconds=seconds or 0.2, report=lambda case: console.print(f"  {case.name}", highlight=False)
    )
    path = results.write_calibration(constants, output)
    console.print(
        f"Wrote {path}.", "" if output else "Delete it to go back to the constants of the package.", soft_wrap=True
    )
