"""The files of a study's report: one HTML page, tables as Markdown and LaTeX, plots as PNG and SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lambdanets.console import one_line
from lambdanets.experiments.compare.outcome import Outcome, Table
from lambdanets.experiments.report.chart import COLOURS, draw_svg, save_plot
from lambdanets.experiments.report.report import markdown
from lambdanets.files import make_folder, write_text
from lambdanets.markdown_text import as_text
from lambdanets.pages import render_page

__all__ = ["latex", "table_text", "write_report"]


def write_report(outcome: Outcome, folder: Path, warnings: Sequence[str] = ()) -> Path:
    """Write the report of a study.

    Args:
        outcome: what the study found.
        folder: of the study: ``report.html``, and ``tables/`` and ``plots/`` with the same as files.
        warnings: sentences at the top of the page, as on cells that are missing.

    Returns:
        The page.
    """
    plots = [plot for plot in outcome.plots if any(series.points for series in plot.series)]
    for name in ("tables", "plots"):
        make_folder(folder / name)
    for table in outcome.tables:
        write_text(folder / "tables" / f"{table.name}.md", f"{as_text(outcome.environment)}\n\n{table_text(table)}\n")
        write_text(folder / "tables" / f"{table.name}.tex", latex(table))
    for plot in plots:
        save_plot(plot, [folder / "plots" / f"{plot.name}.{suffix}" for suffix in ("png", "svg")])
    page = folder / "report.html"
    text = render_page(
        "lambdanets.experiments.report",
        ("page.css", "page.js"),
        outcome=outcome,
        warnings=list(warnings),
        plots=[(plot, draw_svg(plot)) for plot in plots],
        colours=len(COLOURS),
    )
    write_text(page, text)
    return page


def table_text(table: Table) -> str:
    """Return a table in Markdown, with its notes; rows that lost are marked."""
    rows = [[f"{row[0]} ▼" if i in table.bad else row[0], *row[1:]] for i, row in enumerate(table.rows)]
    cells = [[as_text(cell) for cell in row] for row in (table.columns, *rows)]
    return "\n\n".join([markdown(cells[0], cells[1:]), *map(as_text, table.notes)])


_LATEX = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "−": "$-$",
    "×": r"$\times$",
}


def latex(table: Table) -> str:
    """Return a table in LaTeX, for the package booktabs."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join("".join(_LATEX.get(sign, sign) for sign in one_line(cell)) for cell in cells) + r" \\"

    body = [line(row) for row in table.rows]
    columns = "l" + "r" * (len(table.columns) - 1)
    top = [f"\\begin{{tabular}}{{{columns}}}", r"\toprule", line(table.columns), r"\midrule"]
    return "\n".join([*top, *body, r"\bottomrule", r"\end{tabular}", ""])
