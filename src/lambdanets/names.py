"""Messages for names that do not exist."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def unknown_name(
    kind: str, name: str, known: Sequence[str], remedy: str = "", examples: Sequence[str] = ()
) -> ValueError:
    """The error for a name that is not known: it shows the nearest known ones.

    Args:
        kind: what was named, for example ``"model"``.
        name: what was given.
        known: the names that exist.
        remedy: a last sentence that says what would do.
        examples: which of the names to show if none is near. Default: the first.

    Returns:
        A ``ValueError`` to raise.
    """
    near = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
    if near:
        hint = f"Did you mean {' or '.join(repr(match) for match in near)}?"
    else:
        shown = examples or known[:12]
        more = len(known) - len(shown)
        hint = f"Known: {', '.join(shown)}{f' and {more:,} more' if more else ''}."
    return ValueError(f"unknown {kind} {name!r}. {hint} {remedy}".rstrip())
