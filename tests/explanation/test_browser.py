"""The page in a headless Chromium: maps follow the query, numbers are those of Python, keyboard, phone, dark mode."""

import io
import os
import re
import shutil

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import lambdanets
from explanation_layers import LAYERS, layer_and_input
from helpers import random_norms
from lambdanets import LambdaLayer
from lambdanets.explanation.explanation import PARTS
from lambdanets.explanation.page import _thinned, write_learnt_page
from lambdanets.interop import TokenLambda

sync_api = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PHONE = 360
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        # A container's root may not have Chromium's sandbox.
        options = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, tmp_path):
    """Opens the page of an explanation; afterwards nothing may stand in the console or have been asked for."""
    contexts, complaints = [], []

    def open_it(explanation, width=1100, scheme="light", **options):
        path = tmp_path / "page.html"
        explanation.save_html(path, **options)
        size = {"width": width, "height": 800}
        context = browser.new_context(viewport=size, color_scheme=scheme, has_touch=width == PHONE)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        page.on("request", lambda request: request.url.startswith(("file:", "data:")) or complaints.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready]", state="attached", timeout=60_000)
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert complaints == []


def pixels(page, part="sum"):
    return page.evaluate(f"document.querySelector('[data-part={part}]').toDataURL()")


def hover(page, row, column, rows=16, columns=16, selector="#query"):
    box = page.locator(selector).bounding_box()
    x, y = box["x"] + (column + 0.5) * box["width"] / columns, box["y"] + (row + 0.5) * box["height"] / rows
    page.mouse.move(x, y)
    return x, y


def tap(page, row, column, rows, columns, selector="#query"):
    page.locator(selector).scroll_into_view_if_needed()
    box = page.locator(selector).bounding_box()
    x, y = box["x"] + (column + 0.5) * box["width"] / columns, box["y"] + (row + 0.5) * box["height"] / rows
    page.touchscreen.tap(x, y)


def place(page):
    """Where the query is, and that it is pinned."""
    name = page.locator("#place").inner_text()
    return name + {"Query": "", "Pinned": ", pinned"}[page.locator("#query-caption b").inner_text()]


def readout(page):
    """The position whose weights are read, and the weights."""
    found = re.fullmatch(r"From (.*): content (\S+), position (\S+), sum (\S+)", page.locator("#readout").inner_text())
    return found[1], [float(number.replace("−", "-")) for number in found.groups()[1:]]


def weights_at(explanation, query, context, weighted=False):
    """What the first head of the first layer has there, by part."""
    layer = explanation.layers[0]
    return [explanation.maps(layer, query, 0, part, weighted=weighted)[context] for part in PARTS]


def numbers(page, query):
    found = page.evaluate("(query) => Object.values(weightsOf(layer(), query)).map((part) => [...part])", query)
    return [np.array(part, np.float32) for part in found]


