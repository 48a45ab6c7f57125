"""The lambda layer: the start of its weights, its projection."""

from __future__ import annotations

from collections.abc import Callable

from lambdanets import files
from lambdanets.markdown_text import markdown_table
from result_tables import RESULTS

__all__ = ["FIGURES", "TABLES"]


def start() -> str:
    """The variance that a layer's output starts with, by size."""
    rows = files.read_rows(RESULTS / "start.csv")
    sizes = ("1x1", "3x3", "4x4", "7x7", "14x14", "28x28")
    found = {(row["context"], row["u"], row["size"]): row["output"] for row in rows}
    layers = dict.fromkeys((row["context"], row["u"]) for row in rows)
    lines = [[f"{context}, u = {u}", *(found[context, u, size] for size in sizes)] for context, u in layers]
    return markdown_table(["output's variance", *sizes], lines)


def _projected_again() -> str:
    """Factor by which a training step of a layer takes longer where it projects again, from the least to the most."""
    rows = [row for row in files.read_rows(RESULTS / "projection.csv") if row["pass"] == "forward+backward"]
    forms = [[float(row["ratio"]) for row in rows if row["form"] == form] for form in ("recompute", "channels_inner")]
    ratios = [again / once for again, once in zip(*forms, strict=True)]
    return f"{min(ratios):.2f} to {max(ratios):.2f}"


def _start_of_maps() -> str:
    """The variance that outputs of global layers start with on maps of 7x7 to 28x28, from the least to the most."""
    rows = [row for row in files.read_rows(RESULTS / "start.csv") if (row["context"], row["u"]) == ("global", "1")]
    outputs = [float(row["output"]) for row in rows if 7 <= int(row["size"].partition("x")[0]) <= 28]
    return f"{min(outputs):.1f} to {max(outputs):.1f}"


TABLES: dict[str, Callable[[], str]] = {"start": start}
FIGURES: dict[str, Callable[[], str]] = {"projected-again": _projected_again, "start-of-maps": _start_of_maps}
