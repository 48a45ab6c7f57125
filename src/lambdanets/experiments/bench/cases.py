"""Shapes of the benchmark."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["CASES", "QUICK", "Case", "select_cases"]


@dataclass(frozen=True)
class Case:
    """One layer on one input.

    Args:
        batch: examples.
        grid: (height, width) of an image or (length,) of a sequence.
        dim: channels of input and output.
        scope: odd scope of a local context, or None for a global one.
        intra_depth: the paper's u.
        num_heads: the paper's h.
        dim_key: the paper's k.
    """

    batch: int
    grid: tuple[int, ...]
    dim: int
    scope: int | None = None
    intra_depth: int = 1
    num_heads: int = 4
    dim_key: int = 16

    @property
    def positions(self) -> int:
        """Number of positions, the paper's n."""
        return math.prod(self.grid)

    @property
    def extents(self) -> tuple[int, ...]:
        """Offsets of the position table along each axis."""
        return tuple(2 * size - 1 if self.scope is None else self.scope for size in self.grid)

    @property
    def projected(self) -> int:
        """Channels of queries, keys and values together."""
        return self.num_heads * self.dim_key + self.intra_depth * (self.dim_key + self.dim // self.num_heads)

    @property
    def name(self) -> str:
        """Name in the result files: ``global-14x14-d256-b8``, ``scope7-28x28-d128-b4-u4``, ``global-n1024-d256-b2``."""
        grid = "x".join(map(str, self.grid)) if len(self.grid) > 1 else f"n{self.grid[0]}"
        context = "global" if self.scope is None else f"scope{self.scope}"
        depth = f"-u{self.intra_depth}" if self.intra_depth > 1 else ""
        return f"{context}-{grid}-d{self.dim}-b{self.batch}{depth}"


_IMAGES = [(8, 7, 512), (8, 14, 256), (8, 16, 256), (4, 28, 128), (4, 32, 128), (2, 56, 64), (1, 64, 64)]
# One example, where most of a call is not arithmetic.
_SMALL = [(1, 7, 64), (1, 10, 64), (1, 14, 64)]
_LOCAL = [(8, 14, 256), (4, 28, 128), (2, 56, 64)]

_SEQUENCES = [(2, 1024, 256), (1, 4096, 256)]

CASES: tuple[Case, ...] = (
    *(Case(batch, (size, size), dim) for batch, size, dim in _SMALL),
    *(
        case
        for u in (1, 4)
        for case in (
            *(Case(batch, (size, size), dim, None, u) for batch, size, dim in _IMAGES),
            *(Case(batch, (length,), dim, None, u) for batch, length, dim in _SEQUENCES),
            *(Case(batch, (size, size), dim, scope, u) for scope in (7, 9, 23) for batch, size, dim in _LOCAL),
        )
    ),
)

QUICK: tuple[Case, ...] = (
    Case(8, (14, 14), 256),
    Case(4, (28, 28), 128),
    Case(4, (28, 28), 128, 7),
)


def select_cases(pattern: str | None, quick: bool, among: Sequence[Case] | None = None) -> list[Case]:
    """Return the cases whose name matches one of some shell patterns.

    Args:
        pattern: of the names, several separated by commas; None for all.
        quick: select from the few quick ones.
        among: others to select from, with ``quick`` their first three.

    Raises:
        ValueError: if no name matches one of the patterns; the message lists the names.
    """
    known = (QUICK if quick else CASES) if among is None else among[: 3 if quick else None]
    patterns = ["*"] if pattern is None else [part.strip() for part in pattern.split(",")]
    for part in patterns:
        if not any(fnmatch.fnmatch(case.name, part) for case in known):
            names = ", ".join(case.name for case in known)
            raise ValueError(f"cases must match at least one of {names}; got {part!r}")
    return [case for case in known if any(fnmatch.fnmatch(case.name, part) for part in patterns)]