@pytest.mark.parametrize("kind", LAYERS)
def test_numbers_are_those_of_python(kind, open_page):
    explanation = lambdanets.explain(*layer_and_input(kind))
    page = open_page(explanation)
    if kind == "graph":
        assert place(page) == "node 2"  # the middle, node 3, has no edges to it
    terms = explanation.terms["(model)"]
    for query in {0, 1, terms.num_queries // 2, terms.num_queries - 1}:
        for part, found in zip(("content", "position"), numbers(page, query), strict=True):
            expected = terms.weights(query).part(part).ravel()
            assert found.shape == expected.shape
            np.testing.assert_allclose(found, expected, atol=2e-3 * max(np.abs(expected).max(), 1e-9))


def test_the_map_that_is_drawn_has_the_numbers_of_maps(open_page, explanation):
    page = open_page(explanation)
    page.select_option("#layer", index=1)
    page.select_option("#head", index=2)
    hover(page, 5, 6, 8, 8)
    page.check("#weighted")
    for part in ("content", "position", "sum"):
        drawn = page.evaluate(f"[...oneHead(shown.{part}, state.head)]")
        expected = explanation.maps(explanation.layers[1], (5, 6), 2, part, weighted=True)
        np.testing.assert_allclose(np.reshape(drawn, (8, 8)), expected, atol=2e-3 * np.abs(expected).max())
    # Red where a weight is positive, blue where it is negative, by the strongest of each sign.
    strongest = [np.unravel_index(find(expected), (8, 8)) for find in (np.argmax, np.argmin)]
    drawn = Image.open(io.BytesIO(page.locator("[data-part=sum]").screenshot())).convert("RGB")
    cell = drawn.width / 8
    colours = [drawn.getpixel(((column + 0.5) * cell, (row + 0.5) * cell)) for row, column in strongest]
    assert colours[0][0] > colours[0][2]
    assert colours[1][2] > colours[1][0]
    low, high = page.locator("#decision .legend").first.locator("span").all_inner_texts()
    largest = np.abs(_thinned(explanation.occlusion())).max()
    assert (low, high) == (f"−{float(low[1:-6])} falls", f"+{float(low[1:-6])} rises")
    assert float(low[1:-6]) == pytest.approx(largest, rel=1e-2)


def test_pointing_changes_the_map_and_a_click_pins_it(open_page, explanation):
    page = open_page(explanation)
    hover(page, 2, 3)
    assert place(page) == "row 2, column 3"
    before = pixels(page)
    hover(page, 10, 9)
    assert place(page) == "row 10, column 9"
    after = pixels(page)
    assert after != before
    page.mouse.click(*hover(page, 10, 9))
    assert place(page) == "row 10, column 9, pinned"
    hover(page, 2, 3)
    assert pixels(page) == after
    page.mouse.click(*hover(page, 4, 4))
    assert place(page) == "row 4, column 4, pinned"
    page.keyboard.press("Escape")
    hover(page, 2, 3)
    assert pixels(page) == before
    # Nothing moves under the pointer, so that a second click on the same point lets go.
    for width in (1000, 800):
        page.set_viewport_size({"width": width, "height": 800})
        page.wait_for_timeout(100)
        box = page.locator("#query").bounding_box()
        point = hover(page, 13, 14)
        page.mouse.click(*point)
        assert page.locator("#query").bounding_box() == box
        assert place(page) == "row 13, column 14, pinned"
        page.mouse.click(*point)
        assert place(page) == "row 13, column 14"


def test_keyboard(open_page, explanation):
    page = open_page(explanation)
    page.focus("#query")
    page.keyboard.press("Home")
    assert place(page) == "row 8, column 8"
    before = pixels(page)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowUp")
    assert place(page) == "row 7, column 9"
    assert pixels(page) != before
    for _ in range(20):
        page.keyboard.press("ArrowLeft")
    assert place(page) == "row 7, column 0"
    page.keyboard.press("Enter")
    assert place(page) == "row 7, column 0, pinned"
    page.locator("#status").get_by_text("Query at row 7, column 0, pinned. Largest sums of head 1: ").wait_for()
    # Everything else is reached with the tabulator.
    reached = set()
    page.evaluate("document.activeElement.blur()")
    for _ in range(20):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
    assert {"layer", "head", "own", "weighted", "overlay", "query", "head 1", "head 4"} <= reached


def test_menus_change_what_is_shown(open_page, explanation, tmp_path):
    page = open_page(explanation)
    hover(page, 2, 3)
    seen = [pixels(page)]
    page.select_option("#head", index=3)
    seen.append(pixels(page))
    page.check("#weighted")
    seen.append(pixels(page))
    page.check("#overlay")
    seen.append(pixels(page))
    page.select_option("#layer", index=2)
    seen.append(pixels(page))
    assert len(set(seen)) == len(seen)
    assert place(page) == "row 0, column 0"
    page.locator("#heads button").nth(1).click()
    assert page.input_value("#head") == "1"
    content = pixels(page, "content")
    page.select_option("#own", value="")
    assert pixels(page, "content") != content
    # The table is that of the layer shown, or of any other, one without maps included.
    tables = page.locator("#table-note")
    assert tables.inner_text().startswith(f"E of {explanation.layers[2]}: one picture for each of the 16 channels")
    page.select_option("#table-layer", index=0)
    assert tables.inner_text().startswith(f"E of {explanation.layers[0]}: ")
    assert page.input_value("#layer") == "2"
    write_learnt_page(explanation.learnt, tmp_path / "page.html", "learnt alone", ["a note"])
    page.reload()
    page.wait_for_selector("html[data-ready]", state="attached")
    page.select_option("#table-layer", index=1)
    assert tables.inner_text().startswith(f"E of {explanation.layers[1]}: ")
    assert (
        len(set(page.evaluate("[...document.querySelectorAll('#table canvas')].map((one) => one.toDataURL())"))) == 16
    )
    assert "Maps of one query" not in page.locator("body").inner_text()


def test_pointing_at_a_map_reads_a_weight(open_page, explanation):
    page = open_page(explanation)

    def check(query, weighted=False):
        name, found = readout(page)
        assert name == "row 0, column 5"
        np.testing.assert_allclose(found, weights_at(explanation, query, (0, 5), weighted), rtol=2e-2, atol=1e-4)

    hover(page, 2, 3)
    hover(page, 0, 5, selector="[data-part=content]")
    check((2, 3))
    # The pointer rests, and what is shown changes otherwise.
    page.focus("#query")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    check((3, 4))
    page.focus("#weighted")
    page.keyboard.press("Space")
    check((3, 4), weighted=True)
    page.focus("#layer")
    page.keyboard.press("ArrowDown")
    assert page.locator("#readout").inner_text().strip() == ""
    # By the keyboard alone.
    page.keyboard.press("ArrowUp")
    page.focus("[data-part=position]")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowLeft")
    assert readout(page)[0] == "row 8, column 7"
    # Escape lets go wherever the focus is.
    page.mouse.click(*hover(page, 2, 3))
    page.focus("#head")
    page.keyboard.press("Escape")
    assert page.locator("#readout").inner_text().strip() == ""
    assert place(page) == "row 2, column 3"


def test_prefix_tokens_are_queries_of_their_own(open_page):
    page = open_page(lambdanets.explain(*layer_and_input("tokens, prefix")))
    before = pixels(page)
    page.get_by_role("button", name="prefix token 2").click()
    assert place(page) == "prefix token 2, pinned"
    assert pixels(page) != before
    assert page.locator("[data-strip=sum]").is_visible()
    page.focus("#query")
    page.keyboard.press("ArrowLeft")
    assert place(page).startswith("row 1, column 0")


def test_volumes_by_slices(open_page):
    page = open_page(lambdanets.explain(*layer_and_input("volume")))
    assert place(page) == "slice 1, row 1, column 2"
    before = pixels(page)
    page.locator("#slice").fill("2")
    assert pixels(page) != before
    assert place(page) == "slice 1, row 1, column 2"
    page.focus("#query")
    page.keyboard.press("PageUp")
    assert place(page) == "slice 0, row 1, column 2"


def test_values_of_each_position(open_page):
    page = open_page(lambdanets.explain(*layer_and_input("image, u")))
    before = pixels(page)
    page.select_option("#depth", index=2)
    assert pixels(page) != before


def test_pictures_keep_their_sides(open_page, classifier):
    """Wide ones of what matters, and tall maps, which are no taller than the screen; print keeps the sides too."""
    page = open_page(lambdanets.explain(classifier, torch.randn(1, 3, 32, 128)))
    for selector in ("#query", "[data-part=sum]", "#decision canvas >> nth=0"):
        box = page.locator(selector).bounding_box()
        assert box["width"] / box["height"] == pytest.approx(4, rel=0.05)
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 700, "height": 900})
    box = page.locator("#query").bounding_box()
    assert box["width"] / box["height"] == pytest.approx(4, rel=0.05)
    assert not page.locator("#layer").is_visible()
    tall = lambdanets.explain(LambdaLayer(8, scope=3).eval(), torch.randn(1, 8, 60, 3))
    page = open_page(tall)
    for selector in ("#query", "[data-part=sum]"):
        assert page.locator(selector).bounding_box()["height"] <= 480
    hover(page, 59, 2, 60, 3)
    assert place(page) == "row 59, column 2"


