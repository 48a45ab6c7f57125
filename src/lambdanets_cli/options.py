"""Options that several commands share."""

from __future__ import annotations

import functools
import inspect
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = [
    "RunFolder",
    "Settings",
    "number",
    "quiet_profiler",
    "refuse_together",
    "stop_insisting",
    "with_debug",
    "with_parameters",
]


@dataclass
class Settings:
    """Settings of one run of the command, the object of its context.

    Args:
        debug: errors show their traceback. Default False.
    """

    debug: bool = False


def _set_debug(context: typer.Context, value: bool) -> None:
    if value:
        context.ensure_object(Settings).debug = True


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


def number(help: str, kind: type[float] = int, least: int | None = None) -> Any:
    """Return an option that is a number. Refusals name the value that was given, which typer's do not.

    Args:
        help: text of the option.
        kind: int or float. Default int.
        least: the least that is taken. Default: any.
    """
    wanted = ("an integer" if kind is int else "a number") + ("" if least is None else f" of at least {least}")
    metavar = None if least is None else f"<{kind.__name__}> [x>={least}]"

    def parse(word: str) -> float:
        try:
            value = kind(word)
        except ValueError:
            value = None
        if value is None or (least is not None and value < least):
            raise typer.BadParameter(f"{word!r}; use {wanted}")
        return value

    return typer.Option(help=help, parser=parse, metavar=metavar)


def stop_insisting() -> None:
    """Do not raise an interrupt that has arrived once more, after which what is finished is written, however long."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, 0)


def with_debug(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the option --debug, which changes the settings, and the line with which Ctrl-C ends it."""

    @functools.wraps(function)
    def command(*, debug: bool, **arguments: Any) -> None:
        try:
            function(**arguments)
        except KeyboardInterrupt:  # of which typer makes an exit code, and says nothing
            typer.echo("Interrupted.", err=True)
            raise

    option = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Debug)
    own = inspect.signature(function, eval_str=True).parameters.values()
    return with_parameters(command, [*own, option])


def with_parameters(function: Callable[..., None], parameters: list[inspect.Parameter]) -> Callable[..., None]:
    """Have typer read other parameters of a function than are written there."""
    signature = inspect.Signature(parameters, return_annotation=None)
    function.__signature__ = signature  # type: ignore[attr-defined]
    function.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return function


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
