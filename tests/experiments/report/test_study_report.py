"""The report of a study: the page, tables as Markdown and LaTeX, plots; what it says is escaped and whole."""

import os
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from itertools import combinations, pairwise
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from lambdanets.experiments.compare.outcome import Axis, Claim, Outcome, Plot, Point, Series, Table
from lambdanets.experiments.report.chart import COLOURS, LARGE, SMALL, draw_svg, save_plot
from lambdanets.experiments.report.labels import LETTER
from lambdanets.experiments.report.study_report import check_place, latex, table_text, write_report
from lambdanets.experiments.studies import read_outcome
from lambdanets.markdown_text import as_text

COMPARE = Path(__file__).parents[3] / "results" / "compare"

TABLE = Table("costs", "Costs", ["row", "50 % & more"], [["a_1", "2^3"], ["<b>", "−1"]], ["A note."], frozenset({1}))
PLOT = Plot(
    "memory",
    "Memory",
    Axis("MB", log=True),
    Axis("accuracy, %"),
    [
        Series("conv", [Point(1.0, 50.0, 48.0, 52.0, "one")]),
        Series("<lambda>", [Point(100.0, 60.0)]),
        Series("worse", [Point(50.0, 40.0)]),
    ],
    front="low",
)
OUTCOME = Outcome(
    "toy",
    "A <toy> study",
    "Which?",
    [Claim("as it is", True), Claim("not so", False), Claim("who knows", None)],
    [TABLE],
    [PLOT, Plot("empty", "Empty", Axis("x"), Axis("y"), [])],
    ["How."],
    "a machine",
)


def test_files(tmp_path):
    page = write_report(OUTCOME, tmp_path, ["Two cells are missing."])
    names = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()}
    tables, plots = ({f"{kind}/{name}" for name in found} for kind, found in (
        ("tables", ("costs.md", "costs.tex")), ("plots", ("memory.png", "memory.svg"))))  # fmt: skip
    assert names == {"report.html", "report-files.txt", *tables, *plots}
    assert set((tmp_path / "report-files.txt").read_text().split()) == {*tables, *plots}
    text = page.read_text()
    HTMLParser().feed(text)
    assert "A &lt;toy&gt; study" in text
    assert "<toy>" not in text
    assert "Two cells are missing." in text
    assert "Of 3 expectations 1 held, 1 did not, 1 are undecided." in text
    for kind, word in (("held", "As expected"), ("failed", "Not as expected"), ("open", "Undecided")):
        assert f'class="{kind}"><b>{word}</b>' in text
    assert '<tr class="bad"><th scope="row">&lt;b&gt;</th><td>−1</td>' in text
    assert not re.search(r"(src|href)=\"(?!data:)", text)
    assert "http" not in text.replace("http-equiv", "")
    before = {name: (tmp_path / name).read_bytes() for name in names}
    write_report(OUTCOME, tmp_path, ["Two cells are missing."])
    assert {name: (tmp_path / name).read_bytes() for name in names} == before


def test_files_of_an_earlier_report_do_not_stay(tmp_path):
    write_report(replace(OUTCOME, tables=[replace(TABLE, name="old")], plots=[replace(PLOT, name="gone")]), tmp_path)
    for mine in ("tables/notes.md", "plots/mine.png"):
        (tmp_path / mine).write_text("mine")
    (tmp_path / "plots" / "folder").mkdir()
    with open(tmp_path / "report-files.txt", "ab") as listed:
        listed.write(b"plots/folder\n\xff\xfe\n")  # a list that is damaged
    write_report(OUTCOME, tmp_path)
    (tmp_path / "plots" / "folder").rmdir()
    left = {file.name for name in ("tables", "plots") for file in (tmp_path / name).iterdir()}
    assert left == {"costs.md", "costs.tex", "memory.png", "memory.svg", "notes.md", "mine.png"}


def test_a_report_that_is_cut_short_has_its_files_in_the_list(tmp_path, monkeypatch):
    def full(plot, paths):
        paths[0].touch()
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("lambdanets.experiments.report.study_report.save_plot", full)
        with pytest.raises(OSError, match="No space left"):
            write_report(replace(OUTCOME, plots=[replace(PLOT, name="gone")]), tmp_path)
    write_report(OUTCOME, tmp_path)
    assert {file.name for file in (tmp_path / "plots").iterdir()} == {"memory.png", "memory.svg"}


