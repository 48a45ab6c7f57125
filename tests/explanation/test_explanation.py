"""The Explanation: shapes, arguments and what is said about wrong ones."""

import copy

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import lambdanets
from explanation_layers import layer_and_input
from lambdanets import GraphLambdaLayer, LambdaLayer
from lambdanets.interop import TokenLambda

LAYER = "layer2.0.conv2"


def test_shapes(explanation):
    assert explanation.maps(LAYER, (3, 4)).shape == (4, 16, 16)
    assert explanation.maps(LAYER, (3, 4), 2).shape == (16, 16)
    layer, args = layer_and_input("image, u")
    deep = lambdanets.explain(layer, args)
    assert deep.maps("(model)", 0).shape == (4, 3, 4, 5)
    assert deep.maps("(model)", 0, 1).shape == (3, 4, 5)
    assert deep.maps("(model)", 0, 1, depth=2).shape == (4, 5)
    np.testing.assert_array_equal(deep.maps("(model)", 0)[1, 2], deep.maps("(model)", 0, 1, depth=2))
    volume = lambdanets.explain(*layer_and_input("volume"))
    assert volume.maps("(model)", (1, 0, 3), 0).shape == (3, 2, 4)
    crossed = lambdanets.explain(*layer_and_input("tokens, none"))
    assert crossed.maps("(model)", 6, 0).shape == (5,)


def test_parts_add_up_and_weights_are_times_norms(explanation):
    content, position, both = (explanation.maps(LAYER, 52, 1, part) for part in ("content", "position", "sum"))
    np.testing.assert_allclose(content + position, both, rtol=1e-6)
    norms = np.linalg.norm(explanation.terms[LAYER].value[0], axis=1).reshape(16, 16)
    np.testing.assert_allclose(explanation.maps(LAYER, 52, 1, weighted=True), both * norms, rtol=1e-6)


def test_queries_by_place_and_by_number(explanation):
    np.testing.assert_array_equal(explanation.maps(LAYER, (3, 4)), explanation.maps(LAYER, 3 * 16 + 4))
    tokens = lambdanets.explain(*layer_and_input("tokens, prefix"))
    np.testing.assert_array_equal(tokens.maps("(model)", (1, 0)), tokens.maps("(model)", 2 + 3))


@pytest.mark.parametrize("query", [(16, 0), (0, -1), (1,), 256, -1, True, "middle", None, (0, 0, 0), (2.9, 3.2), "23"])
def test_queries_that_are_not_there(explanation, query):
    with pytest.raises(ValueError, match=r"query must be a.* 16 x 16.*, got"):
        explanation.maps(LAYER, query)


def test_other_arguments_that_are_not_there(explanation):
    with pytest.raises(ValueError, match=r"unknown layer 'layer2.conv2'\. Did you mean 'layer2.0.conv2'"):
        explanation.maps("layer2.conv2", 0)
    with pytest.raises(ValueError, match="head must be an int from 0 to 3, got 4"):
        explanation.maps(LAYER, 0, 4)
    with pytest.raises(ValueError, match="depth must be an int from 0 to 0, got 1"):
        explanation.maps(LAYER, 0, depth=1)
    with pytest.raises(ValueError, match="depth must be an int from 0 to 0, got False"):
        explanation.maps(LAYER, 0, depth=False)
    with pytest.raises(ValueError, match="part must be one of 'content', 'position', 'sum', got 'both'"):
        explanation.maps(LAYER, 0, part="both")
    with pytest.raises(ValueError, match=r"depth must be an int from 0 to 0, got None"):
        explanation.figure(LAYER, 0, depth=None)
    with pytest.raises(ValueError, match="is a LambdaLayer, which has no edges"):
        explanation.edges(LAYER)


def test_predictions_and_targets(explanation, classifier):
    probabilities = classifier(explanation.inputs[0])[0].softmax(0)
    best = int(probabilities.argmax())
    name = ["cat", "dog", "owl", "fox"][best]
    assert explanation.predictions[0] == (name, pytest.approx(probabilities[best].item()))
    assert explanation.target() == explanation.target(name) == explanation.target(best) == best
    with pytest.raises(ValueError, match="unknown class 'cta'"):
        explanation.target("cta")
    with pytest.raises(ValueError, match="target must be an int from 0 to 3, got 4"):
        explanation.target(4)
    with pytest.raises(ValueError, match="class_names has 2 names, and the model has 4 outputs; give one name for"):
        lambdanets.explain(classifier, explanation.inputs[0], class_names=["cat", "dog"])


