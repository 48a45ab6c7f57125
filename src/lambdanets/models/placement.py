"""The layer of each block of a model as words of letters: C convolution, L lambda layer, others of the registry."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from lambdanets.layers.registry import LAYERS
from lambdanets.names import nearest_names

__all__ = ["format_placement", "place_blocks"]


def place_blocks(
    stages: str | Sequence[str], layers: Sequence[int], letters: Collection[str] | None = None
) -> tuple[str, ...]:
    """Spell a placement out, block by block.

    Args:
        stages: one letter a stage, as "CCLL"; or one pattern a stage that is repeated over its blocks, as
            "C-C-CL-L" or ("C", "C", "CL", "L"): every second block of the third stage is a lambda layer. In a
            sequence of stages a layer's name stands for its letter, as "axial self-attention".
        layers: number of blocks of each stage.
        letters: those that may stand there; default all of :data:`lambdanets.layers.registry.LAYERS`.

    Returns:
        One word a stage with one letter a block: ("CCC", "CCCC", "CLCLCL", "LLL").

    Raises:
        ValueError: if there is another number of patterns than of stages, one is empty or has other letters.
    """
    letters = LAYERS if letters is None else letters
    *first, last = (f"{letter} ({LAYERS[letter].name})" for letter in letters)
    how = (
        f'stages must be one letter a stage, {", ".join(first)} or {last}, as "CCLL", or one pattern a stage that its '
        'blocks repeat, as "C-C-CL-L" or ("C", "C", "CL", "L")'
    )
    if not isinstance(stages, Sequence):
        raise ValueError(f"{how}; got {stages!r}")
    named = {LAYERS[letter].name: letter for letter in letters}
    patterns = stages.split("-") if isinstance(stages, str) and "-" in stages else list(stages)
    patterns = [named.get(pattern, pattern) if isinstance(pattern, str) else pattern for pattern in patterns]
    if len(patterns) != len(layers):
        raise ValueError(f"{how}; got {stages!r}, which has {len(patterns)} stages, not {len(layers)}")
    for pattern in patterns:
        if not isinstance(pattern, str) or not pattern or set(pattern) - set(letters):
            near = nearest_names(pattern, named, 1)
            raise ValueError(f"{how}; got {stages!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    return tuple(
        (pattern * -(-blocks // len(pattern)))[:blocks] for pattern, blocks in zip(patterns, layers, strict=True)
    )


def format_placement(words: Sequence[str]) -> str:
    """A placement in short: ("CCC", "CLCLCL") becomes "C-CL", and "CL" where every stage is of one kind."""
    patterns = [_shortest_period(word) for word in words]
    return ("" if all(len(pattern) == 1 for pattern in patterns) else "-").join(patterns)


def _shortest_period(word: str) -> str:
    return next(word[:n] for n in range(1, len(word) + 1) if (word[:n] * len(word))[: len(word)] == word)
