"""The command ``lambdanets env``."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["env"]


def env(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show versions, devices, available kernels (and why others are not) and folders, for bug reports.

    Environment variables that affect speed, results or folders are shown; secret values are hidden.

    For example:

      lambdanets env

      lambdanets env --json > env.json
    """
    from lambdanets.console import make_console, one_line, print_json, print_whole
    from lambdanets_cli.environment import describe_environment

    found = describe_environment()
    if as_json:
        print_json(found)
        return
    console = make_console()
    for section, lines in found.items():
        print_whole(console, section, style="bold")
        for name, text in lines.items():
            print_whole(console, f"  {one_line(name):<32} {one_line(text)}")