def test_the_query_has_no_place_in_a_context_without_positions(open_page):
    layer, x = TokenLambda(8, positions="none").eval(), torch.randn(1, 6, 8)
    page = open_page(lambdanets.explain(layer, (x, torch.randn(1, 6, 8))))
    assert page.evaluate("layer().ownContext")
    assert not open_page(lambdanets.explain(layer, (x,))).evaluate("layer().ownContext")


LONG = "a_very_long_name_without_any_place_to_break_it_" * 3


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", ["classifier", "tokens, prefix", "volume", "sequence", "graph"])
def test_a_phone_does_not_scroll_sideways(open_page, classifier, kind, scheme):
    if kind == "classifier":
        model = torch.nn.Sequential()
        model.add_module(LONG, classifier)
        explanation = lambdanets.explain(
            model.eval(), torch.randn(1, 3, 16, 16), class_names=[LONG + str(n) for n in range(4)]
        )
        page = open_page(explanation, PHONE, scheme, title=LONG, notes=[LONG])
    else:
        explanation = lambdanets.explain(*layer_and_input(kind))
        page = open_page(explanation, PHONE, scheme)
    _, rows, columns = page.evaluate("grid()")
    tap(page, 0, columns - 1, rows, columns)
    assert place(page).endswith(f"{columns - 1}, pinned")
    # A tap reads a weight, which stays when the finger is lifted.
    tap(page, 0, 0, rows, columns, "[data-part=sum]")
    query = explanation.terms[explanation.layers[0]].prefix + page.evaluate("state.slice * grid()[1]") * columns
    expected = [part[page.evaluate("state.cursor")] for part in numbers(page, query + columns - 1)]
    np.testing.assert_allclose(readout(page)[1], [*expected, sum(expected)], rtol=1e-2, atol=1e-4)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE
    wide = page.evaluate(
        "[...document.querySelectorAll('body *')].filter((one) => one.getBoundingClientRect().right > 360.5)"
        ".map((one) => one.outerHTML.slice(0, 80))"
    )
    assert wide == []
    assert page.locator("#query").bounding_box()["width"] > 200


