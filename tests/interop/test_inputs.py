"""The images that a model says it is for."""

import pytest
import timm
import torchvision
from torch import nn

from lambdanets.interop.inputs import channels_of, image_size_of

pytestmark = pytest.mark.smoke


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (lambda: timm.create_model("lambda_resnet26t"), (256, 256)),  # its configuration's
        (lambda: timm.create_model("lambda_resnet_tiny", img_size=48), (48, 48)),
        (lambda: timm.create_model("vit_tiny_patch16_224", img_size=(64, 96), depth=1), (64, 96)),
        (lambda: torchvision.models.VisionTransformer(64, 16, 1, 2, 8, 8), (64, 64)),
        (lambda: nn.Conv2d(3, 8, 3), None),
    ],
)
def test_the_size_that_a_model_was_built_for(make, size):
    assert image_size_of(make()) == size


def test_channels():
    assert channels_of(timm.create_model("lambda_resnet_tiny", in_chans=1)) == 1
    assert channels_of(timm.create_model("lambda_resnet26t")) == 3
    assert channels_of(nn.Conv2d(3, 8, 3)) is None