@pytest.mark.parametrize("name", ["tables", "plots", "report.html", "report-files.txt"])
def test_what_lies_in_its_place_is_refused_before_work(tmp_path, name):
    check_place(tmp_path / "new")
    if "." in name:
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=f"{name} is a (file; give a folder|folder, .* move it away)"):
        check_place(tmp_path)


def test_colours_of_the_page_are_those_of_the_plots(tmp_path):
    text = write_report(OUTCOME, tmp_path).read_text()
    light = re.findall(r"--s\d: (#\w+);", text.partition("prefers-color-scheme")[0])
    assert tuple(light) == COLOURS


def test_the_plot():
    large, small = (draw_svg(PLOT, frame) for frame in (LARGE, SMALL))
    for svg in (large, small):
        marks = re.findall(
            r'<g class="mark s(\d)".*?aria-label="(.*?)".*?<circle class="dot" cx="(.*?)" cy="(.*?)"', svg
        )
        assert [(number, text) for number, text, *_ in marks] == [
            ("0", "conv: 50 % (48 to 52); one"),
            ("1", "&lt;lambda&gt;: 60 %"),
            ("2", "worse: 40 %"),
        ]
        xs, ys = ([float(mark[i]) for mark in marks] for i in (2, 3))
        assert xs[0] < xs[2] < xs[1]
        # On a log scale 50 is nearer to 100 than to 1.
        assert xs[1] - xs[2] < 0.2 * (xs[1] - xs[0])
        assert ys[1] < ys[0] < ys[2]
        front = re.search(r'class="front" points="(.*?)"', svg)[1]
        assert front == f"{xs[0]},{ys[0]} {xs[1]},{ys[1]}"
        assert len(re.findall('class="interval"', svg)) == 1
        ticks = [float(text.replace(",", "")) for text in re.findall(r'text-anchor="(?:middle|end)">([\d.,]+)<', svg)]
        assert {1, 10, 100, 50, 60} <= set(ticks)
    assert 'class="chart large"' in large
    assert 'class="chart small"' in small


def crowd(count, lines=False):
    """Series at nearly one place, as of rows that differ in little."""
    series = [Series(f"row {i}", [Point(0.348, 96 + i / 40, 95.0, 97.0)] * (1 + lines)) for i in range(count)]
    return Plot("crowd", "Crowd", Axis("x", log=True), Axis("y"), [*series, Series("far", [Point(0.36, 95)])], lines)


def boxes(svg):
    """The numbers of the marks: text, middle."""
    found = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" dy="4" text-anchor="middle">(\d+)</text>', svg)
    return {int(text): (float(x), float(y)) for x, y, text in found}


@pytest.mark.parametrize("frame", [LARGE, SMALL])
def test_numbers_of_marks_do_not_overlap(frame):
    svg = draw_svg(crowd(15), frame)
    found = boxes(svg)
    assert list(found) == list(range(1, 17))
    for (one, (x, y)), (other, (x2, y2)) in combinations(found.items(), 2):
        width = LETTER * (len(str(one)) + len(str(other))) / 2
        assert abs(x - x2) >= width - 0.2 or abs(y - y2) >= 11.8, (one, other)
    dots = re.findall(r'class="dot" (?:cx=|d="M)"?([\d.]+)"?(?: cy="| )([\d.]+)', svg)
    assert len(dots) == 16
    for number, (x, y) in found.items():
        assert 0 < x < frame.width
        half = LETTER * len(str(number)) / 2 + 4.8
        assert all(abs(x - float(a)) >= half or abs(y - float(b)) >= 10.8 for a, b in dots), number
    # Whose number is far from it is joined to it.
    assert 'class="leader"' in svg


def test_equal_rows_are_all_seen():
    """Each one that others cover is drawn wider."""
    equal = [Series(name, [Point(1.0, 2.0), Point(2.0, 4.0)]) for name in "abc"]
    longer = Series("d", [Point(1.0, 2.0), Point(2.0, 4.0), Point(3.0, 9.0)])
    svg = draw_svg(Plot("equal", "Equal", Axis("x"), Axis("y"), [*equal, longer], lines=True))
    assert re.findall(r'<polyline class="line s\d" .*? stroke-width="([\d.]+)"', svg) == ["12.5", "9", "5.5", "2"]
    assert re.findall(r'class="dot" .*? r="([\d.]+)"', svg)[:-1:2] == ["10.25", "8.5", "6.75", "5"]


