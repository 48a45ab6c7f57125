"""What the tests of the models share."""

import pytest
import timm

import lambdanets  # noqa: F401  (registers the models)

NAMES = timm.list_models(module="lambda_resnet")
# A few narrow blocks in place of many wide ones: all else of a registered model stays as it is.
FEW = {"layers": (1, 2, 2, 1), "channels": (16, 32, 32, 64)}


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture
def build(name):
    """Makes the model ``name`` with few narrow blocks; keyword arguments as for timm.create_model."""
    return lambda **kwargs: timm.create_model(name, **{**FEW, **kwargs})
