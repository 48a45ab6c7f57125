"""From what a model is given to a tensor, and to pixels that can be shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

__all__ = ["Pixels", "model_inputs", "pixels_of"]

Pixels = NDArray[np.uint8]
MODES = ("1", "L", "RGB")


def model_inputs(
    model: nn.Module, image: Any, transform: Callable[[Image.Image], Tensor] | None
) -> tuple[tuple[Any, ...], Pixels | None]:
    """Arguments of the model's call, and pixels to show where the transform tells how to undo it.

    Raises:
        TypeError: if ``image`` is none of the kinds that :func:`lambdanets.explain` takes.
        ValueError: if it holds several examples, or Pillow colours that would have to be converted first.
    """
    if isinstance(image, tuple):
        return image, None
    if isinstance(image, Image.Image):
        return _from_pillow(model, image, transform)
    if not isinstance(image, Tensor):
        raise TypeError(
            f"image must be a tensor, a PIL.Image or a tuple of the model's arguments, got {type(image).__name__}; "
            "read a file with PIL.Image.open(path).convert('RGB')"
        )
    if image.ndim == 3 and any(isinstance(module, nn.Conv2d) for module in model.modules()):
        image = image[None]
    if image.ndim == 0 or image.shape[0] != 1:
        raise ValueError(
            f"image must be one example with a batch axis of 1, got shape {tuple(image.shape)}; use image[None] for an "
            "example without one, image[:1] for the first of a batch, and a tuple for several arguments"
        )
    return (image.to(_device(model)),), None


def _from_pillow(
    model: nn.Module, image: Image.Image, transform: Callable[[Image.Image], Tensor] | None
) -> tuple[tuple[Any, ...], Pixels | None]:
    config: dict[str, Any] = {}
    if transform is None:
        from timm.data import create_transform, resolve_model_data_config

        if not hasattr(model, "pretrained_cfg"):
            raise ValueError(
                f"image is a PIL.Image, and {type(model).__name__} does not say how images become its input as timm's "
                "models do; give transform=, or the tensor that the model takes"
            )
        config = resolve_model_data_config(model)
        transform = create_transform(**config, is_training=False)
        wanted = "L" if config["input_size"][0] == 1 else "RGB"
        if image.mode not in MODES:
            raise ValueError(
                f"image has Pillow's mode {image.mode!r}, which can be converted in several ways; use "
                f"image.convert({wanted!r}), behind Image.alpha_composite where it is transparent"
            )
        image = image.convert(wanted)
    made = transform(image)
    if not isinstance(made, Tensor) or made.ndim != 3:
        raise ValueError("transform must give a tensor (channels, height, width)")
    shown = None
    if config:
        mean, std = (torch.tensor(config[name])[:, None, None] for name in ("mean", "std"))
        shown = _bytes((made * std + mean).clamp(0, 1).numpy())
    # What a transform makes is float32; the model may be in another precision.
    weight = next((parameter for parameter in model.parameters() if parameter.is_floating_point()), made)
    return (made[None].to(weight),), shown


def _device(model: nn.Module) -> torch.device:
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def pixels_of(image: Any, is_sequence: bool) -> Pixels | None:
    """Pixels (frames, height, width, 3) of a model's first argument, stretched to its range; None if it is no picture.

    Args:
        image: images (1, c, height, width) with 1 or 3 channels, volumes (1, c, depth, height, width), or sequences
            (1, c, length), which are shown with a row for each channel.
        is_sequence: three axes are a sequence with its channels first.
    """
    if not isinstance(image, Tensor) or not image.is_floating_point():
        return None
    values = image[0].detach().float().cpu().numpy()
    if not values.size:
        return None
    span = float(values.max() - values.min())
    if not np.isfinite(span):
        return None
    values = (values - values.min()) / (span or 1.0)
    if image.ndim == 4 and image.shape[1] in (1, 3):
        return _bytes(values)
    if image.ndim == 5:
        return np.concatenate([_bytes(frame[None]) for frame in values.mean(0)])
    if image.ndim == 3 and is_sequence:
        return _bytes(values[None])
    return None


def _bytes(values: NDArray[Any]) -> Pixels:
    """(1 or 3, height, width) in 0..1 -> (1, height, width, 3)."""
    colours = np.broadcast_to(values, (3, *values.shape[1:])) if values.shape[0] == 1 else values
    return np.ascontiguousarray((colours * 255).round().astype(np.uint8).transpose(1, 2, 0)[None])
