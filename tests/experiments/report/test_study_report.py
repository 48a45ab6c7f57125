"""The report of a study: the page, tables as Markdown and LaTeX, plots; what it says is escaped and whole."""

import os
import re
import shutil
from html.parser import HTMLParser

import pytest

from lambdanets.experiments.compare.outcome import Axis, Claim, Outcome, Plot, Point, Series, Table
from lambdanets.experiments.report.chart import COLOURS, draw_svg
from lambdanets.experiments.report.study_report import latex, table_text, write_report

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
    assert names == {"report.html", *tables, *plots}
    text = page.read_text()
    HTMLParser().feed(text)
    assert "A &lt;toy&gt; study" in text
    assert "<toy>" not in text
    assert "Two cells are missing." in text
    assert "Of 3 expectations 1 held, 1 did not, 1 are open." in text
    for kind, word in (("held", "As expected"), ("failed", "Not as expected"), ("open", "No answer")):
        assert f'class="{kind}"><b>{word}</b>' in text
    assert '<tr class="bad"><th scope="row">&lt;b&gt;</th><td>−1</td>' in text
    assert not re.search(r"(src|href)=\"(?!data:)", text)
    assert "http" not in text.replace("http-equiv", "")
    before = {name: (tmp_path / name).read_bytes() for name in names}
    write_report(OUTCOME, tmp_path, ["Two cells are missing."])
    assert {name: (tmp_path / name).read_bytes() for name in names} == before


def test_colours_of_the_page_are_those_of_the_plots(tmp_path):
    text = write_report(OUTCOME, tmp_path).read_text()
    light = re.findall(r"--s\d: (#\w+);", text.partition("prefers-color-scheme")[0])
    assert tuple(light) == COLOURS


def test_the_plot():
    svg = draw_svg(PLOT)
    marks = re.findall(r'<g class="mark s(\d)".*?aria-label="(.*?)".*?<circle cx="([\d.]+)" cy="([\d.]+)"', svg)
    assert [(number, text) for number, text, *_ in marks] == [
        ("0", "conv: 50 (48 to 52); one"),
        ("1", "&lt;lambda&gt;: 60"),
        ("2", "worse: 40"),
    ]
    xs, ys = ([float(mark[i]) for mark in marks] for i in (2, 3))
    assert xs[0] < xs[2] < xs[1]
    # On a log scale 50 is nearer to 100 than to 1.
    assert xs[1] - xs[2] < 0.2 * (xs[1] - xs[0])
    assert ys[1] < ys[0] < ys[2]
    front = re.search(r'class="front" points="(.*?)"', svg)[1]
    assert front == f"{xs[0]},{ys[0]} {xs[1]},{ys[1]}"
    assert len(re.findall('class="interval"', svg)) == 1
    labels = [float(text.replace(",", "")) for text in re.findall(r'text-anchor="(?:middle|end)">([\d.,]+)<', svg)]
    assert {1, 10, 100, 50, 60} <= set(labels)


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
    assert latex(TABLE).splitlines()[2:6] == [
        r"row & 50 \% \& more \\",
        r"\midrule",
        r"a\_1 & 2\textasciicircum{}3 \\",
        r"<b> & $-$1 \\",
    ]
    hostile = Table("t", "T", ["a|b", "c"], [["d\ne\u202e", "`f`"]], ["Data: /x/*y*."])
    assert table_text(hostile).splitlines()[::2] == [r"| a\|b | c |", r"| d\\ne\\u202e | \`f\` |", r"Data: /x/\*y\*."]
    assert r"d\textbackslash{}ne\textbackslash{}u202e & `f` \\" in latex(hostile)


def test_in_a_browser(tmp_path):
    """No error, pointing shows a mark, nothing wider than a phone."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium: apt-get install chromium")
    page_file, complaints = write_report(OUTCOME, tmp_path), []
    with sync_api.sync_playwright() as playwright:
        # A container's root may not have Chromium's sandbox.
        options = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=chromium, args=options)
        page = browser.new_page(viewport={"width": 375, "height": 700}, color_scheme="dark")
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(page_file.as_uri())
        page.wait_for_selector("html[data-ready]", state="attached")
        page.locator(".mark circle").nth(1).hover()
        assert page.locator(".readout").inner_text() == "<lambda>: 60"
        assert page.locator(".mark.on").count() == 1
        page.locator(".mark").nth(0).focus()
        assert page.locator(".readout").inner_text() == "conv: 50 (48 to 52); one"
        assert page.evaluate("document.documentElement.scrollWidth") <= 375
        browser.close()
    assert complaints == []
