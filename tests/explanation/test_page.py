"""The page as a file: its size, what fits, and that names in it are text. What it does is in test_browser.py."""

import json
import re

import numpy as np
import pytest
import timm
import torch

import lambdanets
from explanation_layers import layer_and_input
from lambdanets import LambdaLayer
from lambdanets.explanation import Ablation, Check, page


def data_of(path):
    text = path.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text).group(1))


def test_one_file_that_asks_for_nothing(explanation, tmp_path):
    explanation.save_html(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|//cdn|@import|url\(", text)
    assert not re.search(r"<(?:script|img|link)[^>]+(?:src|href)=\"(?!data:)", text)
    assert "default-src 'none'" in text
    assert [layer["name"] for layer in data_of(tmp_path / "page.html")["layers"]] == list(explanation.layers)


def test_tables_carry_the_numbers_of_the_explanation(explanation, tmp_path):
    explanation.save_html(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    for name, made in explanation.checks.items():
        assert name in text
        assert f"{made.error:.1e}" in text
        assert f"content {round(100 * made.content)} %".replace("-", "−") in text
    for found in explanation.learnt:
        pixels = found.distance * 16 / explanation.terms[found.layer].grid[0]
        assert f"{found.distance:.2f}, {pixels:.1f} pixels</small><small>even table {found.uniform:.2f}" in text
    for made in explanation.ablations():
        assert f"{made.change:+.3f}".replace("-", "−") in text
    for name, probability in explanation.predictions:
        assert re.search(rf"{name}</span> <b>{100 * probability:.1f} %", text)


@pytest.mark.parametrize(("size", "pixels"), [((32, 48), 4.0), ((16, 48), None)])
def test_distances_in_pixels_need_axes_that_are_reduced_alike(size, pixels):
    model = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d((8, 12)), LambdaLayer(8, scope=3)).eval()
    explanation = lambdanets.explain(model, torch.randn(1, 8, *size))
    assert page._pixels(explanation, explanation.terms["1"], 1.0) == pixels


def test_shares_that_oppose_and_none_of_minus_0():
    found = page._shares(Check("a", 1e-4, 9, content=-0.004, position=1.004))
    assert [(share["percent"], str(share["percent"])) for share in found] == [(0, "0"), (100, "100")]
    found = page._shares(Check("a", 1e-4, 9, content=-0.5, position=1.5))
    assert [(share["percent"], share["width"]) for share in found] == [(-50, 25), (150, 75)]


def test_without_what_matters_for_the_class(explanation, tmp_path, monkeypatch):
    monkeypatch.setattr(explanation, "_ablations", {})
    monkeypatch.setattr(explanation, "_maps", {})
    explanation.save_html(tmp_path / "page.html", decision=False)
    assert not explanation._ablations
    assert not explanation._maps
    assert "What matters" not in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert data_of(tmp_path / "page.html")["decision"] == []


@pytest.mark.parametrize(
    "kind", ["image, bias", "sequence, causal", "tokens, prefix, masked", "tokens, none", "graphs", "volume"]
)
def test_layers_that_are_no_classifier(kind, tmp_path):
    lambdanets.explain(*layer_and_input(kind)).save_html(tmp_path / "page.html")
    assert len(data_of(tmp_path / "page.html")["layers"]) == 1


def test_a_model_that_takes_a_dictionary(tmp_path):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = LambdaLayer(8, num_heads=2, dim_key=2, scope=3)

        def forward(self, batch):
            return self.layer(batch["x"]).mean((2, 3))

    lambdanets.explain(Model().eval(), ({"x": torch.randn(1, 8, 5, 5)},)).save_html(tmp_path / "page.html")
    assert len(data_of(tmp_path / "page.html")["layers"]) == 1
    assert data_of(tmp_path / "page.html")["decision"] == []


NAMES = ["</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "{{ 7 * 7 }}", '\u2028 & "quotes" \'犬']


def test_names_are_text(classifier, tmp_path):
    explanation = lambdanets.explain(classifier, torch.randn(1, 3, 16, 16), class_names=NAMES)
    evil = "</title><script>alert(2)</script>\u202e"
    explanation.save_html(tmp_path / "page.html", title=evil, notes=[evil])
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert text.count("<script") == 4
    assert "<img src=x" not in text
    assert (
        "49" not in re.sub(r"<style>.*?</style>|<script.*?</script>", "", text, flags=re.DOTALL).split("{{ 7")[0][-3:]
    )
    assert "{{ 7 * 7 }}" in text
    assert "\u202e" not in text
    assert "&lt;/script&gt;\\u202e" in text
    assert "&lt;img src=x onerror=alert(1)&gt;" in text
    assert data_of(tmp_path / "page.html")["layers"]


def test_names_that_are_not_utf_8(explanation, tmp_path):
    explanation.save_html(tmp_path / "page.html", title="caf\udce9.png", decision=False)
    assert "<h1>caf\\udce9.png</h1>" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_json_cannot_end_its_element():
    text = page._script_json({"name": "</script>&<!--"})
    assert "<" not in text
    assert json.loads(text) == {"name": "</script>&<!--"}
    with pytest.raises(ValueError, match="JSON"):
        page._script_json(float("nan"))


@pytest.mark.parametrize("name", ["lambda_resnet50", "lambda_resnet50_llll"])
def test_pages_of_photographs_stay_below_3_mb(name, tmp_path):
    model = timm.create_model(name, num_classes=10).eval()
    explanation = lambdanets.explain(model, torch.rand(1, 3, 224, 224), layers=None)
    missing = explanation.save_html(tmp_path / "page.html", decision=False)
    assert (tmp_path / "page.html").stat().st_size < 3e6
    shown = [layer["name"] for layer in data_of(tmp_path / "page.html")["layers"]]
    assert sorted([*shown, *missing]) == sorted(explanation.layers)
    # The largest are left out, and no more of them than must be.
    assert missing == (() if name == "lambda_resnet50" else ("layer1.2.conv2", "layer2.0.conv2"))
    for layer in missing:
        assert layer in (tmp_path / "page.html").read_text(encoding="utf-8")


def size_of(terms):
    return len(page._script_json(page._layer(terms, pictured=True))) + 1


def test_layers_that_fit(explanation):
    sizes = {name: size_of(terms) for name, terms in explanation.terms.items()}
    first, second, third = sizes

    def choose(terms, names, room):
        return page.choose_layers(terms, sizes, names, room)

    assert choose(explanation.terms, None, sum(sizes.values())) == [first, second, third]
    assert choose(explanation.terms, None, sum(sizes.values()) - 1) == [second, third]
    assert choose(explanation.terms, [third, second], sizes[second] + sizes[third]) == [second, third]
    with pytest.raises(ValueError, match=rf"layer '{second}' .* of 8 x 8.*2 layers named.*give a smaller image"):
        choose(explanation.terms, [second, third], sizes[second])
    with pytest.raises(
        ValueError, match=r"has a grid of 4 x 4, whose numbers take 0\.\d MB of a page; .*Explanation.maps"
    ):
        choose(explanation.terms, None, 10)
    with pytest.raises(ValueError, match="unknown layer 'layer2'"):
        choose(explanation.terms, ["layer2"], 10)


def test_the_limit_counts_all_of_a_page(tmp_path, monkeypatch):
    layers = [LambdaLayer(8, num_heads=2, dim_key=2, scope=3) for _ in range(91)]
    model = torch.nn.Sequential(*layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()).eval()
    explanation = lambdanets.explain(model, torch.randn(1, 8, 3, 3))
    target = explanation.target()
    made = [
        Ablation(name, part, -1.5, -0.5) for name in explanation.layers for part in ("content", "position", "layer")
    ]
    monkeypatch.setattr(explanation, "_ablations", {target: tuple(made)})
    monkeypatch.setattr(explanation, "_maps", {(name, target): np.ones((3, 3)) for name in ("occlusion", "grad-cam")})
    explanation.save_html(tmp_path / "page.html")
    assert data_of(tmp_path / "page.html")["tables"] == []
    whole = (tmp_path / "page.html").stat().st_size
    listed = 2 * len(", ".join(explanation.layers)) + 300  # the notes on layers without maps
    size = size_of(explanation.terms["0"])
    for least in (0, 1, 6):
        limit = whole + listed - least * size
        monkeypatch.setattr(page, "MAX_BYTES", limit)
        missing = len(explanation.save_html(tmp_path / "page.html"))
        assert least <= missing <= least + (least > 0)
        assert limit - 2 * size - listed < (tmp_path / "page.html").stat().st_size < limit
        # Layers without maps keep the picture of their table, or a note says that they do not.
        tables = [table["name"] for table in data_of(tmp_path / "page.html")["tables"]]
        text = (tmp_path / "page.html").read_text(encoding="utf-8")
        assert (len(tables) < missing) == ("Without a picture of the table" in text)
    with pytest.raises(ValueError, match=r"the page takes 4\.\d MB and is to stay below .* a smaller picture"):
        explanation.save_html(tmp_path / "page.html", notes=["long" * 1_000_000])


def test_maps_are_thinned():
    values = np.arange(224 * 100, dtype=np.float32).reshape(224, 100)
    thin = page._thinned(values)
    assert thin.shape == (64, 64)
    assert (thin[0, 0], thin[-1, -1]) == (values[0, 0], values[-1, -1])
    assert page._thinned(values[:3, :4]).shape == (3, 4)
