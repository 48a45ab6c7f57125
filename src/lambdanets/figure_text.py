"""Text of users in pictures of matplotlib: drawn as it is, never as a formula."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.font_manager import FontProperties, fontManager, get_font

from lambdanets.console import one_line

__all__ = ["as_drawn"]


def as_drawn(texts: Sequence[str], family: str = "sans-serif") -> tuple[list[str], dict[str, Any]]:
    """Return texts as a picture can show them, and the properties to draw them with.

    A character that the font lacks is taken from another installed font. Where none has it, it is drawn as an escape,
    as control characters are.

    Args:
        texts: names, paths, titles.
        family: the font family to prefer. Default ``"sans-serif"``.

    Returns:
        The texts, and keyword arguments of ``matplotlib.text.Text``.
    """
    lines = [one_line(text) for text in texts]
    families, missing = _fonts_for(set("".join(lines)), family)
    drawn = ["".join(ascii(char)[1:-1] if char in missing else char for char in line) for line in lines]
    return drawn, {"family": families, "parse_math": False, "usetex": False}


def _fonts_for(characters: set[str], family: str) -> tuple[list[str], set[str]]:
    """Font families that together have the characters, the preferred one first; and the characters that none has."""
    families = [family]
    missing = characters - _characters_of(fontManager.findfont(FontProperties(family=[family])))
    for font in fontManager.ttflist:
        if not missing:
            break
        # A font of boxes that say what is missing.
        if "last resort" in font.name.lower():
            continue
        found = missing & _characters_of(font.fname)
        if found:
            families.append(font.name)
            missing -= found
    return families, missing


def _characters_of(file: str) -> set[str]:
    try:
        return set(map(chr, get_font(file).get_charmap()))
    except (OSError, RuntimeError):  # a file that FreeType does not read
        return set()
