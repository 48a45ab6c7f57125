"""Plots of studies: as SVG for the page, drawn here, and as PNG and SVG files, drawn by matplotlib."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from lambdanets.experiments.compare.outcome import Axis, Plot, Point, Series, four_digits
from lambdanets.experiments.compare.statistics import pareto_front
from lambdanets.experiments.report.labels import LETTER, RADIUS, Mark, before_label, far_away, place_labels
from lambdanets.files import replacing

__all__ = ["COLOURS", "LARGE", "SMALL", "Frame", "draw_svg", "legend_key", "save_plot"]

# Of the series in their order; styles of the page repeat them, with others for dark mode.
COLOURS = (
    "#2759b8",
    "#c4501b",
    "#1f7a3d",
    "#8a3fa0",
    "#b3261e",
    "#0f7f8c",
    "#8a6400",
    "#5c646d",
    "#d0408c",
    "#4c6b1f",
)
# Of the series of each round of colours, in matplotlib's letters; the page has the same ones.
SHAPES = ("o", "s", "D", "^")
TICKS, LINE_HEIGHT = 8, 16
# Marks that are nearer on the screen hide each other; a series is drawn wider by so much for each one that covers it.
HIDDEN, WIDER, MOST = 2.0, 3.5, 4


@dataclass(frozen=True)
class Frame:
    """The size of a drawing, its margins, how many ticks an axis has at most and how many letters a line.

    The left margin is as wide as the numbers in it.

    Args:
        name: a class of the drawing, by which the page's styles choose.
        width: of the whole drawing.
        height: of the whole drawing.
        right: margin.
        top: margin.
        bottom: margin, with one line of text below the axis.
        ticks: of an axis.
        letters: of a line of the horizontal axis' label.
    """

    name: str
    width: int
    height: int
    right: int
    top: int
    bottom: int
    ticks: int
    letters: int


LARGE = Frame("large", 680, 400, 18, 14, 50, TICKS, 90)
# As wide as a phone's screen, so that its letters are as large as those of the page.
SMALL = Frame("small", 330, 300, 8, 10, 50, 6, 34)


@dataclass(frozen=True)
class _Scale:
    """Numbers of an axis to places on the screen."""

    low: float
    high: float
    start: float
    stop: float
    log: bool

    def __call__(self, value: float) -> float:
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.stop - self.start)


def _limits(values: Sequence[float], log: bool) -> tuple[float, float]:
    """The range of an axis, a little larger than that of its values."""
    low, high = min(values), max(values)
    if log:
        margin = max((high / low) ** 0.06, 1.05)
        return low / margin, high * margin
    margin = 0.06 * (high - low) or abs(high) * 0.05 or 1.0
    return low - margin, high + margin


def _ticks(low: float, high: float, log: bool, most: int = TICKS) -> list[float]:
    """Round numbers inside of a range, at least two."""
    if not log or high / low < 3:
        step = 10 ** math.floor(math.log10((high - low) / most))
        step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= most)
        return [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for every, factors in ((1, (1, 2, 3, 4, 5, 6, 8)), (1, (1, 2, 5)), (1, (1, 3)), (1, (1,)), (2, (1,)), (3, (1,))):
        values = (factor * 10.0**e for e in exponents if e % every == 0 for factor in factors)
        inside = [value for value in values if low <= value <= high]
        if len(inside) >= 2:
            found = inside
        if len(found) <= most:
            break
    return found


def _number(value: float) -> str:
    return f"{value:,.6g}"


def _points(plot: Plot) -> list[Point]:
    return [point for series in plot.series for point in series.points]


def _ranges(plot: Plot) -> tuple[tuple[float, float], tuple[float, float]]:
    """The ranges of the two axes."""
    points = _points(plot)
    heights = [y for point in points for y in (point.y, point.low, point.high) if y is not None]
    return _limits([point.x for point in points], plot.x.log), _limits(heights, plot.y.log)


def _covering(places: Sequence[Sequence[tuple[float, float]]]) -> list[int]:
    """The number of later series, to ``MOST``, that cover each one: of equal rows only the last would be seen.

    Args:
        places: of the points of each series on the screen.
    """

    def hides(later: Sequence[tuple[float, float]], place: tuple[float, float]) -> bool:
        return any(math.dist(place, other) < HIDDEN for other in later)

    return [
        min(MOST, sum(all(hides(later, place) for place in own) for later in places[number + 1 :]))
        for number, own in enumerate(places)
    ]


def _radii(plot: Plot, covering: Sequence[int]) -> list[float]:
    """The radius of each point's mark."""
    return [RADIUS + WIDER / 2 * count for s, count in zip(plot.series, covering, strict=True) for _ in s.points]


