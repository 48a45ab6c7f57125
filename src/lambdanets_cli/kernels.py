"""The command ``lambdanets kernels``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from lambdanets_cli.options import number

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console
    from rich.table import Table

    from lambdanets.kernels.grid.contract import GridProblem

__all__ = ["kernels"]


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
        str | None,
        typer.Option(help="Scope of a local context, odd: one number, or one per axis.  \\[default: global]"),
    ] = None,
    heads: Annotated[int, number("Number of heads.", least=1)] = 4,
    dim_key: Annotated[int, number("Query depth k.", least=1)] = 16,
    intra_depth: Annotated[int, number("Intra-depth u.", least=1)] = 1,
    causal: Annotated[
        bool, typer.Option("--causal", help="Each position sees itself and the positions before it.")
    ] = False,
    dtype: Annotated[str, typer.Option(help="float32, float64, bfloat16 or float16.")] = "float32",
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda.  \\[default: cuda if available, otherwise cpu]")
    ] = None,
) -> None:
    """Show all kernels for a shape: whether each can run, its estimated cost, and which one is chosen.

    Costs are estimated with the constants of the package, or of this machine after `lambdanets bench --calibrate`.

    For example:

      lambdanets kernels --shape 8,14,14,256

      lambdanets kernels --shape 1,4096,256 --causal

      lambdanets kernels --shape 4,28,28,128 --scope 7
    """
    batch, *grid, dim = _numbers(shape)
    if dtype not in _DTYPES:
        raise ValueError(f"--dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}")
    scopes = None if scope is None else _scopes(scope, len(grid))
    if dim % heads:
        raise ValueError(f"--heads must divide the channels {dim} of --shape, got {heads}")
    if device not in (None, "cpu", "cuda"):
        raise ValueError(f"--device must be cpu or cuda, got {device!r}")
    import torch

    from lambdanets.console import make_console
    from lambdanets.experiments.bench.constants import device_name, where_from
    from lambdanets.kernels.grid.contract import GridProblem
    from lambdanets.names import count

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    extents = scopes or tuple(2 * size - 1 for size in grid)
    origin = [extent // 2 for extent in extents]
    if causal:
        extents = (origin[0] + 1, *extents[1:])
    sizes = (batch, heads, dim_key, dim // heads, intra_depth)
    problem = GridProblem.of(*sizes, grid, extents, origin, getattr(torch, dtype), device)
    console = make_console()
    where = ("causal, " if causal else "") + ("global" if scope is None else f"scope {scope}")
    threads = torch.get_num_threads()
    console.print(
        f"{where}, {'x'.join(map(str, grid))} positions, {dim} channels, batch {batch}, {dtype}\n"
        + device_name(device)
        + (f", {count(threads, 'thread', 'threads')}" if device == "cpu" else "")
    )
    _print_choice(console, problem)
    console.print(where_from(device))
    if device == "cpu":
        console.print("Times are estimates; `lambdanets bench --calibrate` fits them to this machine.")


def _print_choice(console: Console, problem: GridProblem) -> None:
    """Print the table of the kernels, and the choice for values of very different sizes where it is another."""
    from lambdanets.kernels.grid.planner import choose_by_sizes
    from lambdanets.kernels.grid.spread import RATIO, answer_unread

    directions, unread = ("forward", "backward"), answer_unread(problem)

    def choices(differ: Callable[[bool], bool]) -> dict[str, str]:
        return {direction: choose_by_sizes(problem, direction == "backward", differ).name for direction in directions}

    usual = choices(lambda channels: bool(unread))
    console.print(_table(problem, usual))
    if unread is not None:
        return
    differing_channels, all_differing = choices(lambda channels: channels), choices(lambda channels: True)
    for direction in directions:
        # In a global context every query sees all values: there they are compared for the gradients alone.
        values = "" if problem.sees_everything and direction == "forward" else "values of a channel or "
        for what, others in (("channels", differing_channels), (f"{values}entries of the table", all_differing)):
            if others[direction] != usual[direction]:
                console.print(
                    f"Where {what} differ in size by a factor above {RATIO}, {direction} takes {others[direction]} "
                    "instead."
                )


def _table(problem: GridProblem, chosen: dict[str, str]) -> Table:
    """Return the estimated times of every kernel, or its reason; ``chosen`` is a kernel's name by direction."""
    from rich.table import Table
    from rich.text import Text

    from lambdanets.kernels.grid.planner import explain

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
            Text(f"chosen for {' and '.join(marks)}" if marks else "", style="bold green"),
        )
    return table