def test_a_classifier_of_nodes_has_no_target():
    """Its output is (nodes, classes), of which the first row is no more than the others."""

    class Nodes(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.classifier = GraphLambdaLayer(8, dim_edge=3), torch.nn.Linear(8, 3)

        def forward(self, x, index, edges):
            return self.classifier(self.layer(x, index, edges))

    graph = (torch.randn(5, 8), torch.randint(0, 5, (2, 9)), torch.randn(9, 3))
    explanation = lambdanets.explain(Nodes().eval(), graph)
    for asked in (explanation.target, explanation.ablations):
        with pytest.raises(ValueError, match=r"scores of classes for one example, \(1, classes\), got \(5, 3\)"):
            asked()


def test_a_model_without_classes():
    explanation = lambdanets.explain(LambdaLayer(8, scope=3).eval(), torch.randn(8, 4, 4))
    assert explanation.predictions == ()
    with pytest.raises(ValueError, match=r"scores of classes, \(1, classes\), got \(1, 8, 4, 4\)"):
        explanation.ablations()


def test_images_of_pillow(classifier):
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 255, (40, 50, 3), dtype=np.uint8))
    explanation = lambdanets.explain(classifier, image)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(classifier))
    torch.testing.assert_close(explanation.inputs[0], transform(image)[None])
    mean, std = (np.array(classifier.pretrained_cfg[name])[:, None, None] for name in ("mean", "std"))
    pixels = (transform(image).numpy() * std + mean) * 255
    np.testing.assert_allclose(explanation.picture[0], pixels.transpose(1, 2, 0), atol=0.51)
    own = lambdanets.explain(classifier, image, transform=lambda image: torch.zeros(3, 24, 24))
    assert own.inputs[0].shape == (1, 3, 24, 24)
    with pytest.raises(ValueError, match=r"mode 'RGBA'.*image.convert\('RGB'\)"):
        lambdanets.explain(classifier, image.convert("RGBA"))
    with pytest.raises(ValueError, match="LambdaLayer does not say how images become its input"):
        lambdanets.explain(LambdaLayer(3, scope=3, num_heads=1), image)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_images_of_pillow_for_models_in_other_precisions(classifier, dtype):
    image = Image.new("RGB", (40, 50), (10, 200, 30))
    explanation = lambdanets.explain(copy.deepcopy(classifier).to(dtype), image)
    assert explanation.inputs[0].dtype == dtype
    np.testing.assert_array_equal(explanation.picture, lambdanets.explain(classifier, image).picture)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layers": []}, ValueError, r"layers must have at least one text, got none"),
        ({"layers": LAYER}, TypeError, r"got the text 'layer2.0.conv2'; use layers=\['layer2.0.conv2'\]"),
        ({"layers": [2]}, TypeError, r"layers must be a sequence of texts, got 2 in it"),
        ({"layers": 2}, TypeError, r"layers must be a sequence of texts, got 2"),
        ({"class_names": "cats"}, TypeError, r"class_names must be a sequence of texts, got the text 'cats'"),
        ({"picture": np.zeros((4, 4), np.uint8)}, TypeError, r"picture must be a PIL.Image, got ndarray"),
        ({"transform": 5}, TypeError, r"transform must be a function of a PIL.Image, got 5"),
        ({"transform": abs}, ValueError, r"transform is for a PIL.Image, and image is a Tensor; leave it out"),
        ({"model": "resnet"}, TypeError, r"model must be a torch.nn.Module, got str"),
    ],
)
def test_arguments_that_mean_nothing(classifier, options, error, message):
    with pytest.raises(error, match=message):
        lambdanets.explain(**{"model": classifier, "image": torch.randn(1, 3, 16, 16), **options})


def test_names_may_come_one_by_one(classifier):
    found = lambdanets.explain(classifier, torch.randn(1, 3, 16, 16), layers=(name for name in [LAYER]))
    assert found.layers == (LAYER,)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layers": []}, ValueError, r"layers must have at least one text"),
        ({"layers": "layer2"}, TypeError, r"use layers=\['layer2'\]"),
        ({"notes": "a note"}, TypeError, r"use notes=\['a note'\]"),
        ({"layers": ["layer2"]}, ValueError, r"unknown layer 'layer2'"),
        ({"path": "no/where.html"}, ValueError, r"path no/where.html is in no, which is no folder; make it first"),
    ],
)
def test_pages_are_refused_before_the_model_runs(classifier, tmp_path, options, error, message):
    explanation = lambdanets.explain(copy.deepcopy(classifier), torch.randn(1, 3, 16, 16))
    explanation.model.register_forward_pre_hook(lambda model, args: pytest.fail("it ran"))
    with pytest.raises(error, match=message):
        explanation.save_html(**{"path": tmp_path / "page.html", **options})
    assert not list(tmp_path.iterdir())


