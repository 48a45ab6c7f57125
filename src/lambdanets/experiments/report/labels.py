"""Places for short labels beside the marks of a plot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["LETTER", "RADIUS", "Mark", "before_label", "far_away", "place_labels"]

# On the screen: of a mark, the width of a letter and the height of a line.
RADIUS, LETTER, LINE = 5.0, 7.5, 12.0
# Directions from a mark, the best one first: right above, right, above, left above, and so on.
TURNS = (1, 0, 2, 15, 3, 7, 8, 14, 5, 9, 13, 11, 4, 12, 6, 10)
FARTHEST, STEP = 70, 4


@dataclass(frozen=True)
class Mark:
    """A mark on the screen, the two ends of its interval and its radius; y grows downwards."""

    x: float
    y: float
    low: float
    high: float
    radius: float = RADIUS


@dataclass(frozen=True)
class _Box:
    """A rectangle by its middle and the halves of its sides."""

    x: float
    y: float
    width: float
    height: float

    def meets(self, other: _Box) -> bool:
        return abs(self.x - other.x) < self.width + other.width and abs(self.y - other.y) < self.height + other.height


def place_labels(
    marks: Sequence[Mark], labels: Mapping[int, str], area: tuple[float, float, float, float]
) -> dict[int, tuple[float, float]]:
    """Find places for labels: the nearest that meet no other label or its line, no mark and, if there are such, no
    interval.

    Args:
        marks: all marks.
        labels: text by the number of its mark.
        area: left, top, right and bottom of where labels may be.

    Returns:
        The middle of each label by the number of its mark.
    """
    dots = [_Box(mark.x, mark.y, mark.radius, mark.radius) for mark in marks]
    intervals = [_Box(mark.x, (mark.low + mark.high) / 2, 1, abs(mark.high - mark.low) / 2) for mark in marks]
    found: dict[int, _Box] = {}
    lines: list[_Box] = []
    for number in sorted(labels, key=lambda number: (marks[number].y, marks[number].x)):
        mark, tried = marks[number], _around(marks[number], LETTER * len(labels[number]) / 2)
        others = [*dots, *found.values(), *lines]
        free = [
            box
            for box in tried
            if _inside(box, area)
            and not any(box.meets(other) for other in others)
            and not any(part.meets(other) for part in _line(mark, box) for other in found.values())
        ]
        clear = [box for box in free if not any(box.meets(other) for other in intervals)]
        found[number] = next(iter((*clear, *free, *tried)))
        lines += _line(mark, found[number])
    return {number: (box.x, box.y) for number, box in found.items()}


def _line(mark: Mark, box: _Box) -> list[_Box]:
    """The parts of the line that joins a label to its mark, if there must be one."""
    if not far_away(mark, (box.x, box.y)):
        return []
    shares = [part / 8 for part in range(1, 8)]
    return [_Box(mark.x + s * (box.x - mark.x), mark.y + s * (box.y - mark.y), 1, 1) for s in shares]


def _around(mark: Mark, half: float) -> list[_Box]:
    """Places around a mark, the nearest first."""
    found = []
    for distance in range(1, FARTHEST, STEP):
        for turn in TURNS:
            angle = turn * math.pi / 8
            x = mark.x + (half + mark.radius + distance) * math.cos(angle)
            y = mark.y - (LINE / 2 + mark.radius + distance) * math.sin(angle)
            found.append(_Box(x, y, half, LINE / 2))
    return found


def _inside(box: _Box, area: tuple[float, float, float, float]) -> bool:
    left, top, right, bottom = area
    return left <= box.x - box.width and box.x + box.width <= right and top <= box.y - LINE / 2 and box.y < bottom


def far_away(mark: Mark, place: tuple[float, float]) -> bool:
    """True if a label is so far from its mark that a line must join them."""
    return math.hypot(place[0] - mark.x, place[1] - mark.y) > mark.radius + 2 * RADIUS + LINE / 2


def before_label(mark: Mark, place: tuple[float, float]) -> tuple[float, float]:
    """Return where the line from a mark to its label ends, so that it does not strike the label through."""
    share = 1 - 0.8 * LINE / math.hypot(place[0] - mark.x, place[1] - mark.y)
    return mark.x + share * (place[0] - mark.x), mark.y + share * (place[1] - mark.y)
