"""Names of users in pictures."""

import warnings

import numpy as np
import pytest
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontEntry, FontProperties, fontManager, get_font

from lambdanets.figure_text import as_drawn

NAMES = ["$x$", "$\\frac{$", "a$b", "_x", "\\$", "%", "[b]", "é", "a\nb", "\x1b[31m", "\udcff", "\U000f0000"]


def pixels(text, **style):
    figure = Figure(figsize=(4, 1))
    figure.text(0.1, 0.3, text, **style)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba()).copy()


@pytest.mark.parametrize("settings", [{}, {"text.usetex": True}, {"text.parse_math": False}])
def test_names_are_drawn_without_a_word(settings):
    with rc_context(settings), warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn, style = as_drawn(NAMES)
        for name in drawn:
            assert (pixels(name, **style) < 255).any()


def test_escapes_stand_for_what_no_font_has():
    drawn, _ = as_drawn(NAMES)
    assert drawn == [*NAMES[:8], "a\\nb", "\\x1b[31m", "\\udcff", "\\U000f0000"]


def test_dollars_are_no_formula():
    (drawn,), style = as_drawn(["$x$"])
    formula = pixels("$x$")
    assert not np.array_equal(pixels(drawn, **style), formula)


def test_another_font_has_what_the_first_lacks():
    """As a font for Japanese beside one for Latin letters; here from a mathematical font of matplotlib's own."""
    files = {font.name: font.fname for font in fontManager.ttflist}
    first = set(get_font(fontManager.findfont(FontProperties(family=["sans-serif"]))).get_charmap())
    other = set(get_font(files["STIXNonUnicode"]).get_charmap())
    char = chr(min(other - first))
    (drawn,), style = as_drawn([f"a{char}"])
    assert drawn == f"a{char}"
    assert style["family"][0] == "sans-serif"
    assert len(style["family"]) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels(drawn, **style)


def test_a_font_that_cannot_be_read_is_passed_over(tmp_path, monkeypatch):
    (tmp_path / "broken.ttf").write_bytes(b"?")
    broken = FontEntry(fname=str(tmp_path / "broken.ttf"), name="Broken")
    monkeypatch.setattr(fontManager, "ttflist", [broken, *fontManager.ttflist])
    assert as_drawn(["\U000f0000"])[0] == ["\\U000f0000"]