def test_figures_of_parts(explanation):
    with pytest.raises(TypeError, match=r"use parts=\['sum'\]"):
        explanation.figure(LAYER, 0, parts="sum")
    with pytest.raises(ValueError, match="parts must have at least one text, got none"):
        explanation.figure(LAYER, 0, parts=())


def test_a_row_of_tokens_has_no_place_on_an_image():
    class Tokens(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = TokenLambda(3, positions="none", num_heads=1)

        def forward(self, x):
            return self.layer(x.flatten(2).transpose(1, 2))

    explanation = lambdanets.explain(Tokens().eval(), torch.randn(1, 3, 4, 6))
    assert explanation.picture is not None
    assert not explanation.pictured("layer")
    assert len(explanation.figure("layer", 0, parts=["sum"]).axes) == 2  # a map and its colours
    assert lambdanets.explain(*layer_and_input("sequence")).pictured("(model)")


def test_what_is_no_image(classifier):
    with pytest.raises(TypeError, match=r"got str; read a file with PIL.Image.open"):
        lambdanets.explain(classifier, "photo.jpg")
    with pytest.raises(ValueError, match=r"one example .* got shape \(2, 3, 16, 16\); use .*image\[:1\]"):
        lambdanets.explain(classifier, torch.randn(2, 3, 16, 16))


def test_pictures_are_the_input_stretched(classifier):
    image = torch.linspace(-2, 2, 3 * 16 * 16).reshape(1, 3, 16, 16)
    picture = lambdanets.explain(classifier, image).picture
    np.testing.assert_allclose(picture[0], (image[0].permute(1, 2, 0).numpy() + 2) / 4 * 255, atol=0.51)
    bright = lambdanets.explain(classifier, 200 + torch.rand(1, 3, 16, 16)).picture
    assert (bright.min(), bright.max()) == (0, 255)
    volume = lambdanets.explain(*layer_and_input("volume")).picture
    assert volume.shape == (3, 2, 4, 3)
    assert lambdanets.explain(*layer_and_input("sequence")).picture.shape == (1, 8, 11, 3)
    assert lambdanets.explain(*layer_and_input("graph")).picture is None
    shown = lambdanets.explain(classifier, image, picture=Image.new("L", (7, 9), 12)).picture
    assert shown.shape == (1, 9, 7, 3)
    assert (shown == 12).all()


@pytest.mark.parametrize("kind", ["image, u", "sequence", "volume", "tokens, prefix", "graph"])
def test_figures(kind):
    explanation = lambdanets.explain(*layer_and_input(kind))
    query = explanation.terms["(model)"].num_queries - 1
    for head, rows in ((None, 4), (2, 1)):
        figure = explanation.figure("(model)", query, head, parts=("content", "sum"), weighted=True)
        maps = [axes for axes in figure.axes if axes.images and axes.images[0].get_cmap().name == "RdBu_r"]
        assert len(maps) == 2 * rows
        low, high = maps[0].images[0].get_clim()
        assert -low == high > 0
        assert len({np.asarray(axes.images[0].get_array()).tobytes() for axes in maps}) == 2 * rows
    drawn = np.asarray(maps[1].images[0].get_array())
    expected = explanation.maps("(model)", query, 2, depth=0, weighted=True)
    if kind == "volume":
        expected = expected[2]
    np.testing.assert_array_equal(drawn.ravel(), expected.ravel())


def test_figures_of_prefix_tokens():
    explanation = lambdanets.explain(*layer_and_input("tokens, prefix"))
    assert "prefix token 2" in explanation.figure("(model)", 1, 0).get_suptitle()
    assert "query (0, 1)" in explanation.figure("(model)", 3, 0).get_suptitle()


def test_figures_of_a_context_of_its_own():
    """The query has no place in it."""
    layer = TokenLambda(8, num_heads=2, dim_key=4, positions="none").eval()
    explanation = lambdanets.explain(layer, (torch.randn(1, 10, 8), torch.randn(1, 4, 8)))
    axes = explanation.figure("(model)", 7).axes
    assert not [patch for one in axes for patch in one.patches if patch.get_width() == 1]


def test_it_prints_as_a_list(explanation):
    assert f"{LAYER}: grid 16 x 16, 4 heads, content" in repr(explanation)
