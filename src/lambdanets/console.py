"""Output for terminals: names and paths of users are text, never markup."""

from __future__ import annotations

import json
import sys
import unicodedata
from typing import Any

from rich.console import Console
from rich.text import Text

__all__ = ["make_console", "print_json", "print_whole", "printable"]

_LAYOUT = "\n\t"
# Characters that turn the direction of what follows them, with which a name could pass for another.
_TURNS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


def printable(text: str) -> str:
    """Return the text with control characters as escapes, so that a file's name cannot steer the terminal.

    Line ends and tabs stay.
    """
    return text if text.isprintable() else "".join(_escaped(char) if _is_control(char) else char for char in text)


def _is_control(char: str) -> bool:
    return (unicodedata.category(char) == "Cc" and char not in _LAYOUT) or unicodedata.bidirectional(char) in _TURNS


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


class _TextConsole(Console):
    """A console for which a string is text: no markup, no emoji codes, no control characters."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Return the text as it will be shown; every string that is printed passes here, cells of tables too.

        Characters that the stream's encoding lacks are escaped, where the stream itself would raise an error.
        """
        shown = printable(text).encode(self.encoding, "backslashreplace").decode(self.encoding)
        return super().render_str(shown, **options)


def make_console(stderr: bool = False, soft_wrap: bool = False) -> Console:
    """Return the console that every command and every report prints to.

    Args:
        stderr: print to the error stream. Default False.
        soft_wrap: leave the breaking of long lines to the terminal. Default False.
    """
    return _TextConsole(stderr=stderr, soft_wrap=soft_wrap, markup=False, emoji=False, highlight=False)


def print_whole(console: Console, line: str = "", style: str | None = None) -> None:
    """Print a line without breaking it at the width of the terminal: paths and commands are there to be copied."""
    console.print(line, style=style, soft_wrap=True)


def print_json(content: Any) -> None:
    """Print indented JSON, valid for every encoding of the output: what it lacks is escaped."""
    is_unicode = (sys.stdout.encoding or "ascii").lower().replace("-", "") == "utf8"
    # A lone surrogate, as in a file's name that is not UTF-8, has no encoding at all; JSON has an escape for it.
    text = json.dumps(content, indent=2, ensure_ascii=not is_unicode)
    print(text.encode("utf-8", "backslashreplace").decode("utf-8"))
