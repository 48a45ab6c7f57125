"""The command ``lambdanets``: its subcommands, and how errors end.

PyTorch and timm take seconds to import, so every command imports what it needs when it runs: ``--help`` and a wrong
flag are answered at once.
"""

from __future__ import annotations

import inspect
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from lambdanets_cli.adopt import adopt
from lambdanets_cli.bench import bench
from lambdanets_cli.compare import compare
from lambdanets_cli.env import env
from lambdanets_cli.evaluate import evaluate
from lambdanets_cli.explain import explain
from lambdanets_cli.export import export
from lambdanets_cli.kernels import kernels
from lambdanets_cli.models import models
from lambdanets_cli.options import Settings, with_debug
from lambdanets_cli.plot import plot
from lambdanets_cli.predict import predict
from lambdanets_cli.publish import publish
from lambdanets_cli.runs import runs
from lambdanets_cli.train import train

__all__ = ["app", "main"]

app = typer.Typer(
    name="lambdanets",
    help="Lambda layers and LambdaResNets: train, evaluate and use them.",
    epilog="Start with: lambdanets train",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# What a command has to clean up after Ctrl-C before it is interrupted once more.
_SECONDS_TO_END = 2.0
_PACKAGES = tuple(str(Path(__file__).parents[1] / name) + os.sep for name in ("lambdanets", "lambdanets_cli"))


def _show_version(value: bool) -> None:
    if value:
        try:
            print(f"lambdanets {version('lambdanets')}")
        except PackageNotFoundError:
            print("lambdanets (not installed)")
        raise typer.Exit


@app.callback()
def _options(
    show_version: Annotated[
        bool, typer.Option("--version", help="Show the version.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    pass


def _paragraphs(function: Callable[..., None]) -> str:
    """A docstring for terminals of every width: paragraphs without line ends, examples as they are."""
    paragraphs = inspect.cleandoc(function.__doc__ or "").split("\n\n")
    return "\n\n".join(text if text.startswith(" ") else text.replace("\n", " ") for text in paragraphs)


for _function in (
    train,
    evaluate,
    predict,
    runs,
    plot,
    adopt,
    export,
    publish,
    explain,
    kernels,
    bench,
    compare,
    models,
    env,
):
    app.command(help=_paragraphs(_function))(with_debug(_function))


def _is_ours(error: BaseException) -> bool:
    """True if an error was raised by this package's own checks: by a ``raise`` of its own, not by what a line calls."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    if last.filename.startswith(_PACKAGES):
        return (last.line or "raise").startswith("raise")  # without sources there is no line
    # An error in a data worker arrives as text, with the worker's traceback in its message.
    lines = [line.lstrip() for line in str(error).splitlines()]
    places = [number for number, line in enumerate(lines) if line.startswith('File "')]
    if not places or not lines[places[-1]].split('"')[1].startswith(_PACKAGES):
        return False
    return (*lines, "")[places[-1] + 1].startswith("raise")


def _message(error: BaseException) -> str:
    text = str(error)
    if "Original Traceback" in text:
        last = [line for line in text.splitlines() if line.strip() and not line.startswith(" ")][-1]
        return last.partition(": ")[2]
    return text


def _print_error(message: str) -> None:
    """Print a message in one line on the error stream."""
    if "lambdanets" in sys.modules:
        from lambdanets.console import make_console, one_line, print_whole

        print_whole(make_console(stderr=True), f"Error: {one_line(message)}", style="bold red")
    else:
        # A refusal of the command's own, which shows words of the user by repr: it does not wait for PyTorch.
        typer.secho(f"Error: {message}", fg=typer.colors.RED, bold=True, err=True)


@contextmanager
def _insisting_on_interrupts() -> Iterator[None]:
    """Let Ctrl-C end the command also where a library swallows the exception that it raises.

    Python drops an exception that is raised in a callback or a destructor, as of an exporter. So it is raised once more
    after a while, until it has ended the command.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler or os.name == "nt":
        yield  # ignored, as in the background of a shell, or a system without timers
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.setitimer(signal.ITIMER_REAL, _SECONDS_TO_END, _SECONDS_TO_END)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGALRM, before)


def _escape_what_encodings_lack() -> None:
    """Let both streams escape what their encoding lacks: a name must not end a finished training with an error."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _refuse_empty_words(words: Sequence[str]) -> None:
    """Raise a ValueError for an empty word, as of a variable that is not set: as a path it is the current folder."""
    for before, word in pairwise(("lambdanets", *words)):
        option, sign, value = word.partition("=") if word.startswith("--") else (before, "=", word)
        if sign and not value:
            raise ValueError(f"the word behind {option} is empty (''); give a value there, or leave it out")


def main() -> None:
    """Run the command.

    Exit codes: 0 success; 1 the loss diverged, or ``adopt`` found different outputs; 2 wrong input, a refusal of the
    system or a full memory, in one message; 128 + signal after a signal. Other errors are bugs, shown by a traceback.
    """
    _escape_what_encodings_lack()
    settings = Settings(debug=os.environ.get("LAMBDANETS_DEBUG", "0") not in ("", "0"))
    try:
        _refuse_empty_words(sys.argv[1:])
        with _insisting_on_interrupts():
            app(obj=settings)
    except KeyboardInterrupt:
        typer.echo("Interrupted.", err=True)
        sys.exit(130)
    except Exception as error:
        if settings.debug:
            raise
        diverged = type(error).__name__ == "TrainingDivergedError"
        # An OSError tells what the machine refused: a full disk, a folder that may not be written.
        told = isinstance(error, (ValueError, TypeError, ImportError)) and _is_ours(error)
        # PyTorch's, of a device, is known by its name: it is not imported here.
        full = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
        if not (diverged or told or full or isinstance(error, OSError)):
            raise
        _print_error(_message(error))
        sys.exit(1 if diverged else 2)


if __name__ == "__main__":
    main()