def test_connected_points_have_one_number():
    assert list(boxes(draw_svg(crowd(3, lines=True)))) == [1, 2, 3, 4]


def test_more_series_than_colours_have_other_shapes():
    svg = draw_svg(crowd(2 * len(COLOURS)))
    shapes = re.findall(r'<g class="mark s(\d)".*?<(\w+) class="dot"', svg)
    assert shapes[0] == ("0", "circle")
    assert shapes[len(COLOURS)] == ("0", "path")
    assert shapes[2 * len(COLOURS)][1] == "path"
    assert len({re.sub(r"M[\d.]+ [\d.]+", "", path) for path in re.findall(r'class="dot" d="(.*?)"', svg)}) == 2


def test_pictures_have_plain_ticks_and_numbers(tmp_path, monkeypatch):
    """Narrow ranges on a log scale, as of parameters, and more rows than colours."""
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: (figures.append(figure), path.touch()))
    save_plot(crowd(15), [tmp_path / "crowd.png"])
    (axes,) = figures[0].axes
    FigureCanvasAgg(figures[0]).draw()
    ticks = [label for label in axes.get_xticklabels(which="both") if label.get_text()]
    assert 3 <= len(ticks) <= 9
    assert all(re.fullmatch(r"[\d.]+", label.get_text()) for label in ticks)
    for one, other in pairwise(label.get_window_extent() for label in ticks):
        assert one.x1 < other.x0
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names[:2] == ["1  row 0", "2  row 1"]
    styles = {(line.get_color(), line.get_marker()) for line in axes.lines if line.get_marker() != "None"}
    assert len(styles) == 16
    numbers = [text for text in axes.texts if text.get_text().isdigit()]
    assert sorted(int(text.get_text()) for text in numbers) == list(range(1, 17))
    for one, other in combinations([Text.get_window_extent(text).padded(-1.5) for text in numbers], 2):
        assert not one.overlaps(other)


@pytest.mark.parametrize(("low", "high"), [(50, 50), (0, 1e-6), (3, 4), (1, 1e6)])
@pytest.mark.parametrize("log", [False, True])
def test_every_range_has_ticks(low, high, log):
    if log and low == 0:
        low = 1e-9
    plot = Plot(
        "p", "P", Axis("x", log), Axis("y", log), [Series("a", [Point(low, low), Point(high, high)])], lines=True
    )
    svg = draw_svg(plot)
    assert "nan" not in svg
    assert 4 <= svg.count('class="grid"') <= 60


def test_tables_as_text():
    assert table_text(TABLE) == "| row | 50 % & more |\n| --- | ---: |\n| a_1 | 2^3 |\n| &lt;b&gt; ▼ | −1 |\n\nA note."
    assert latex(TABLE).splitlines()[3:7] == [
        r"row & 50 \% \& more \\",
        r"\midrule",
        r"a\_1 & 2\textasciicircum{}3 \\",
        r"\textless{}b\textgreater{} $\bigtriangledown$ & $-$1 \\",
    ]
    assert latex(TABLE).splitlines()[-1] == r"\par\smallskip\noindent{\footnotesize A note.\par}"
    assert [as_text(line) for line in ("# a", "- b", "+ c", "1. d", "2) e", "-1.5", "1.5 f")] == [
        r"\# a", r"\- b", r"\+ c", r"1\. d", r"2\) e", "-1.5", "1.5 f"]  # fmt: skip
    hostile = Table("t", "T", ["a|b", "c"], [["d\ne\u202e", "`f`"]], ["Data: /x/*y*."])
    assert table_text(hostile).splitlines()[::2] == [r"| a\|b | c |", r"| d\\ne\\u202e | \`f\` |", r"Data: /x/\*y\*."]
    assert r"d\textbackslash{}ne\textbackslash{}u202e & `f` \\" in latex(hostile)


CELLS = Table(
    "cells", "Cells", ["row", "MB", "why"], [["a", "1", "as it is"], ["b", "2", ""]], ["Marked: ≥ 2 %."],
    text=frozenset({2}), marked=frozenset({(1, 1)}),
)  # fmt: skip


