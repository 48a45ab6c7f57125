"""Output for terminals: names and paths of users are text, never markup."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

__all__ = ["make_console", "one_line", "print_json", "print_whole", "printable", "shell_word"]

# Control characters, separators of lines, characters that turn the direction of what follows (with which a name could
# pass for another), and halves of surrogate pairs, by which Python stands for bytes of a name that are not text.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Return the text with control characters but line ends and tabs as escapes: it cannot steer the terminal."""
    return _UNSEEN.sub(lambda found: found[0] if found[0] in "\n\t" else _escaped(found), text)


def one_line(name: object) -> str:
    """Return a name or a path in one line: as :func:`printable`, with escapes for line ends and tabs too."""
    return _UNSEEN.sub(_escaped, str(name))


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")


def shell_word(path: object) -> str:
    """Return a path as a word of a command that can be copied into a POSIX shell.

    Control characters and bytes that are not text are written as ``$'...'``, which bash, zsh and ksh read.
    """
    text = str(path)
    if not _UNSEEN.search(text):
        return shlex.quote(text)
    quoted = text.replace("\\", r"\\").replace("'", r"\'")
    return f"$'{_UNSEEN.sub(_shell_escaped, quoted)}'"


def _shell_escaped(found: re.Match[str]) -> str:
    # Python stands for the byte 0xff of a name by "\\udcff".
    errors = "surrogateescape" if "\udc80" <= found[0] <= "\udcff" else "surrogatepass"
    return "".join(f"\\x{byte:02x}" for byte in found[0].encode("utf-8", errors))


class _TextConsole(Console):
    """A console for which a string is text: no markup, no emoji codes, no control characters."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Return the text as it will be shown; every string that is printed passes here, cells of tables too."""
        return super().render_str(self._encodable(printable(text)), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Return the segments of what is printed; a :class:`rich.text.Text` does not pass ``render_str``."""
        for segment in super().render(renderable, options):
            yield Segment(self._encodable(segment.text), segment.style, segment.control)

    def on_broken_pipe(self) -> None:
        """Go on in silence where what read the output has gone, as ``head`` does: a training may need days more.

        rich's own ends the program, in silence too, and with the exit code 1.
        """
        self.quiet = True
        # What is printed otherwise, or flushed at the end, would raise the error again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())

    def _encodable(self, text: str) -> str:
        """The text with escapes for what the stream's encoding lacks: the stream itself would raise an error."""
        return text.encode(self.encoding, "backslashreplace").decode(self.encoding)


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
