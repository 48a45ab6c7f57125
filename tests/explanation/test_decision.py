"""What is taken out and covered, by models whose scores are known."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import lambdanets
from explanation_layers import LAYERS, layer_and_input
from lambdanets import LambdaLayer, lambda_apply
from lambdanets.explanation.capture import parts_of
from lambdanets.explanation.decision import _without, ablate, has_grad_cam, occlude
from lambdanets.layers import TokenLambda


class Classifier(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer, self.head = layer, nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.layer(x).mean((2, 3)))


def test_terms_and_layers_taken_out():
    model = Classifier(LambdaLayer(8, scope=3, stride=2)).eval()
    x = torch.randn(1, 8, 5, 6)
    found = {made.part: made for made in ablate(model, (x,), ["layer"], 1)}
    whole = model(x).log_softmax(1)[0, 1].item()
    table = model.layer.positions.detach().clone()
    nn.init.zeros_(model.layer.positions)
    without_position = model(x).log_softmax(1)[0, 1].item()
    assert found["position"].score == pytest.approx(without_position, abs=1e-5)
    assert found["position"].change == pytest.approx(without_position - whole, abs=1e-5)
    assert found["layer"].score == pytest.approx(model.head.bias.log_softmax(0)[1].item(), abs=1e-6)
    with torch.no_grad():
        model.layer.positions.copy_(table)
    query, _, value = parts_of(model.layer, x, None)
    position = lambda_apply(query, None, value, lambdanets.GridPositions(table, (5, 6)))
    scores = model.head(model.layer.pool(position.transpose(2, 3).reshape(1, 8, 5, 6)).mean((2, 3))).log_softmax(1)
    assert found["content"].score == pytest.approx(scores[0, 1].item(), abs=1e-5)


@pytest.mark.parametrize("kind", LAYERS)
def test_the_terms_add_up_to_the_layer(kind):
    layer, args = layer_and_input(kind)
    with torch.no_grad():
        out = layer(*args)
        parts = []
        for part in ("content", "position"):
            handle = layer.register_forward_hook(_without(part), with_kwargs=True)
            parts.append(layer(*args))
            handle.remove()
        torch.testing.assert_close(sum(parts), out, atol=1e-10, rtol=1e-10)
        assert (parts[1] - out).abs().max() > 1e-3 or kind == "tokens, none"
        if isinstance(layer, TokenLambda) and layer.positions is not None:
            for name in ("positions", "prefix_keys", "prefix_queries", "prefix_pairs"):
                if getattr(layer, name) is not None:
                    nn.init.zeros_(getattr(layer, name))
            torch.testing.assert_close(layer(*args), parts[1], atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("compiled", ["the model", "a part"])
def test_compiled_models_are_explained_as_their_parts_are(compiled):
    """A graph that was compiled calls no hooks that are registered later."""
    model, x = Classifier(nn.Sequential(LambdaLayer(8, scope=3), nn.ReLU())).eval(), torch.randn(1, 8, 5, 6)
    expected = [made.change for made in ablate(model, (x,), ["layer.0"], 1)]
    assert 0 not in expected
    if compiled == "the model":
        model.compile(backend="eager")
    else:
        model.layer = torch.compile(model.layer, backend="eager")
    with torch.no_grad():
        model(x)
    found = lambdanets.explain(model, x).ablations(1)
    assert [made.change for made in found] == pytest.approx(expected, abs=1e-6)


def test_hooks_of_the_user_act_on_what_is_left():
    model, x = Classifier(LambdaLayer(8, scope=3)).eval(), torch.randn(1, 8, 5, 6)
    model.layer.register_forward_hook(lambda layer, args, out: 2 * out)
    without = {made.part: made.score for made in lambdanets.explain(model, x).ablations(1)}
    nn.init.zeros_(model.layer.positions)
    assert without["position"] == pytest.approx(model(x).log_softmax(1)[0, 1].item(), abs=1e-6)


class CalledTwice(nn.Module):
    """The layer runs on one example, then on two."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = LambdaLayer(8, scope=3), nn.Linear(8, 3)

    def forward(self, x):
        x = self.layer(x)
        return self.head(self.layer(torch.cat([x, -x])).mean((2, 3))).sum(0, keepdim=True)


def test_a_layer_that_runs_on_several_examples_later():
    model, x = CalledTwice().eval(), torch.randn(1, 8, 5, 6)
    without = {made.part: made.score for made in lambdanets.explain(model, x).ablations(1)}
    nn.init.zeros_(model.layer.positions)
    assert without["position"] == pytest.approx(model(x).log_softmax(1)[0, 1].item(), abs=1e-6)


class Corner(nn.Module):
    """The score of class 0 is the sum of the pixels in the upper right corner, two rows and three columns."""

    def __init__(self):
        super().__init__()
        self.layer = LambdaLayer(3, scope=3, num_heads=1)

    def forward(self, x):
        self.layer(x)
        return torch.stack([x[:, :, :2, -3:].sum((1, 2, 3)), x.new_zeros(len(x))], dim=1)


