"""What the tests of the models share."""

import pytest
import timm

import lambdanets  # noqa: F401  (registers the models)
from helpers import random_norms

NAMES = timm.list_models(module="lambda_resnet")
# A few narrow blocks in place of many wide ones: all else of a registered model stays as it is.
FEW = {"layers": (1, 2, 2, 1), "channels": (16, 32, 32, 64)}


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture
def build_fresh(name):
    """Makes the model ``name`` with few narrow blocks, as timm initialises it: its lambda layers do not count yet."""
    return lambda **kwargs: timm.create_model(name, **{**FEW, **kwargs})


@pytest.fixture
def build(build_fresh):
    """The same with random batch-norms, under which outputs depend on the lambda layers."""
    return lambda **kwargs: random_norms(build_fresh(**kwargs))
