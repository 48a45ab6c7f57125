"""One row makes a layer available: a toy layer in the stages of a LambdaResNet, its options, size, cost and start."""

import pytest
import timm
import torch
from torch import nn

from lambdanets import replace_convs
from lambdanets.layers.registry import LAYERS, LayerEntry
from lambdanets.models import LambdaBottleneck, model_cost
from lambdanets.models.placement import place_blocks

NARROW = {"layers": (1, 2, 2, 1), "channels": (16, 32, 32, 64)}


class Toy(nn.Module):
    """A depthwise convolution with a table of the size of its map."""

    def __init__(self, dim, dim_out, *, stride=1, size, width=3, device=None, dtype=None):
        super().__init__()
        self.width, self.size = width, size
        factory = {"device": device, "dtype": dtype}
        self.mix = nn.Conv2d(dim, dim_out, width, stride, width // 2, groups=dim, **factory)
        self.table = nn.Parameter(torch.empty(dim, *size, **factory))
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.constant_(self.table, 0.5)
        nn.init.constant_(self.mix.weight, 0.25)

    def forward(self, x):
        return self.mix(x + self.table[:, : x.shape[2], : x.shape[3]])


@pytest.fixture(autouse=True)
def _toy(monkeypatch):
    reason = "a toy layer must know the size of its map"
    monkeypatch.setitem(LAYERS, "T", LayerEntry("toy layer", Toy, size_error=lambda options: reason))


def build(**kwargs):
    return timm.create_model("lambda_resnet50", **{**NARROW, "stages": "CTLL", "img_size": (64, 48), **kwargs})


def test_a_model_with_a_registered_layer():
    model = build(layer_args={"T": {"width": 5}}, se_ratio=0.25).eval()
    assert model.stages == "CTLL"
    assert model.placement == ("C", "TT", "LL", "L")
    blocks = [*model.layer2]
    assert all(isinstance(block, LambdaBottleneck) and isinstance(block.conv2, Toy) for block in blocks)
    assert [block.conv2.size for block in blocks] == [(16, 12), (8, 6)]
    assert [block.conv2.mix.stride for block in blocks] == [(2, 2), (1, 1)]
    assert [block.conv2.width for block in blocks] == [5, 5]
    assert all(block.se is None for block in blocks)
    # timm initialises every convolution of a model; a registered layer starts as it says.
    assert all((block.conv2.mix.weight == 0.25).all() for block in blocks)
    assert model(torch.randn(2, 3, 64, 48)).shape == (2, 1000)


def test_its_cost_is_counted():
    cost = model_cost("lambda_resnet50", (64, 48), **NARROW, stages="CTLL", img_size=(64, 48))
    plain = model_cost("lambda_resnet50", (64, 48), **NARROW, stages="CCLL", img_size=(64, 48), se_ratio=0)
    assert cost.stages == "CTLL"
    # The toy and the convolution inside of it put out 32 channels each: at 8x6 in both blocks.
    toys, convs = cost.parts[2].activations, plain.parts[2].activations
    assert toys - convs == 2 * 32 * 8 * 6


def test_options_are_checked():
    with pytest.raises(
        ValueError, match=r"layer_args\['T'\] has 'widht', which Toy does not take; did you mean 'width'"
    ):
        build(layer_args={"T": {"widht": 5}})
    with pytest.raises(ValueError, match=r"layer_args\['T'\] must not have 'stride': it is taken from each block"):
        build(layer_args={"T": {"stride": 2}})
    with pytest.raises(
        ValueError, match=r"layer_args must be by the letters \[.*'T'.*\], got 'L'; those of L are lambda_args"
    ):
        build(layer_args={"L": {"scope": 7}})
    with pytest.raises(ValueError, match="layer_args has arguments for 'T', which the stages CCLL have nowhere"):
        build(stages="CCLL", layer_args={"T": {"width": 5}})
    with pytest.raises(TypeError, match=r"layer_args must be a mapping .* got 5"):
        build(layer_args=5)
    with pytest.raises(ValueError, match="img_size must be given where a toy layer must know the size of its map"):
        build(img_size=None)


def test_letters():
    assert place_blocks("CTLL", (1, 1, 1, 1)) == ("C", "T", "L", "L")
    with pytest.raises(ValueError, match=r"C \(convolution\), L \(lambda layer\), .* or T \(toy layer\)"):
        place_blocks("CZLL", (1, 1, 1, 1))
    # What replaces convolutions by lambda layers knows no others.
    with pytest.raises(ValueError, match=r"C \(convolution\) or L \(lambda layer\), as .*got 'CTLL'"):
        replace_convs(timm.create_model("resnet18"), stages="CTLL")


def test_the_weights_of_other_blocks_do_not_depend_on_the_registry():
    torch.manual_seed(0)
    with_toy = build(stages="CCLL").state_dict()
    del LAYERS["T"]
    torch.manual_seed(0)
    torch.testing.assert_close(build(stages="CCLL").state_dict(), with_toy, rtol=0, atol=0)


OWN = [letter for letter in LAYERS if letter not in "CLT"]


@pytest.mark.parametrize("letter", OWN)
def test_every_layer_of_the_registry_trains_in_a_model(letter):
    heads = {"num_heads": 4} if "num_heads" in LAYERS[letter].options else {}
    model = build(stages=f"C{letter}C{letter}", layer_args={letter: heads}, num_classes=3, zero_init_last=False)
    # Maps of 16x12, 8x6 and 4x3, and the strides between them.
    model(torch.randn(2, 3, 64, 48)).sum().backward()
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert missing == []
    for block in model.layer2:
        assert (block.se is not None) == (letter == "S")
        assert isinstance(block, LambdaBottleneck) == (letter != "S")


@pytest.mark.parametrize(("stages", "millions"), [("SSSS", 28.1), ("WWWW", 18.0)])
def test_a_resnet_50_has_the_papers_parameters(stages, millions):
    """Table 3: channel attention, local relative self-attention (stand-alone)."""
    cost = model_cost("lambda_resnet50_llll", 224, stages=stages)
    assert round(cost.parameters / 1e6, 1) == millions


def test_products_that_pytorch_does_not_count():
    """The local attention with stored maps multiplies element by element: 7x7 products of each query and value."""
    narrow = {**NARROW, "se_ratio": 0, "img_size": (64, 48)}
    costs = {
        "C": model_cost("lambda_resnet50", (64, 48), **narrow, stages="CCCC"),
        "W": model_cost("lambda_resnet50", (64, 48), **narrow, stages="CWCC", layer_args={"W": {"num_heads": 4}}),
    }
    convs = 9 * 32 * 32 * (8 * 6 + 8 * 6)
    projections, positions = 32 * 96 * (16 * 12 + 8 * 6), 32 * 14 * (16 * 12 + 8 * 6)
    products = 49 * (32 + 32) * (16 * 12 + 8 * 6)
    difference = costs["W"].multiply_adds - costs["C"].multiply_adds
    assert difference == projections + positions + products - convs
    assert difference == costs["W"].parts[2].multiply_adds - costs["C"].parts[2].multiply_adds