def _labels(plot: Plot) -> dict[int, str]:
    """The number of each series, by the number of the point beside which it stands: of connected points the last."""
    found, count = {}, 0
    for number, series in enumerate(plot.series, start=1):
        own = range(count, count + len(series.points))
        count += len(own)
        found.update(dict.fromkeys(own[-1:] if plot.lines else own, str(number)))
    return found


def draw_svg(plot: Plot, frame: Frame = LARGE) -> str:
    """Return a plot as an SVG element: points with their intervals, lines, and the Pareto front.

    Each point has the class "mark", the number of its series and its text, which the page's script shows.
    """
    points = _points(plot)
    x_range, y_range = _ranges(plot)
    x_label = textwrap.wrap(_label(plot.x), frame.letters)
    bottom = frame.height - frame.bottom - LINE_HEIGHT * (len(x_label) - 1)
    left = 34 + LETTER * max(len(_number(value)) for value in _ticks(*y_range, plot.y.log, frame.ticks))
    x = _Scale(*x_range, left, frame.width - frame.right, plot.x.log)
    y = _Scale(*y_range, bottom, frame.top, plot.y.log)
    parts = _axes(x, y, x_label, _label(plot.y), frame)
    if plot.front is not None:
        front = pareto_front([(point.x, point.y) for point in points], plot.front)
        parts.append(_line([points[i] for i in front], x, y, "front"))
    covering = _covering([[(x(p.x), y(p.y)) for p in series.points] for series in plot.series])
    marks = [
        Mark(x(p.x), y(p.y), y(p.y if p.low is None else p.low), y(p.y if p.high is None else p.high), radius)
        for p, radius in zip(points, _radii(plot, covering), strict=True)
    ]
    labels = _labels(plot)
    places = place_labels(marks, labels, (left, 0, frame.width, bottom))
    count = 0
    for number, (series, covered) in enumerate(zip(plot.series, covering, strict=True)):
        if plot.lines:
            kind = f"line {_colour(number)}"
            parts.append(_line(series.points, x, y, kind, 2 + WIDER * covered))
        for point in series.points:
            text = _told(plot, series.name, point)
            parts.append(_mark(point, number, text, marks[count], places.get(count)))
            count += 1
    title = escape(f"{plot.title}: {plot.y.label} against {plot.x.label}")
    return (
        f'<svg viewBox="0 0 {frame.width} {frame.height}" role="group" aria-label="{title}" '
        f'class="chart {frame.name}">' + "".join(parts) + "</svg>"
    )


def _axes(x: _Scale, y: _Scale, x_label: Sequence[str], y_label: str, frame: Frame) -> list[str]:
    parts = []
    left, right, bottom, top = x.start, x.stop, y.start, y.stop
    for value in _ticks(x.low, x.high, x.log, frame.ticks):
        place = f"{x(value):.1f}"
        parts.append(f'<line class="grid" x1="{place}" x2="{place}" y1="{top:g}" y2="{bottom:g}"/>')
        parts.append(f'<text x="{place}" y="{bottom + 18:g}" text-anchor="middle">{_number(value)}</text>')
    for value in _ticks(y.low, y.high, y.log, frame.ticks):
        place = f"{y(value):.1f}"
        parts.append(f'<line class="grid" x1="{left:g}" x2="{right:g}" y1="{place}" y2="{place}"/>')
        parts.append(f'<text x="{left - 8:g}" y="{place}" dy="4" text-anchor="end">{_number(value)}</text>')
    for number, line in enumerate(x_label):
        place = f'x="{(left + right) / 2:g}" y="{bottom + 38 + LINE_HEIGHT * number:g}"'
        parts.append(f'<text class="axis" {place} text-anchor="middle">{escape(line)}</text>')
    parts.append(f'<text class="axis" transform="translate(14 {(top + bottom) / 2:g}) rotate(-90)" ')
    parts.append(f'text-anchor="middle">{escape(y_label)}</text>')
    return parts


