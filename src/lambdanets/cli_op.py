"""The commands about the op: ``lambdanets kernels`` and ``lambdanets bench``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from lambdanets.experiments.bench import Row
    from lambdanets.experiments.cases import Case

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


def kernels(
    shape: Annotated[
        str, typer.Option(help="Batch, grid (one to three sizes) and channels, for example 8,14,14,256.")
    ] = "8,14,14,256",
    scope: Annotated[int | None, typer.Option(help="Odd scope of a local context.  \\[default: global]")] = None,
    heads: Annotated[int, typer.Option(help="Number of heads.", min=1)] = 4,
    dim_key: Annotated[int, typer.Option(help="Depth of the queries.", min=1)] = 16,
    intra_depth: Annotated[int, typer.Option(help="Intra-depth u.", min=1)] = 1,
    causal: Annotated[bool, typer.Option("--causal", help="Each position sees those before it only.")] = False,
    dtype: Annotated[str, typer.Option(help="float32, float64, bfloat16 or float16.")] = "float32",
) -> None:
    """Show every kernel for a shape: whether it can run, what it would cost, and which one is chosen.

    For example:

      lambdanets kernels --shape 8,14,14,256

      lambdanets kernels --shape 1,4096,256 --causal

      lambdanets kernels --shape 4,28,28,128 --scope 7
    """
    import torch
    from rich.console import Console
    from rich.table import Table

    from lambdanets.kernels.planner import choose, explain
    from lambdanets.kernels.problem import GridProblem, reachable_window

    batch, *grid, dim = _numbers(shape)
    if dtype not in _DTYPES:
        raise ValueError(f"--dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}")
    if scope is not None and (scope < 1 or scope % 2 == 0):
        raise ValueError(f"--scope must be odd and positive, got {scope}")
    if dim % heads:
        raise ValueError(f"--heads must divide the channels {dim} of --shape, got {heads}")
    extents = tuple(2 * size - 1 if scope is None else scope for size in grid)
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
    console = Console()
    where = "global" if scope is None else f"scope {scope}"
    console.print(f"{where}, {'x'.join(map(str, grid))} positions, {dim} channels, batch {batch}, {dtype}, CPU")
    console.print(table)
    console.print("Estimates of the cost model; [bold]lambdanets bench --calibrate[/] fits it to this machine.")


def bench(
    quick: Annotated[bool, typer.Option("--quick", help="Three shapes, within a minute.")] = False,
    cases: Annotated[str | None, typer.Option(help="Only cases whose name matches, for example 'global-*'.")] = None,
    seconds: Annotated[
        float | None, typer.Option(help="Time for each contender and pass.  \\[default: 1, quick 0.3]", min=0)
    ] = None,
    growth: Annotated[bool, typer.Option("--growth", help="Time against n from 49 to 16,384 instead.")] = False,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Fit the planner to this machine instead; kept in the cache folder.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, or cuda: bfloat16 and other shapes, beside FlexAttention.")] = "cpu",
    output: Annotated[Path, typer.Option(help="Folder of the result files.")] = Path("bench-results"),
    table: Annotated[
        Path | None, typer.Option(metavar="CSV", help="Only print the table of a result file, as Markdown.")
    ] = None,
) -> None:
    """Measure the layer beside lucidrains' and timm's, attention and convolution, turn by turn in one run.

    The outputs of all lambda layers are compared first. Writes a CSV that names machine, versions, threads and
    precision, a table and a plot.

    For example:

      lambdanets bench --quick

      lambdanets bench --cases 'scope7-*' --output results/

      lambdanets bench --calibrate

      lambdanets bench --device cuda --output results/
    """
    from rich.console import Console

    console = Console()
    if table is not None:
        _print_table(table)
        return
    if device not in ("cpu", "cuda"):
        raise ValueError(f"--device must be cpu or cuda, got {device!r}")
    if device == "cuda" and (growth or calibrate):
        raise ValueError("--growth and --calibrate measure on the CPU only; leave --device away")
    if calibrate:
        _calibrate(console, seconds)
        return
    _need_peers()
    if device == "cuda":
        _bench_cuda(console, output, cases, quick, seconds)
        return
    output.mkdir(parents=True, exist_ok=True)
    if growth:
        _growth(console, output, seconds)
    else:
        _bench(console, output, cases, quick, seconds)


def _need_peers() -> None:
    import importlib.util

    if importlib.util.find_spec("lambda_networks") is None:
        raise ValueError(
            "the benchmark compares with lucidrains' layer, and the package lambda-networks is not installed: "
            "pip install 'lambdanets[test]'"
        )


def _bench(console: Console, output: Path, pattern: str | None, quick: bool, seconds: float | None) -> None:
    from lambdanets.experiments import bench, report
    from lambdanets.experiments.cases import select_cases
    from lambdanets.training.files import write_csv, write_text

    def show(case: Case, rows: list[Row]) -> None:
        times = report.ratios(rows)[case.name]
        parts = [
            f"{way} {_milliseconds(rows, way):.1f} ms, "
            + ", ".join(f"{name} {ratio:.2f}x" for name, ratio in times[way].items())
            for way in report.PASSES
        ]
        console.print(f"[bold]{case.name}[/]: " + "; ".join(parts), highlight=False)

    selected = select_cases(pattern, quick)
    console.print(f"{len(selected)} cases; a ratio is the other's time over ours, above 1 we are faster.")
    rows = bench.run(selected, seconds=seconds or (0.3 if quick else 1.0), kernels=not quick, report=show)
    write_csv(output / "bench.csv", rows)
    write_text(output / "bench.md", f"{report.environment_line(rows)}\n\n{report.bench_table(rows)}\n")
    report.plot_bench(rows, output / "bench.png")
    console.print(f"Wrote {output / 'bench.csv'}, bench.md and bench.png.")


def _bench_cuda(console: Console, output: Path, pattern: str | None, quick: bool, seconds: float | None) -> None:
    from lambdanets.experiments import gpu
    from lambdanets.experiments.cases import select_cases
    from lambdanets.training.files import write_csv

    gpu.require_cuda()
    output.mkdir(parents=True, exist_ok=True)

    def show(case: Case, rows: list[Row]) -> None:
        console.print(f"[bold]{case.name}[/]")
        for row in rows:
            time = f"{row['median_ms']:.3f} ms" if row["median_ms"] else row["note"]
            console.print(f"  {row['contender']}, {row['pass']}: {time}", highlight=False)

    selected = select_cases(pattern, quick, gpu.GPU_CASES)
    rows = gpu.run(selected, seconds=seconds or (0.2 if quick else 0.5), report=show)
    write_csv(output / "bench-cuda.csv", rows)
    console.print(f"Wrote {output / 'bench-cuda.csv'}, which names the card: {rows[0]['card']}.")


def _milliseconds(rows: list[Row], way: str) -> float:
    return next(float(row["median_ms"]) for row in rows if row["contender"] == "lambdanets" and row["pass"] == way)


def _growth(console: Console, output: Path, seconds: float | None) -> None:
    from lambdanets.experiments import growth, report
    from lambdanets.training.files import write_csv, write_text

    def show(case: Case, rows: list[Row]) -> None:
        times = ", ".join(f"{row['contender']} {row['median_ms']:.1f}" for row in rows if row["pass"] == "forward")
        console.print(f"n = {case.positions}: {times} ms forward", highlight=False)

    rows = growth.run(seconds=seconds or 0.5, report=show)
    write_csv(output / "growth.csv", rows)
    write_text(output / "growth.md", f"{report.environment_line(rows)}\n\n{report.growth_table(rows)}\n")
    report.plot_growth(rows, output / "growth.png")
    console.print(f"Wrote {output / 'growth.csv'}, growth.md and growth.png.")


def _calibrate(console: Console, seconds: float | None) -> None:
    from lambdanets.experiments.calibrate import CALIBRATION_CASES, calibrate
    from lambdanets.kernels.costs import cache_file, reload
    from lambdanets.training.files import write_json

    console.print(f"Timing every kernel on {len(CALIBRATION_CASES)} shapes: some minutes.")
    constants = calibrate(seconds=seconds or 0.2, report=lambda case: console.print(f"  {case.name}", highlight=False))
    path = cache_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, constants)
    reload()
    console.print(f"Wrote {path}. Delete it to go back to the constants of the package.", soft_wrap=True)


def _print_table(path: Path) -> None:
    from lambdanets.experiments import report
    from lambdanets.experiments.results import read_rows

    rows = read_rows(path)
    print(report.environment_line(rows) + "\n")
    print(report.compact_table(rows) if "case" in rows[0] else report.growth_table(rows))
