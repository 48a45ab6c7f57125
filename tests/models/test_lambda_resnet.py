"""The models in timm's registry."""

import pytest
import timm
import torch
from timm.models import is_model

import lambdanets
from lambdanets import LambdaLayer, LambdaResNet

NAMES = ["lambda_resnet50_llll", "lambda_resnet_tiny"]
# timm's own; ours must never stand in their place.
TIMMS = ["lambda_resnet26t", "lambda_resnet50ts", "lambda_resnet26rpt_256"]


def millions(model):
    return sum(p.numel() for p in model.parameters()) / 1e6


def test_registered():
    assert set(NAMES) <= set(timm.list_models("lambda_*"))


@pytest.mark.parametrize("name", TIMMS)
def test_names_of_timm_are_not_shadowed(name):
    assert is_model(name)
    assert timm.models.model_entrypoint(name).__module__.startswith("timm.")


def test_parameters_of_the_papers_comparison():
    """15.0 M (paper, tables 3 and 10); a public re-implementation with ImageNet weights counts 14.995 M."""
    with torch.device("meta"):
        assert millions(timm.create_model("lambda_resnet50_llll")) == pytest.approx(14.995592, abs=1e-6)


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        ("CCCC", 25.56),
        ("LCCC", 25.49),
        ("LLCC", 24.99),
        ("LLLC", 21.73),
        ("CLLL", 15.06),
        ("CCLL", 15.56),
        ("CCCL", 18.83),
    ],
)
def test_parameters_of_other_placements(stages, expected):
    with torch.device("meta"):
        model = timm.create_model("lambda_resnet50_llll", stages=stages)
    assert millions(model) == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize("name", NAMES)
def test_forward_and_backward(name):
    model = timm.create_model(name, num_classes=7).train()
    height = model.default_cfg["input_size"][1]
    height = min(height, 64)
    model(torch.randn(2, 3, height, height + 32)).square().mean().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None]
    assert not without, f"no gradient for {without}"
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_features_classifier_and_widths(name):
    model = timm.create_model(name, num_classes=0)
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, model.num_features)
    model.reset_classifier(5)
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 5)
    features = timm.create_model(name, features_only=True)
    maps = features(torch.randn(1, 3, 64, 64))
    for feature, width, stride in zip(
        maps, features.feature_info.channels(), features.feature_info.reduction(), strict=True
    ):
        assert feature.shape[1] == width
        assert feature.shape[2] == 64 // stride


def test_lambda_layers_keep_their_own_initialisation():
    """timm's init_weights fills every convolution, the projections of lambda layers too."""
    layer = timm.create_model("lambda_resnet50_llll").layer4[2].conv2
    assert isinstance(layer, LambdaLayer)
    query_width = layer.num_heads * layer.dim_key
    query, rest = layer.qkv.weight[:query_width], layer.qkv.weight[query_width:]
    assert query.std().item() == pytest.approx((layer.dim_key * layer.dim) ** -0.5, rel=0.05)
    assert rest.std().item() == pytest.approx(layer.dim**-0.5, rel=0.05)
    assert layer.positions.std().item() == pytest.approx((layer.dim_key * 23 * 23) ** -0.5, rel=0.05)


@pytest.mark.parametrize("size", [(8, 8), (9, 13), (32, 32), (28, 8)])
def test_tiny_takes_any_small_image(size):
    model = timm.create_model("lambda_resnet_tiny", in_chans=1).eval()
    assert model(torch.randn(2, 1, *size)).shape == (2, 10)


def test_tiny_on_the_meta_device_then_loaded():
    model = timm.create_model("lambda_resnet_tiny").eval()
    with torch.device("meta"):
        empty = timm.create_model("lambda_resnet_tiny")
    empty = empty.to_empty(device="cpu").eval()
    empty.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(empty(x), model(x), atol=0, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": "CCL"}, "four letters, C .* as \"CCLL\", got 'CCL'"),
        ({"stages": "CCXL"}, "got 'CCXL'"),
        ({"stem_stride": 3}, "stem_stride must be 1 or 2 .* got 3"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model("lambda_resnet_tiny", **options)


def test_public_names():
    assert lambdanets.LambdaResNet is LambdaResNet
