import pytest
import torch

import lambdanets
from explanation_layers import LAYERS
from helpers import random_norms


@pytest.fixture(params=LAYERS)
def kind(request):
    return request.param


@pytest.fixture(scope="session")
def classifier():
    """A small LambdaResNet whose layers all count."""
    import timm

    torch.manual_seed(0)
    return random_norms(timm.create_model("lambda_resnet_tiny", num_classes=4)).eval()


@pytest.fixture(scope="session")
def explanation(classifier):
    torch.manual_seed(1)
    return lambdanets.explain(classifier, torch.randn(1, 3, 16, 16), class_names=["cat", "dog", "owl", "fox"])
