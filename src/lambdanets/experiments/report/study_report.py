"""The report of a study's cells: one HTML page, tables as Markdown and LaTeX, plots as PNG and SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from lambdanets.console import one_line, print_whole
from lambdanets.experiments.compare.cell import Done, Wanted, coherent, read_cells
from lambdanets.experiments.compare.outcome import Outcome, Table
from lambdanets.experiments.compare.study import Study
from lambdanets.experiments.report.chart import COLOURS, LARGE, SMALL, draw_svg, legend_key, save_plot
from lambdanets.files import check_folder, make_folder, write_text
from lambdanets.markdown_text import as_text, markdown_table
from lambdanets.names import count
from lambdanets.pages import render_page

__all__ = ["MARK", "check_place", "latex", "report_cells", "table_text", "write_report"]


def report_cells(
    study: Study, folder: Path, console: Console, *, like: Sequence[Done] = (), wanted: Wanted | None = None
) -> Path:
    """Write the report of the cells in the folder of a study, and show what it found.

    Args:
        study: the study.
        folder: of the study.
        console: where to name damaged files, the claims, and the page.
        like: the report is of cells of their kind. Default: of the kind of which there are most.
        wanted: what else its cells shall have. Default: nothing.

    Returns:
        The page.

    Raises:
        ValueError: if there are no such cells, or the folder cannot be written to.
    """
    check_place(folder)
    cells, damaged = read_cells(folder)
    for message in damaged:
        print_whole(console, one_line(f"{message}; left out"))
    cells, others = coherent(cells, like, wanted)
    if not cells:
        what = "such cells" if others else "cells"
        raise ValueError(f"{folder} has no {what} of the study {study.name}; run it without --report")
    if wanted is not None and wanted.epochs is not None and not any("epochs" in done.config for done in cells):
        raise ValueError(
            f"{folder} has no trainings of {count(wanted.epochs, 'epoch', 'epochs')}; run them without --report"
        )
    warnings = []
    if others:
        differ = "another size, version, learning rate or number of epochs, or of other data"
        warnings.append(f"Left out: {count(len(others), 'cell', 'cells')} of {differ}.")
    if damaged:
        warnings.append(f"Left out: {count(len(damaged), 'file', 'files')} of cells that cannot be read.")
    outcome = study.outcome(cells)
    warnings += outcome.warnings
    for warning in warnings:
        print_whole(console, one_line(warning))
    try:
        page = write_report(outcome, folder, warnings)
    except OSError:  # as of a full disk
        print_whole(console, "The report is not whole, the cells are: once this is mended, --report writes it.")
        raise
    for claim in outcome.claims:
        word = "undecided" if claim.held is None else "as expected" if claim.held else "not as expected"
        print_whole(console, f"{word}: {claim.text}")
    print_whole(console, f"Report: {one_line(page)}")
    return page


def check_place(folder: Path) -> None:
    """Raise a ValueError unless a report can be written to the folder of a study, before work is done for it."""
    for place in (folder, *(folder / name for name in ("tables", "plots"))):
        check_folder(place)
    for name in ("report.html", LIST):
        if (folder / name).is_dir():
            raise ValueError(f"{folder / name} is a folder, and the report is to be written there; move it away")


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
    written = [f"tables/{table.name}.{suffix}" for table in outcome.tables for suffix in ("md", "tex")]
    written += [f"plots/{plot.name}.{suffix}" for plot in plots for suffix in ("png", "svg")]
    _remove_earlier(folder, written)
    for name in ("tables", "plots"):
        make_folder(folder / name)
    for table in outcome.tables:
        write_text(folder / "tables" / f"{table.name}.md", f"{as_text(outcome.environment)}\n\n{table_text(table)}\n")
        write_text(folder / "tables" / f"{table.name}.tex", f"% {one_line(outcome.environment)}\n{latex(table)}")
    for plot in plots:
        save_plot(plot, [folder / "plots" / f"{plot.name}.{suffix}" for suffix in ("png", "svg")])
    page = folder / "report.html"
    text = render_page(
        "lambdanets.experiments.report",
        ("page.css", "page.js"),
        outcome=outcome,
        warnings=list(warnings),
        plots=[(plot, [draw_svg(plot, frame) for frame in (LARGE, SMALL)]) for plot in plots],
        colours=len(COLOURS),
        legend_key=legend_key,
    )
    write_text(page, text)
    return page


def _remove_earlier(folder: Path, written: Sequence[str]) -> None:
    """Remove the files of an earlier report, of other cells, by its list; a user's files are in none.

    The list is written before the files: those of a report that is cut short are in it.
    """
    listed = folder / LIST
    earlier = listed.read_text(encoding="utf-8", errors="replace").splitlines() if listed.is_file() else []
    for name in set(earlier) - set(written):
        if Path(name).parent.as_posix() in ("tables", "plots") and (folder / name).is_file():
            (folder / name).unlink()
    write_text(listed, "".join(f"{name}\n" for name in written))


# Behind the name of a row that lost, and behind a cell that lost.
MARK = "▼"
# The names of a report's files.
LIST = "report-files.txt"


def _marked(table: Table) -> list[list[str]]:
    """The rows of a table with the marks of those that lost."""
    lost = {(number, 0) for number in table.bad} | table.marked
    return [
        [f"{cell} {MARK}" if (i, j) in lost else cell for j, cell in enumerate(row)] for i, row in enumerate(table.rows)
    ]


def table_text(table: Table) -> str:
    """Return a table in Markdown, with its notes; rows and cells that lost are marked."""
    cells = [[as_text(cell) for cell in row] for row in (table.columns, *_marked(table))]
    return "\n\n".join([markdown_table(cells[0], cells[1:]), *map(as_text, table.notes)])


_LATEX = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "−": "$-$",
    "×": r"$\times$",
    "≥": r"$\ge$",
    "≤": r"$\le$",
    MARK: r"$\bigtriangledown$",
}


def latex(table: Table) -> str:
    """Return a table in LaTeX, with its notes; rows and cells that lost are marked.

    It needs the packages booktabs and graphicx, by which a table wider than the line is made smaller.
    """

    def escaped(text: str) -> str:
        return "".join(_LATEX.get(sign, sign) for sign in one_line(text))

    def line(cells: Sequence[str]) -> str:
        return " & ".join(map(escaped, cells)) + r" \\"

    # Text may be as long as sentences, in which lines break.
    columns = "l" + "".join("p{16em}" if i in table.text else "r" for i in range(1, len(table.columns)))
    fit = r"\noindent\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
    top = [fit, f"\\begin{{tabular}}{{{columns}}}", r"\toprule", line(table.columns), r"\midrule"]
    notes = [rf"\par\smallskip\noindent{{\footnotesize {escaped(note)}\par}}" for note in table.notes]
    return "\n".join([*top, *map(line, _marked(table)), r"\bottomrule", r"\end{tabular}}", *notes, ""])