def _label(axis: Axis) -> str:
    return f"{axis.label} (log scale)" if axis.log else axis.label


def _line(points: Sequence[Point], x: _Scale, y: _Scale, kind: str, width: float | None = None) -> str:
    path = " ".join(f"{x(point.x):.1f},{y(point.y):.1f}" for point in points)
    style = "" if width is None else f' stroke-width="{width:g}"'
    return f'<polyline class="{kind}" points="{path}"{style}/>'


def _colour(number: int) -> str:
    """The class of a series' colour."""
    return f"s{number % len(COLOURS)}"


def _shape(number: int) -> int:
    """The number of a series' shape: another one for each round of the colours."""
    return number // len(COLOURS) % len(SHAPES)


def legend_key(number: int) -> str:
    """Return the mark of a series as an SVG element of its own, for the legend."""
    return f'<svg class="key" viewBox="-7 -7 14 14" aria-hidden="true">{_dot(number, 0, 0)}</svg>'


def _dot(number: int, x: float, y: float, r: float = RADIUS) -> str:
    d = r + 1
    if _shape(number) == 0:
        return f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="{r:g}"/>'
    # From the middle: a square, a diamond, a triangle.
    path = (
        f"m{1 - r:g} {1 - r:g}h{2 * r - 2:g}v{2 * r - 2:g}h{2 - 2 * r:g}z",
        f"m0 {-d:g}l{d:g} {d:g}l{-d:g} {d:g}l{-d:g} {-d:g}z",
        f"m0 {-d:g}l{d:g} {2 * r:g}h{-2 * d:g}z",
    )[_shape(number) - 1]
    return f'<path class="dot" d="M{x:.1f} {y:.1f}{path}"/>'


def _told(plot: Plot, name: str, point: Point) -> str:
    """The text that pointing at a mark shows: "NAME: VALUE UNIT (LOW to HIGH); TEXT"."""
    unit = plot.y.label.rpartition(", ")[2] if ", " in plot.y.label else ""
    text = f"{name}: {four_digits(point.y)} {unit}".rstrip()
    if point.low is not None and point.high is not None:
        text += f" ({four_digits(point.low)} to {four_digits(point.high)})"
    return f"{text}; {point.text}" if point.text else text


def _mark(point: Point, number: int, text: str, mark: Mark, place: tuple[float, float] | None) -> str:
    parts = []
    if point.low is not None and point.high is not None:
        parts.append(
            f'<line class="interval" x1="{mark.x:.1f}" x2="{mark.x:.1f}" y1="{mark.low:.1f}" y2="{mark.high:.1f}"/>'
        )
    parts.append(_dot(number, mark.x, mark.y, mark.radius))
    if place is not None:
        if far_away(mark, place):
            x, y = before_label(mark, place)
            parts.append(f'<line class="leader" x1="{mark.x:.1f}" y1="{mark.y:.1f}" x2="{x:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{place[0]:.1f}" y="{place[1]:.1f}" dy="4" text-anchor="middle">{number + 1}</text>')
    return (
        f'<g class="mark {_colour(number)}" tabindex="0" role="img" aria-label="{escape(text)}" '
        f'data-series="{number}">{"".join(parts)}</g>'
    )


