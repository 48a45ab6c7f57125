"""Every model of the registry as one graph of PyTorch's own operations."""

import pytest
import timm
import torch

import lambdanets  # noqa: F401  # registers the models
from interop.peers import calibrate, randomise
from lambdanets import LambdaLayer
from lambdanets.interop.export.tracing import switch_kernels, trace


@pytest.mark.parametrize("name", timm.list_models(module="lambda_resnet"))
def test_every_registered_model_is_traced(name):
    """With one narrow block a stage, its own placement, lambda layers and gates: more blocks add time alone."""
    torch.manual_seed(0)
    shrunken = {"layers": (1, 1, 1, 1), "channels": (8, 16, 32, 64), "stem_width": 8, "num_classes": 5}
    model = timm.create_model(name, **shrunken)
    images = torch.randn(3, 3, 80, 64)
    calibrate(randomise(model), images).eval()
    with switch_kernels(model) as switched:
        program = trace(model, torch.zeros(2, 3, 96, 64), fixed_size=False).module()
    assert len(switched) == sum(isinstance(module, LambdaLayer) for module in model.modules()) > 1
    with torch.no_grad():
        expected = model(images)
        assert expected.std() > 0.1
        torch.testing.assert_close(program(images), expected, atol=1e-4, rtol=1e-4)
