"""Every model of the registry as one graph of PyTorch's own operations."""

import pytest
import timm
import torch

import lambdanets  # noqa: F401  # registers the models
from interop.peers import calibrate, randomise
from lambdanets import LambdaLayer
from lambdanets.interop.export.tracing import switch_kernels, trace

# The others differ from these in the number of blocks, which is made one here: more blocks add time alone.
NAMES = ["lambda_resnet_tiny", "lambda_resnet50", "lambda_resnet50_llll", "lambda_resnet50_llll_u4", "lambda_resnet420"]


@pytest.mark.parametrize("name", NAMES)
def test_models_of_the_registry_are_traced(name):
    """With one narrow block a stage, its own placement, lambda layers and gates."""
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