def save_plot(plot: Plot, paths: Sequence[Path]) -> None:
    """Draw a plot with matplotlib into files whose suffixes choose the format."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 4.6))
    axes = figure.subplots()
    _set_axes(axes, plot)
    covering = _covering([axes.transData.transform([(p.x, p.y) for p in s.points]).tolist() for s in plot.series])
    for number, (series, covered) in enumerate(zip(plot.series, covering, strict=True)):
        _draw_series(axes, plot, number, series, covered)
    points = _points(plot)
    if plot.front is not None:
        front = [points[i] for i in pareto_front([(point.x, point.y) for point in points], plot.front)]
        style: dict[str, Any] = {"color": "#9aa0a6", "linestyle": ":", "zorder": 0, "label": "Pareto front"}
        axes.plot([p.x for p in front], [p.y for p in front], **style)
    _number_marks(plot, axes, _radii(plot, covering))
    axes.set_title(plot.title)
    axes.grid(alpha=0.3)
    legend: Any = axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.03, 0.5))
    for handle in legend.legend_handles[: len(plot.series)]:
        handle.set(markersize=6.5, linewidth=1.5)
    with rc_context({"svg.hashsalt": plot.name}):  # the same file for the same cells
        for path in paths:
            with replacing(path) as temporary:
                metadata = {"Date": None} if path.suffix == ".svg" else None
                figure.savefig(temporary, dpi=130, bbox_inches="tight", metadata=metadata)


def _set_axes(axes: Any, plot: Plot) -> None:
    for name, axis, (low, high) in zip("xy", (plot.x, plot.y), _ranges(plot), strict=True):
        axes.set(**{f"{name}scale": "log" if axis.log else "linear", f"{name}lim": (low, high)})
        values = _ticks(low, high, axis.log)
        axes.set(**{f"{name}ticks": values, f"{name}ticklabels": [_number(value) for value in values]})
        axes.set(**{f"{name}label": _label(axis)})
    axes.minorticks_off()


def _draw_series(axes: Any, plot: Plot, number: int, series: Series, covered: int) -> None:
    """The marks, lines and intervals of a series, a mark larger by the others that cover it."""
    colour = COLOURS[number % len(COLOURS)]
    style: dict[str, Any] = {"color": colour, "marker": SHAPES[_shape(number)]}
    style |= {"markersize": 6.5 + WIDER * covered, "linewidth": 1.5 + 0.75 * WIDER * covered}
    style["linestyle"] = "-" if plot.lines else ""
    style |= {"label": f"{number + 1}  {series.name}", "markeredgecolor": "white", "markeredgewidth": 0.7}
    axes.plot([point.x for point in series.points], [point.y for point in series.points], **style)
    for point in series.points:
        if point.low is not None and point.high is not None:
            axes.plot([point.x] * 2, [point.low, point.high], color=colour, linewidth=1, alpha=0.6, zorder=1.5)


def _number_marks(plot: Plot, axes: Any, radii: Sequence[float]) -> None:
    """Write the numbers of the series beside their marks."""
    points, labels = _points(plot), _labels(plot)

    def screen(x: float, y: float) -> tuple[float, float]:
        across, along = axes.transData.transform((x, y))
        return across, -along

    marks = []
    for p, radius in zip(points, radii, strict=True):
        (x, y), low, high = (screen(p.x, p.y if end is None else end) for end in (p.y, p.low, p.high))
        marks.append(Mark(x, y, low[1], high[1], radius))
    box = axes.bbox
    places = place_labels(marks, labels, (box.x0, -box.y1, box.x1, -box.y0))
    colours = [COLOURS[number % len(COLOURS)] for number, series in enumerate(plot.series) for _ in series.points]
    to_points = 72 / axes.figure.dpi
    for number, (x, y) in places.items():
        mark = marks[number]
        line = {"arrowstyle": "-", "color": colours[number], "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0}
        axes.annotate(
            labels[number],
            (points[number].x, points[number].y),
            ((x - mark.x) * to_points, (mark.y - y) * to_points),
            textcoords="offset points",
            color=colours[number],
            fontsize=8,
            fontweight="bold",
            ha="center",
            va="center_baseline",
            arrowprops=line if far_away(mark, (x, y)) else None,
        )