def test_dark_mode(open_page, explanation):
    page = open_page(explanation, scheme="dark")

    def brightness(selector, what):
        colour = page.evaluate(f"getComputedStyle(document.querySelector('{selector}')).{what}")
        return sum(map(int, colour[4:-1].split(",")[:3]))

    assert brightness("body", "backgroundColor") < 120 < 600 < brightness("body", "color")
    dark = pixels(page)
    page.emulate_media(color_scheme="light")
    page.wait_for_timeout(300)
    assert brightness("body", "backgroundColor") > 600
    assert pixels(page) != dark


def test_names_are_shown_and_not_run(open_page, classifier):
    names = ["<script>alert(1)</script>", "<img src=x onerror=alert(2)>", "&amp;", '"><b>']
    page = open_page(lambdanets.explain(classifier, torch.randn(1, 3, 16, 16), class_names=names), title=names[1])
    assert page.locator("h1").inner_text() == names[1]
    assert {one.inner_text() for one in page.locator(".classes .name").all()} == set(names)


def test_a_query_answers_at_once(open_page):
    torch.manual_seed(0)
    model = random_norms(timm.create_model("lambda_resnet50_llll", num_classes=10)).eval()
    explanation = lambdanets.explain(model, torch.rand(1, 3, 224, 224), layers=["layer1.0.conv2"])
    page = open_page(explanation, decision=False)
    # The best of several: other work on the machine counts as well. 50 ms are asked of a laptop.
    best = page.evaluate(
        "Math.min(...[...Array(9).keys()].map((at) => { const start = performance.now(); select(500 + at * 200);"
        " return performance.now() - start; }))"
    )
    assert best < 50
