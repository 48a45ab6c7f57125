"""Markdown: tables, and text of users, which is shown as it is and never as markup."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lambdanets.console import one_line

__all__ = ["as_code", "as_text", "markdown_table"]

# What marks emphasis, code, links, tables and formulas; an underscore inside of a word marks nothing.
_ENTITY = re.compile(r"&(?=#?\w+;)")
# What makes a heading or a list of a line that begins with it.
_START = re.compile(r"^(\s*)(\d*)([#+\-.)])(?=\s|$|#)")
_MARKS = re.compile(r"[\\`*\[\]|~$]|(?<!\w)_|_(?!\w)")


def as_text(name: object) -> str:
    """Return a name as one line of Markdown that shows it: no markup, no HTML, no link, control characters as escapes.

    Args:
        name: a class, a path, a title.
    """
    text = _ENTITY.sub("&amp;", one_line(name)).replace("<", "&lt;").replace(">", "&gt;")
    # GitHub and others make links of addresses that nothing marks.
    text = _START.sub(r"\1\2\\\3", _MARKS.sub(r"\\\g<0>", text))
    return text.replace("://", "&#58;//").replace("www.", "www&#46;")


def as_code(words: object) -> str:
    """Return text as code in Markdown, in one line, for cells of tables too.

    Args:
        words: a command, a name.
    """
    line = one_line(words) or " "
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    space = " " if line.startswith("`") or line.endswith("`") else ""
    # A bar would end a cell, in code too.
    return f"{fence}{space}{line}{space}{fence}".replace("|", r"\|")


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of cells that are Markdown already; the first column is text, the others are numbers."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
