"""Rules for values that come from outside: the command line, a recipe, a file of a run folder.

A rule is a function of a value and its name. It returns None, or raises the one ``ValueError`` that names both and says
what would do. ``fields`` and ``each`` make rules for dictionaries and lists out of rules for what they hold.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath, PurePosixPath
from typing import Any

Rule = Callable[[object, str], None]

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 100
_SHORT.maxlong = 40
# Levels of lists and dictionaries in a value, far above what any model takes.
_LEVELS = 8
# The largest number in one, far above the channels, blocks or pixels of any model: none is built for a typing error.
_LARGEST = 100_000


def short(value: object) -> str:
    """A value as Python writes it; a long one is cut."""
    return _SHORT.repr(value)


def refuse(value: object, name: str, remedy: str) -> ValueError:
    """The error for a value that does not do; long values are cut."""
    return ValueError(f"{name} is {short(value)}; {remedy}")


def whole(low: int, high: int | None = None) -> Rule:
    """A rule for integers from ``low`` to ``high``, both included."""
    span = f"from {low}" if high is None else f"from {low} to {high}"

    def rule(value: object, name: str) -> None:
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        if not is_whole or value < low or (high is not None and value > high):  # type: ignore[operator]
            raise refuse(value, name, f"use an integer {span}")

    return rule


def number(low: float, high: float, remedy: str, *, above: bool = False, below: bool = False) -> Rule:
    """A rule for finite numbers between two bounds.

    Args:
        low: the least value.
        high: the largest value; ``math.inf`` still refuses infinity itself.
        remedy: what would do, for the message.
        above: excludes ``low`` itself.
        below: excludes ``high`` itself.
    """

    def rule(value: object, name: str) -> None:
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not _finite(value):
            raise refuse(value, name, remedy)
        if value < low or value > high or (above and value == low) or (below and value == high):
            raise refuse(value, name, remedy)

    return rule


def _finite(value: int | float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no float holds
        return False


# Of the training images, for validation.
held_out_share = number(0, 0.5, "use a share above 0, to 0.5, or None", above=True)


def one_of(choices: Sequence[str]) -> Rule:
    """A rule for one of some words."""

    def rule(value: object, name: str) -> None:
        if not isinstance(value, str) or value not in choices:
            raise refuse(value, name, f"use one of {', '.join(choices)}")

    return rule


def text(value: object, name: str) -> None:
    """The rule for words: not empty, printable by UTF-8."""
    if not isinstance(value, str) or not value or not _encodable(value) or "\0" in value:
        raise refuse(value, name, "use a text of one or more characters of Unicode")


def class_names(value: object, name: str) -> None:
    """The rule for names of classes: one or more texts, each once."""
    each(text, least=1)(value, name)
    seen: set[str] = set()
    for index, word in enumerate(value):  # type: ignore[arg-type, var-annotated]
        if word in seen:
            raise refuse(word, f"{name}[{index}]", "no two classes have one name")
        seen.add(word)


def flag(value: object, name: str) -> None:
    """The rule for True and False."""
    if not isinstance(value, bool):
        raise refuse(value, name, "use true or false")


def _encodable(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can carry
        return False
    return True


def maybe(rule: Rule) -> Rule:
    """A rule that admits None too."""

    def optional(value: object, name: str) -> None:
        if value is not None:
            rule(value, name)

    return optional


def each(rule: Rule, least: int = 0) -> Rule:
    """A rule for lists of at least ``least`` values, each of which follows ``rule``."""

    def all_of(value: object, name: str) -> None:
        if not isinstance(value, (list, tuple)) or len(value) < least:
            raise refuse(value, name, f"use a list of {least} or more values")
        for index, item in enumerate(value):
            rule(item, f"{name}[{index}]")

    return all_of


def entries(rule: Rule) -> Rule:
    """A rule for dictionaries of any words, all values of which follow ``rule``."""

    def all_of(value: object, name: str) -> None:
        if not isinstance(value, Mapping):
            raise refuse(value, name, "use names with values")
        for key, item in value.items():
            text(key, f"a key of {name}")
            rule(item, f"{name}.{key}")

    return all_of


def fields(rules: Mapping[str, Rule], *, optional: Sequence[str] = ()) -> Rule:
    """A rule for dictionaries of known keys.

    Args:
        rules: the keys and the rule for each value.
        optional: keys that may be missing.
    """

    def all_of(value: object, name: str) -> None:
        if not isinstance(value, Mapping):
            raise refuse(value, name or "the content", f"use an object with the fields {', '.join(rules)}")
        prefix = f"{name}." if name else ""
        for key in rules:
            if key not in value and key not in optional:
                raise ValueError(f"{prefix}{key} is missing")
        for key, item in value.items():
            if key not in rules:
                raise ValueError(f"{prefix}{short(key)} is no field of this version; known: {', '.join(rules)}")
            rules[key](item, f"{prefix}{key}")

    return all_of


def check_attributes(instance: Any, rules: Mapping[str, Rule]) -> None:
    """Apply a rule to each attribute of an instance that ``rules`` names."""
    for name, rule in rules.items():
        rule(getattr(instance, name), name)


# What makes a command or an address of a text, for readers that open either.
_COMMANDS = ("|", "pipe:", "`", "$(")


def local(value: object, name: str) -> None:
    """The rule for texts that name a place on this machine: neither a command nor an address."""
    text(value, name)
    lower = str(value).lower()
    if any(word in lower for word in _COMMANDS) or _scheme(lower):
        raise refuse(value, name, "commands and addresses are not opened; use a file or folder of this machine")


def _scheme(value: str) -> bool:
    """True if the text holds an address such as http:..., s3:... or hf-hub:...; a drive as C: is none."""
    if "://" in value:
        return True
    scheme, colon, _ = value.strip().partition(":")
    return bool(colon) and len(scheme) > 1 and scheme.replace("-", "").replace("+", "").replace("_", "").isalnum()


def is_inside(name: str) -> bool:
    """True if a file's name, with forward slashes, stays inside of the folder that it is relative to."""
    paths = PurePosixPath(name), PurePath(name)  # Windows knows other slashes, and drives
    return bool(name) and "\0" not in name and not any(path.anchor or ".." in path.parts for path in paths)


