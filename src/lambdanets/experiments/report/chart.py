"""Plots of studies: as SVG for the page, drawn here, and as PNG and SVG files, drawn by matplotlib."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from lambdanets.experiments.compare.outcome import Axis, Plot, Point
from lambdanets.experiments.compare.statistics import pareto_front
from lambdanets.files import replacing

__all__ = ["COLOURS", "draw_svg", "save_plot"]

WIDTH, HEIGHT = 680, 400
LEFT, RIGHT, TOP, BOTTOM = 62, 18, 14, 50
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


def _ticks(low: float, high: float, log: bool) -> list[float]:
    """Round numbers inside of a range."""
    if not log or high / low < 3:
        step = 10 ** math.floor(math.log10((high - low) / 2))
        step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 7)
        return [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 3, 4, 5, 6, 8) if high / low < 10 else (1, 2, 5) if high / low < 1000 else (1,)
    return [value for e in exponents for f in factors if low <= (value := f * 10.0**e) <= high]


def _points(plot: Plot) -> list[Point]:
    return [point for series in plot.series for point in series.points]


def draw_svg(plot: Plot) -> str:
    """Return a plot as an SVG element: points with their intervals, lines, and the Pareto front.

    Each point has the class "mark", the number of its series and its text, which the page's script shows.
    """
    points = _points(plot)
    x_range = _limits([point.x for point in points], plot.x.log)
    heights = [y for point in points for y in (point.y, point.low, point.high) if y is not None]
    y_range = _limits(heights, plot.y.log)
    x = _Scale(*x_range, LEFT, WIDTH - RIGHT, plot.x.log)
    y = _Scale(*y_range, HEIGHT - BOTTOM, TOP, plot.y.log)
    parts = [*_axes(plot, x, y)]
    if plot.front is not None:
        front = pareto_front([(point.x, point.y) for point in points], plot.front)
        parts.append(_line([points[i] for i in front], x, y, "front"))
    for number, series in enumerate(plot.series):
        if plot.lines:
            parts.append(_line(series.points, x, y, f"line s{number % len(COLOURS)}{' dashed' * series.dashed}"))
        for point in series.points:
            parts.append(_mark(point, number, series.name, x, y))
    title = escape(f"{plot.title}: {plot.y.label} against {plot.x.label}")
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="group" aria-label="{title}" class="chart">'
        + "".join(parts)
        + "</svg>"
    )


def _axes(plot: Plot, x: _Scale, y: _Scale) -> list[str]:
    parts = []
    for value in _ticks(x.low, x.high, x.log):
        place = f"{x(value):.1f}"
        parts.append(f'<line class="grid" x1="{place}" x2="{place}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text x="{place}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{value:,.6g}</text>')
    for value in _ticks(y.low, y.high, y.log):
        place = f"{y(value):.1f}"
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{place}" y2="{place}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{place}" dy="4" text-anchor="end">{value:,.6g}</text>')
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(f'<text class="axis" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">')
    parts.append(f"{escape(_label(plot.x))}</text>")
    parts.append(f'<text class="axis" transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">')
    parts.append(f"{escape(_label(plot.y))}</text>")
    return parts


def _label(axis: Axis) -> str:
    return f"{axis.label} (log scale)" if axis.log else axis.label


def _line(points: Sequence[Point], x: _Scale, y: _Scale, kind: str) -> str:
    path = " ".join(f"{x(point.x):.1f},{y(point.y):.1f}" for point in points)
    return f'<polyline class="{kind}" points="{path}"/>'


def _mark(point: Point, number: int, name: str, x: _Scale, y: _Scale) -> str:
    place, height = x(point.x), y(point.y)
    interval = ""
    text = f"{name}: {point.y:.4g}"
    if point.low is not None and point.high is not None:
        interval = (
            f'<line class="interval" x1="{place:.1f}" x2="{place:.1f}" y1="{y(point.low):.1f}" '
            f'y2="{y(point.high):.1f}"/>'
        )
        text += f" ({point.low:.4g} to {point.high:.4g})"
    text += f"; {point.text}" if point.text else ""
    return (
        f'<g class="mark s{number % len(COLOURS)}" tabindex="0" role="img" aria-label="{escape(text)}" '
        f'data-series="{number}">{interval}<circle cx="{place:.1f}" cy="{height:.1f}" r="5"/>'
        f'<text x="{place + 8:.1f}" y="{height - 7:.1f}">{number + 1}</text></g>'
    )


def save_plot(plot: Plot, paths: Sequence[Path]) -> None:
    """Draw a plot with matplotlib into files whose suffixes choose the format."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 4.6))
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for number, series in enumerate(plot.series):
        colour = COLOURS[number % len(COLOURS)]
        xs, ys = [point.x for point in series.points], [point.y for point in series.points]
        style: dict[str, Any] = {"color": colour, "marker": "o", "markersize": 5, "label": series.name}
        style["linestyle"] = "" if not plot.lines else "--" if series.dashed else "-"
        axes.plot(xs, ys, **style)
        for point in series.points:
            if point.low is not None and point.high is not None:
                axes.plot([point.x] * 2, [point.low, point.high], color=colour, linewidth=1)
    points = _points(plot)
    if plot.front is not None:
        front = [points[i] for i in pareto_front([(point.x, point.y) for point in points], plot.front)]
        axes.plot([p.x for p in front], [p.y for p in front], color="#9aa0a6", linestyle=":", zorder=0, label="front")
    axes.set(xscale=_scale(plot.x), xlabel=_label(plot.x), yscale=_scale(plot.y), ylabel=_label(plot.y))
    axes.set_title(plot.title)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    with rc_context({"svg.hashsalt": plot.name}):  # the same file for the same cells
        for path in paths:
            with replacing(path) as temporary:
                metadata = {"Date": None} if path.suffix == ".svg" else None
                figure.savefig(temporary, dpi=130, bbox_inches="tight", metadata=metadata)


def _scale(axis: Axis) -> str:
    return "log" if axis.log else "linear"
