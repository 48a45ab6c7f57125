"""The command ``lambdanets models``: the family and its costs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from lambdanets.models import ModelCost

__all__ = ["models"]

_COUNTS = ("params (M)", "mult-adds (G)", "activations (M)")


def models(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="List the stages of this model of timm's registry.  \\[default: list all LambdaResNets]",
        ),
    ] = None,
    image_size: Annotated[
        str | None, typer.Option(help="SIDE or HEIGHTxWIDTH in pixels.  \\[default: each model's own]")
    ] = None,
    stages: Annotated[
        str | None,
        typer.Option(help="Another placement, such as CLLL or C-C-CL-L; only with NAME.", metavar="PLACEMENT"),
    ] = None,
    count_padding: Annotated[
        bool, typer.Option("--count-padding", help="Count local lambda layers as padded convolutions, m = scope².")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    csv: Annotated[Path | None, typer.Option(help="Also write the table to this file.")] = None,
) -> None:
    """List the LambdaResNets with their costs, or the stages of one model, which is not built for it.

    Costs are for one image: multiply-adds of matrix products and convolutions, and activations, the output elements of
    convolutions, linear and lambda layers. Lambda layers are counted in the paper's order, over the context positions
    inside their scope and map, whichever kernel runs.

    For example:

      lambdanets models

      lambdanets models lambda_resnet50 --image-size 224

      lambdanets models lambda_resnet50 --stages C-C-CL-L

      lambdanets models resnet50
    """
    size = _size(image_size)
    if name is None and stages is not None:
        raise ValueError(f"--stages is for one model, got {stages!r} without NAME: lambdanets models NAME --stages")
    from dataclasses import asdict

    from lambdanets.console import make_console, print_json
    from lambdanets.files import check_file, write_csv

    if csv is not None:
        check_file(csv, "--csv")
    if name is None:
        with make_console(stderr=True).status("counting"):
            costs = _family(size, count_padding)
        rows, table = [_flat(asdict(cost)) for cost in costs], _family_table(costs)
        content: object = rows
    else:
        cost = _one(name, size, count_padding, stages)
        content, table = asdict(cost), _stages_table(cost)
        rows = [_flat(part) for part in asdict(cost)["parts"]]
    if csv is not None:
        write_csv(csv, rows)
    if as_json:
        print_json(content)
        return
    console = make_console()
    console.print(table)
    if name is None:
        console.print("lambdanets models NAME shows a model's stages.")


def _size(given: str | None) -> tuple[int, int] | None:
    if given is None:
        return None
    sides = given.lower().split("x")
    if len(sides) not in (1, 2) or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise ValueError(f"--image-size must be SIDE or HEIGHTxWIDTH in pixels, as 224 or 224x320, got {given!r}")
    return int(sides[0]), int(sides[-1])


def _flat(row: dict[str, object]) -> dict[str, object]:
    """A row of a CSV: shapes as 3x224x224, without the parts."""
    return {
        key: "x".join(map(str, value)) if isinstance(value, tuple) else value
        for key, value in row.items()
        if key != "parts"
    }


def _family(size: tuple[int, int] | None, count_padding: bool) -> list[ModelCost]:
    import timm

    from lambdanets.models import model_cost

    costs = [model_cost(name, size, count_padding=count_padding) for name in timm.list_models(module="lambda_resnet")]
    return sorted(costs, key=lambda cost: (cost.multiply_adds, cost.name))


def _one(name: str, size: tuple[int, int] | None, count_padding: bool, stages: str | None) -> ModelCost:
    import timm

    from lambdanets.models import model_cost
    from lambdanets.training.runs.model import check_model_name

    check_model_name(name)
    if stages is not None and name not in timm.list_models(module="lambda_resnet"):
        raise ValueError(f"--stages is for LambdaResNets, and {name} is none; lambdanets models lists them")
    # Layers for one size of map, as attention, need to know it.
    options = {} if stages is None else {"stages": stages, **({} if size is None else {"img_size": size})}
    try:
        return model_cost(name, size, count_padding=count_padding, **options)
    except ValueError as error:
        message = str(error).replace("img_size=", "--image-size ").replace("img_size", "--image-size")
        raise ValueError(message) from None


def _counts(parameters: int, multiply_adds: int, activations: int) -> tuple[str, str, str]:
    return f"{parameters / 1e6:.2f}", f"{multiply_adds / 1e9:.2f}", f"{activations / 1e6:.1f}"


def _table(*headings: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    for heading in _COUNTS:
        table.add_column(heading, justify="right")
    return table


def _family_table(costs: list[ModelCost]) -> Table:
    table = _table("model", "stages", "image")
    for cost in costs:
        height, width = cost.image_size
        table.add_row(
            cost.name,
            cost.stages,
            f"{height}x{width}",
            *_counts(cost.parameters, cost.multiply_adds, cost.activations),
        )
    return table


def _stages_table(cost: ModelCost) -> Table:
    height, width = cost.image_size
    table = _table("part", "blocks", "output")
    table.title = f"{cost.name}{f', {cost.stages}' if cost.stages else ''}, {height}x{width}"
    for part in cost.parts:
        table.add_row(
            part.name,
            _short(part.placement),
            "x".join(map(str, part.output)),
            *_counts(part.parameters, part.multiply_adds, part.activations),
        )
    table.add_section()
    table.add_row("all", "", "", *_counts(cost.parameters, cost.multiply_adds, cost.activations))
    return table


def _short(placement: str) -> str:
    """The blocks of a stage: "CCC" as "3 C", "CLCLCL" as it is, up to a length that a table bears."""
    if not placement:
        return ""
    if len(set(placement)) == 1:
        return f"{len(placement)} {placement[0]}"
    if len(placement) <= 12:
        return placement
    return ", ".join(f"{count} {letter}" for letter, count in Counter(placement).items())
