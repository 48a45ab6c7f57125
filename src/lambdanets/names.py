"""Names and numbers in messages: names that do not exist, the first of many, a number with its noun."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence

__all__ = ["check_class_names", "count", "did_you_mean", "first_of", "nearest_names", "unknown_name"]

# Known names that a message lists.
MOST_NAMES = 40


def nearest_names(name: object, known: Collection[str], count: int = 3) -> list[str]:
    """Return the known names that a misspelt one is most like, the nearest first; [] if none is like it."""
    return difflib.get_close_matches(str(name), sorted(known), n=count, cutoff=0.5)


def first_of(items: Collection[str], count: int = 3, separator: str = ", ") -> str:
    """Return the first few of many items as text, and how many more there are: "a, b, c and 4 more"."""
    shown, more = separator.join(list(items)[:count]), len(items) - count
    if more <= 0:
        return shown
    before = "" if separator == ", " else separator.rstrip()  # no comma in front of "and"
    return f"{shown}{before} and {more:,} more"


def count(number: int, one: str, many: str) -> str:
    """Return a number with its noun: "1 epoch", "1,024 epochs"."""
    return f"{number:,} {one if number == 1 else many}"


def check_class_names(class_names: Collection[str], outputs: int) -> None:
    """Raise a ValueError unless there is a name for each output of a model."""
    if len(class_names) != outputs:
        raise ValueError(
            f"class_names has {count(len(class_names), 'name', 'names')}, and the model has {outputs} outputs; "
            "give one name for each"
        )


def did_you_mean(name: object, known: Collection[str], otherwise: str | None = None, count: int = 1) -> str:
    """Return the end of an error's message: the nearest name as a question.

    Args:
        name: what was given.
        known: the names that exist.
        otherwise: what to say if none is near. Default: the first of the known names.
        count: how many names to ask about at most. Default 1.
    """
    near = nearest_names(name, known, count)
    if near:
        return f"did you mean {' or '.join(map(repr, near))}?"
    if otherwise is not None:
        return otherwise
    first = list(known if isinstance(known, Sequence) else sorted(known))[:MOST_NAMES]
    return f"known are {', '.join(first)}{', ...' if len(first) < len(known) else ''}"


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
    near = nearest_names(name, known, count=4)
    if near:
        hint = f"Did you mean {' or '.join(repr(match) for match in near)}?"
    else:
        shown = examples or known[:12]
        more = len(known) - len(shown)
        names = map(repr, shown) if any("," in one for one in shown) else shown
        hint = f"Known: {', '.join(names)}{f' and {more:,} more' if more else ''}."
    return ValueError(f"unknown {kind} {name!r}. {hint} {remedy}".rstrip())