# Arguments of timm's models that name weights: files, addresses, or a configuration that holds such.
_WEIGHTS = (
    "cache_dir",
    "checkpoint_path",
    "custom_load",
    "file",
    "hf_hub_filename",
    "hf_hub_id",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "pretrained_model_args",
    "source",
    "state_dict",
    "url",
)


# Arguments of every model, and where their values are from.
_SET = {
    "name": "the field model sets it",
    "model_name": "the field model sets it",
    "image_size": "the field image_size sets it",
    "num_classes": "the classes of the data set it",
    "in_chans": "the channels of the data set it",
    "drop_rate": "the field drop_rate sets it",
    "drop_path_rate": "the field drop_path_rate sets it",
}
# Arguments that no recipe gives a model: what stored models have of them is left out.
DECIDED = frozenset({*_SET, *_WEIGHTS})


def model_arguments(value: object, name: str) -> None:
    """The rule for a model's further arguments: plain values, none of which names a file or an address."""
    if not isinstance(value, Mapping):
        raise refuse(value, name, "use names with values")
    for key, item in value.items():
        if isinstance(key, str) and key in _SET:
            raise refuse(item, f"{name}.{key}", f"{_SET[key]}; leave it out")
    _plain(value, name, 0)


def _plain(value: object, name: str, level: int) -> None:
    if level > _LEVELS:
        raise ValueError(f"{name} is nested more than {_LEVELS} levels deep; use plain values")
    if isinstance(value, Mapping):
        for key, item in value.items():
            text(key, f"a key of {name}")
            if key in _WEIGHTS:
                remedy = "weights to start from are part of the model's name: local-dir:FOLDER or hf-hub:NAME"
                raise refuse(item, f"{name}.{key}", remedy)
            _plain(item, f"{name}.{key}", level + 1)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _plain(item, f"{name}[{index}]", level + 1)
    elif isinstance(value, str):
        if not _encodable(value) or any(sign in value for sign in ("/", "\\", "|", "\0", "pipe:")) or _scheme(value):
            raise refuse(value, name, "use a word; files, commands and addresses are not opened")
    elif value is not None and not isinstance(value, bool):
        remedy = f"use a text, a number of at most {_LARGEST:,} in size, true, false, null or lists of them"
        number(-_LARGEST, _LARGEST, remedy)(value, name)
