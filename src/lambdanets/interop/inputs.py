"""The images that a model says it is for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

__all__ = ["channels_of", "configuration_of", "image_size_of"]


def configuration_of(model: nn.Module) -> Mapping[str, Any]:
    """A model's timm configuration; {} if it has none."""
    return getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}


def image_size_of(model: nn.Module) -> tuple[int, int] | None:
    """Height and width of the images that a model was built for, else of those of its timm configuration.

    timm's models have the size as ``img_size`` or as that of their ``patch_embed``, torchvision's as ``image_size``;
    None if a model says nothing.
    """
    for owner, name in (
        (model, "img_size"),
        (getattr(model, "patch_embed", None), "img_size"),
        (model, "image_size"),
    ):
        size = getattr(owner, name, None)
        if isinstance(size, int):
            return (size, size)
        if isinstance(size, Sequence) and len(size) == 2:
            return (size[0], size[1])
    configured = configuration_of(model).get("input_size")
    return None if configured is None else (configured[1], configured[2])


def channels_of(model: nn.Module) -> int | None:
    """Input channels of a timm model; its own where it tells, since its configuration is that of three channels."""
    own = getattr(model, "in_chans", None)
    if isinstance(own, int):
        return own
    configured = configuration_of(model).get("input_size")
    return None if configured is None else configured[0]