def test_single_cells_are_marked(tmp_path):
    assert "| b | 2 ▼ |  |\n\nMarked" in table_text(CELLS)
    lines = latex(CELLS).splitlines()
    assert lines[1] == r"\begin{tabular}{lrp{16em}}"
    assert lines[5:7] == [r"a & 1 & as it is \\", r"b & 2 $\bigtriangledown$ &  \\"]
    assert lines[-1] == r"\par\smallskip\noindent{\footnotesize Marked: $\ge$ 2 \%.\par}"
    page = write_report(replace(OUTCOME, tables=[CELLS]), tmp_path).read_text()
    assert '<tr><th scope="row">b</th><td class="lost">2</td><td class="text"></td></tr>' in page
    assert page.count('class="lost"') == 1


def test_latex_compiles(tmp_path):
    if shutil.which("pdflatex") is None:
        pytest.skip("no pdflatex: apt-get install texlive-latex-recommended")
    wide = Table("wide", "Wide", [f"column {i}" for i in range(30)], [["1.00 (0.99 to 1.01)"] * 30])
    tables = "\n".join(map(latex, (TABLE, CELLS, wide)))
    (tmp_path / "t.tex").write_text(
        f"\\documentclass{{article}}\\usepackage{{booktabs,graphicx}}\\begin{{document}}\n{tables}\n\\end{{document}}\n"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1800)
    assert result.returncode == 0, result.stdout
    assert "Overfull" not in result.stdout


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        # A container's root may not have Chromium's sandbox.
        options = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        yield playwright.chromium.launch(executable_path=chromium, args=options)


def opened(browser, file, width, scheme, complaints):
    """The page in a window of that width; what it complains about is put into a list."""
    page = browser.new_page(viewport={"width": width, "height": 700}, color_scheme=scheme)
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(file.as_uri())
    page.wait_for_selector("html[data-ready]", state="attached")
    return page


def test_in_a_browser(tmp_path, browser):
    """No error, pointing shows a mark, nothing wider than a phone."""
    complaints = []
    page = opened(browser, write_report(OUTCOME, tmp_path), 375, "dark", complaints)
    page.locator(".mark .dot >> visible=true").nth(1).hover()
    assert page.locator(".readout").inner_text() == "<lambda>: 60 %"
    assert page.locator(".mark.on >> visible=true").count() == 1
    page.locator(".mark >> visible=true").nth(0).focus()
    assert page.locator(".readout").inner_text() == "conv: 50 % (48 to 52); one"
    page.locator(".legend li").nth(2).click()
    assert page.locator(".readout").inner_text() == "worse: 40 %"
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    page.close()
    assert complaints == []


# Texts of the shown charts that overlap, by more than the white around their letters.
OVERLAPS = """
[...document.querySelectorAll(".chart")].filter((chart) => chart.checkVisibility()).flatMap((chart) => {
  const boxes = [...chart.querySelectorAll("text")].map((text) => [text.textContent, text.getBoundingClientRect()]);
  const meet = (a, b) => a.left + 1 < b.right && b.left + 1 < a.right && a.top + 3 < b.bottom && b.top + 3 < a.bottom;
  const others = (a, i) => boxes.slice(i + 1).filter(([, b]) => meet(a, b));
  return boxes.flatMap(([name, a], i) => others(a, i).map(([other]) => [name, other]));
})
"""


@pytest.mark.parametrize("study", sorted(path.name for path in COMPARE.iterdir()))
def test_committed_studies_in_a_browser(tmp_path, browser, study):
    """Nothing overlaps or is cut off on a phone, on a larger screen, in dark mode and in print; no error."""
    file, complaints = write_report(read_outcome(study, COMPARE / study), tmp_path), []
    assert file.stat().st_size < 2e6
    for width, scheme in ((1000, "light"), (360, "dark")):
        page = opened(browser, file, width, scheme, complaints)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator(".chart >> visible=true").count() == page.locator("figure").count()
        assert page.evaluate(OVERLAPS) == []
        sides = "[...document.querySelectorAll('.chart text')].filter((text) => text.checkVisibility()).map((text) => "
        sides += "text.getBoundingClientRect()).flatMap((box) => [box.left, box.right])"
        assert all(0 <= side <= width for side in page.evaluate(sides))
        page.emulate_media(media="print")
        assert not page.locator(".readout").first.is_visible()
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        page.close()
    assert complaints == []
