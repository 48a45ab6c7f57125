"""Arguments that several commands share."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["Debug", "RunFolder", "quiet_profiler", "refuse_together"]


def _set_debug(value: bool) -> None:
    if value:
        os.environ["LAMBDANETS_DEBUG"] = "1"


Debug = Annotated[
    bool,
    typer.Option("--debug", help="Show the traceback of errors (or set LAMBDANETS_DEBUG=1).", callback=_set_debug),
]
RunFolder = Annotated[
    Path,
    typer.Argument(
        metavar="RUN",
        help="A run folder (written by `lambdanets train`), or the name of bundled weights, for example "
        "lambda_resnet_tiny.digits.",
    ),
]


def quiet_profiler() -> None:
    """Keep PyTorch's profiler, which counts the memory, from the terminal; PyTorch reads this on import.

    It reports every start and stop, and memory that is freed but was allocated before.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def refuse_together(given: Mapping[str, object], other: str) -> None:
    """Raise a ValueError for the first option that is given and changes nothing beside another one.

    Args:
        given: options by name, with a value that is true where they are given.
        other: the other option, with the reason.
    """
    for name, value in given.items():
        if value:
            raise ValueError(f"{name} means nothing together with {other}; leave it out")
