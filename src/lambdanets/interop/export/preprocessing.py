"""The steps from an image to what a model sees, as plain values that a file can carry."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from lambdanets.interop.inputs import channels_of, configuration_of

__all__ = ["describe_preprocessing", "preprocessing_of"]


def describe_preprocessing(
    size: Sequence[int],
    *,
    channels: int,
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str,
    crop_pct: float,
    crop_mode: str = "center",
) -> dict[str, Any]:
    """The steps from an image to the input, in words that need no library.

    Args:
        size: height and width of the input.
        channels: 3 for red, green, blue; 1 for grey.
        mean: one number a channel, for pixels scaled to 0..1.
        std: one number a channel.
        interpolation: ``"bilinear"``, ``"bicubic"``, ...; antialiased, as Pillow's are.
        crop_pct: share of the resized image that the crop keeps.
        crop_mode: ``"center"``, or what else timm knows.

    Returns:
        Plain values: ``color`` (as Pillow's modes), ``resize``, ``interpolation``, ``crop_mode``, ``crop`` (height,
        width), ``scale`` (multiplies the pixels 0..255), ``mean``, ``std``, ``layout``, ``dtype``. ``resize`` has, for
        ``"center"`` crops of squares, ``shorter_side`` in pixels; else ``height``, ``width`` and ``keep_ratio``:
        ``"cover"``, the smallest image with the ratio of its sides that covers them (``"center"``); ``"inside"``, the
        largest that lies in them, with a border (``"border"``); None, these sides themselves (``"squash"``).
    """
    height, width = (math.floor(side / crop_pct) for side in size)
    keep_ratio = {"center": "cover", "border": "inside"}.get(crop_mode)
    resize: dict[str, Any] = {"height": height, "width": width, "keep_ratio": keep_ratio}
    return {
        "color": {1: "L", 3: "RGB"}.get(channels, f"{channels} channels"),
        "resize": {"shorter_side": height} if crop_mode == "center" and height == width else resize,
        "interpolation": interpolation,
        "crop_mode": crop_mode,
        "crop": {"height": size[0], "width": size[1]},
        "scale": 1 / 255,
        "mean": list(mean),
        "std": list(std),
        "layout": "NCHW",
        "dtype": "float32",
    }


def preprocessing_of(model: nn.Module, size: Sequence[int]) -> dict[str, Any] | None:
    """The preprocessing that a timm model's configuration asks for, or None where it has no configuration.

    Args:
        model: with ``pretrained_cfg``, as timm's have.
        size: height and width of the input.
    """
    if not configuration_of(model):
        return None
    from timm.data import resolve_model_data_config

    config = resolve_model_data_config(model)
    channels = channels_of(model) or config["input_size"][0]
    # timm's configurations are of three channels; a model of another number was made so by its user.
    mean, std = ((list(config[name]) * channels)[:channels] for name in ("mean", "std"))
    return describe_preprocessing(
        size,
        channels=channels,
        mean=mean,
        std=std,
        interpolation=config["interpolation"],
        crop_pct=config["crop_pct"],
        crop_mode=config["crop_mode"],
    )
