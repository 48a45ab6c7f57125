"""Which layers are taken down, and that the model is left as it was."""

import pytest
import timm
import torch
from torch import nn

import lambdanets
from helpers import assert_same_weights
from lambdanets import LambdaLayer
from lambdanets.interop import TwoOrderLambdaLayer


def test_the_model_is_left_as_it_was(classifier):
    model = timm.create_model("lambda_resnet_tiny", num_classes=4)
    model.load_state_dict(classifier.state_dict())
    model.train()
    model.layer3.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    explanation = lambdanets.explain(model, torch.randn(1, 3, 16, 16))
    explanation.ablations()
    explanation.occlusion()
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert True in modes.values()
    assert_same_weights(model, classifier)
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_hooks_go_when_the_model_fails(classifier):
    with pytest.raises(RuntimeError):
        lambdanets.explain(classifier, torch.randn(1, 5, 16, 16))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in classifier.modules())


def test_layers_by_name(classifier):
    image = torch.randn(1, 3, 16, 16)
    everything = lambdanets.explain(classifier, image)
    assert everything.layers == ("layer2.0.conv2", "layer3.0.conv2", "layer4.0.conv2")
    assert lambdanets.explain(classifier, image, layers=["layer3.0.conv2"]).layers == ("layer3.0.conv2",)
    with pytest.raises(ValueError, match=r"unknown layer 'layer3.conv2'\. Did you mean 'layer3.0.conv2'"):
        lambdanets.explain(classifier, image, layers=["layer3.conv2"])
    with pytest.raises(TypeError, match=r"use layers=\['layer3.0.conv2'\]"):
        lambdanets.explain(classifier, image, layers="layer3.0.conv2")


def test_no_lambda_layer():
    with pytest.raises(ValueError, match=r"no lambda layer to explain, got Conv2d; .* lambdanets.adopt\(model\).model"):
        lambdanets.explain(nn.Conv2d(3, 3, 1), torch.randn(1, 3, 4, 4))


class Windows(nn.Module):
    """Applies a layer to the whole and to halves."""

    def __init__(self):
        super().__init__()
        self.whole, self.halves, self.unused = LambdaLayer(8, scope=3), LambdaLayer(8, scope=3), LambdaLayer(8, scope=3)

    def forward(self, x):
        return self.halves(torch.cat(self.whole(x).chunk(2, dim=3)))


def test_what_cannot_be_explained_is_named():
    model = Windows().eval()
    explanation = lambdanets.explain(model, torch.randn(1, 8, 4, 4))
    assert explanation.layers == ("whole",)
    assert "2 examples or windows" in explanation.left_out["halves"]
    assert "did not call it" in explanation.left_out["unused"]
    with pytest.raises(ValueError, match="layer 'halves' cannot be explained: it is applied to 2 examples"):
        explanation.maps("halves", 0)
    with pytest.raises(ValueError, match="none of the lambda layers can be explained: unused: the model did not"):
        lambdanets.explain(model, torch.randn(1, 8, 4, 4), layers=["unused"])


def test_values_in_two_orders_have_no_common_weights():
    image = torch.randn(1, 8, 4, 4)
    assert lambdanets.explain(TwoOrderLambdaLayer(8, scope=3).eval(), image).layers
    with pytest.raises(ValueError, match="two orders"):
        lambdanets.explain(TwoOrderLambdaLayer(8, scope=3, intra_depth=2).eval(), image)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = LambdaLayer(8, scope=3)

    def forward(self, x):
        return self.layer(self.layer(x))


def test_a_layer_used_twice_is_explained_where_it_is_used_first():
    model, image = Twice().eval(), torch.randn(1, 8, 4, 4)
    terms = lambdanets.explain(model, image).terms["layer"]
    torch.testing.assert_close(torch.tensor(terms.output).transpose(1, 2).reshape(1, 8, 4, 4), model.layer(image))


@pytest.mark.parametrize(
    "make",
    [
        lambda: lambdanets.replace_convs(timm.create_model("resnet18", num_classes=3), stages="CCLL", verbose=False),
        lambda: lambdanets.replace_attention(
            timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=64), verbose=False
        ),
        lambda: lambdanets.adopt(timm.create_model("lambda_resnet26rpt_256", num_classes=3)).model,
        lambda: torch.compile(timm.create_model("lambda_resnet_tiny", num_classes=3), backend="eager"),
    ],
    ids=["convolutions", "attention", "adopted", "compiled"],
)
def test_models_of_others(make):
    explanation = lambdanets.explain(make(), torch.randn(1, 3, 64, 64))
    assert len(explanation.layers) >= 2
    assert not explanation.left_out
    assert not any("_orig_mod" in name for name in explanation.layers)
    assert max(made.error for made in explanation.checks.values()) < 1e-3


def test_what_follows_changes_nothing():
    layer = LambdaLayer(8, scope=3)
    model = nn.Sequential(nn.BatchNorm2d(8), layer, nn.ReLU(inplace=True)).eval()
    explanation = lambdanets.explain(model, torch.randn(1, 8, 4, 4))
    assert explanation.checks["1"].error < 1e-3
    before = explanation.maps("1", (1, 2))
    nn.init.zeros_(layer.positions)
    assert (explanation.maps("1", (1, 2)) == before).all()


def test_a_masked_context_has_no_values():
    mask = torch.tensor([[True, False, True]])
    terms = lambdanets.explain(LambdaLayer(8, scope=3, ndim=1).eval(), (torch.randn(1, 8, 3), None, mask)).terms[
        "(model)"
    ]
    assert (terms.value_norms[0] > 0).tolist() == mask[0].tolist()
    assert not terms.weights(0).part("sum")[:, :, 1].any()