def test_covered_parts_that_matter():
    x = torch.ones(1, 3, 8, 12)
    explanation = lambdanets.explain(Corner().eval(), x)
    occlusion = explanation.occlusion(0)
    assert occlusion.shape == (8, 12)
    # Squares of 3 pixels, about half of that apart.
    assert (occlusion[:2, -3:] < 0).all()
    assert (occlusion[5:] == 0).all()
    assert (occlusion[:, :6] == 0).all()
    assert (x == 1).all()
    whole = occlude(explanation.model, x, 0, window=12)
    expected = torch.tensor([0.0, 0.0]).log_softmax(0)[0] - torch.tensor([18.0, 0.0]).log_softmax(0)[0]
    np.testing.assert_allclose(whole, np.full((8, 12), expected), rtol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 7])
def test_batches_of_covered_images_change_nothing(classifier, explanation, batch_size):
    image = explanation.inputs[0]
    np.testing.assert_allclose(
        occlude(classifier, image, 2, batch_size=batch_size), explanation.occlusion(2), atol=1e-5
    )


def test_what_is_no_image_is_not_covered():
    explanation = lambdanets.explain(SequenceClassifier().eval(), torch.randn(1, 8, 11))
    with pytest.raises(ValueError, match=r"input is no image \(1, channels, height, width\)"):
        explanation.occlusion()
    with pytest.raises(ValueError, match="grid of two axes"):
        explanation.grad_cam()
    assert len(explanation.ablations()) == 3


class SequenceClassifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = LambdaLayer(8, scope=3, ndim=1)

    def forward(self, x):
        return self.layer(x).mean(2)


@pytest.mark.skipif(not has_grad_cam(), reason="the package grad-cam is not installed")
def test_grad_cam(classifier, explanation):
    cam = explanation.grad_cam()
    assert cam.shape == (16, 16)
    assert 0 <= cam.min() < cam.max() <= 1
    assert all(parameter.grad is None for parameter in classifier.parameters())
    assert not any(module._forward_hooks for module in classifier.modules())


@pytest.mark.skipif(not has_grad_cam(), reason="the package grad-cam is not installed")
def test_grad_cam_in_the_middle_of_a_training(explanation, classifier):
    model = copy.deepcopy(classifier).train()
    model(torch.randn(2, 3, 16, 16)).sum().backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    found = lambdanets.explain(model, explanation.inputs[0])
    found.grad_cam()
    torch.testing.assert_close([parameter.grad for parameter in model.parameters()], expected, atol=0, rtol=0)
    assert model.training


@pytest.mark.skipif(not has_grad_cam(), reason="the package grad-cam is not installed")
def test_grad_cam_of_a_frozen_model(explanation, classifier):
    frozen = copy.deepcopy(classifier).requires_grad_(False)
    cam = lambdanets.explain(frozen, explanation.inputs[0]).grad_cam()
    np.testing.assert_allclose(cam, explanation.grad_cam(), atol=1e-5)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


@pytest.mark.skipif(not has_grad_cam(), reason="the package grad-cam is not installed")
def test_grad_cam_of_tokens():
    import timm

    model = lambdanets.replace_attention(
        timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=64), verbose=False
    )
    cam = lambdanets.explain(model, torch.randn(1, 3, 64, 64)).grad_cam()
    assert cam.shape == (64, 64)
    assert cam.max() > 0


@pytest.mark.skipif(not has_grad_cam(), reason="the package grad-cam is not installed")
@pytest.mark.parametrize("stride", [1, 2])
def test_grad_cam_of_a_layer_whose_output_is_overwritten(stride):
    x = torch.randn(1, 8, 6, 8)
    layer, head = LambdaLayer(8, scope=3, stride=stride), nn.Linear(8, 3)
    cams = []
    for inplace in (False, True):
        rest = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
        model = nn.Sequential(layer, nn.ReLU(inplace=inplace), *rest).eval()
        cams.append(lambdanets.explain(model, x).grad_cam(1))
    np.testing.assert_allclose(*cams, atol=1e-6)
    assert cams[0].max() > 0


@pytest.mark.skipif(not has_grad_cam(), reason="the package grad-cam is not installed")
def test_grad_cam_takes_no_bfloat16(explanation, classifier, tmp_path):
    model = copy.deepcopy(classifier).bfloat16()
    found = lambdanets.explain(model, explanation.inputs[0].bfloat16())
    with pytest.raises(ValueError, match=r"no model in bfloat16: explain model\.float\(\)"):
        found.grad_cam()
    found.save_html(tmp_path / "page.html")
    assert "Grad-CAM" not in (tmp_path / "page.html").read_text()


def test_without_grad_cam(explanation, monkeypatch):
    monkeypatch.setattr("lambdanets.explanation.decision.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'lambdanets\[explain\]'"):
        explanation.grad_cam(3)
