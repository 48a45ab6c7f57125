import pytest
import timm
import torch
from PIL import Image
from timm.data.transforms_factory import create_transform
from torch import nn

from lambdanets.interop.export.preprocessing import describe_preprocessing, preprocessing_of

pytestmark = pytest.mark.smoke


def test_of_a_model_of_the_registry():
    model = timm.create_model("lambda_resnet26t", num_classes=2)
    described = preprocessing_of(model, (256, 256))
    assert described["resize"] == {"shorter_side": int(256 / model.pretrained_cfg["crop_pct"])}
    assert described["crop"] == {"height": 256, "width": 256}
    assert described["mean"] == list(model.pretrained_cfg["mean"])
    assert (described["color"], described["interpolation"]) == ("RGB", model.pretrained_cfg["interpolation"])


def test_of_grey_images():
    model = timm.create_model("lambda_resnet_tiny", in_chans=1)
    described = preprocessing_of(model, (32, 32))
    assert (described["color"], len(described["mean"]), len(described["std"])) == ("L", 1, 1)


def test_of_a_model_without_configuration():
    assert preprocessing_of(nn.Linear(2, 2), (8, 8)) is None


@pytest.mark.parametrize(("size", "crop_pct"), [(32, 0.875), (8, 1.0), (224, 0.9)])
def test_shorter_side_is_what_the_transform_resizes_to(size, crop_pct):
    described = describe_preprocessing(
        (size, size), channels=3, mean=(0, 0, 0), std=(1, 1, 1), interpolation="bilinear", crop_pct=crop_pct
    )
    transform = create_transform(size, is_training=False, crop_pct=crop_pct, interpolation="bilinear")
    assert described["resize"] == {"shorter_side": transform.transforms[0].size}
    assert described["scale"] * 255 == pytest.approx(1)
    assert torch.Size(described["crop"].values()) == torch.Size(transform.transforms[1].size)


@pytest.mark.parametrize(("mode", "keep_ratio"), [("center", "cover"), ("border", "inside"), ("squash", None)])
def test_sides_of_other_inputs_are_what_the_transform_resizes_to(mode, keep_ratio):
    """As timm does for inputs that are no square, and for other crops than from the middle."""
    described = describe_preprocessing(
        (64, 128),
        channels=3,
        mean=(0, 0, 0),
        std=(1, 1, 1),
        interpolation="bilinear",
        crop_pct=0.875,
        crop_mode=mode,
    )
    steps = create_transform((64, 128), is_training=False, crop_pct=0.875, crop_mode=mode, interpolation="bilinear")
    height, width = 200, 300
    expected = sides = (described["resize"]["height"], described["resize"]["width"])
    assert described["resize"]["keep_ratio"] == keep_ratio
    if keep_ratio is not None:
        scales = (sides[0] / height, sides[1] / width)
        scale = max(scales) if keep_ratio == "cover" else min(scales)
        expected = (height * scale, width * scale)
    resized = steps.transforms[0](Image.new("RGB", (width, height)))
    assert (resized.height, resized.width) == pytest.approx(expected, abs=1)
