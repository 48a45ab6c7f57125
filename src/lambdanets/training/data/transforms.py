"""From an image file to the tensor that a model sees: one description, used in training and ever after."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data.random_erasing import RandomErasing
from timm.data.transforms_factory import create_transform
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from lambdanets.training.recipes.recipe import Augmentation

Transform = Callable[[Image.Image], torch.Tensor]


@dataclass(frozen=True)
class InputTransform:
    """How an image becomes the input of a model when nothing is random; stored with every run.

    Attributes:
        image_size: side of the square input in pixels.
        channels: 1 (greyscale) or 3 (red, green, blue); files of the other kind are converted.
        mean: one number a channel, subtracted from values scaled to 0..1.
        std: one number a channel, by which the difference is divided.
        interpolation: how images of another size are resized: the shorter side to ``image_size / crop_pct``.
        crop_pct: share of the resized image that the centre crop keeps.
    """

    image_size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"
    crop_pct: float = 1.0

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
            if len(getattr(self, name)) != self.channels:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; give one number for each of the {self.channels} channels"
                )
        if self.channels not in (1, 3):
            raise ValueError(f"channels is {self.channels!r}; use 1 (greyscale) or 3 (red, green, blue)")
        if min(self.std) <= 0:
            raise ValueError(f"std is {self.std!r}; use numbers above 0")

    @property
    def mode(self) -> str:
        """Pillow's name of the colours: ``"L"`` or ``"RGB"``."""
        return "L" if self.channels == 1 else "RGB"

    def build(self) -> Transform:
        """The transform itself: image in ``mode`` -> float tensor (channels, image_size, image_size)."""
        return create_transform(
            self.image_size,
            is_training=False,
            mean=self.mean,
            std=self.std,
            interpolation=self.interpolation,
            crop_pct=self.crop_pct,
            crop_mode="center",
        )

    def build_training(self, augmentation: Augmentation) -> Transform:
        """The transform for training images: random changes, then the same scaling as ``build``."""
        if augmentation.crop == "resized":
            return create_transform(
                self.image_size,
                is_training=True,
                scale=augmentation.scale,
                hflip=augmentation.horizontal_flip,
                color_jitter=None,  # type: ignore[arg-type]
                auto_augment=augmentation.auto_augment,
                re_prob=augmentation.random_erasing,
                mean=self.mean,
                std=self.std,
                interpolation=self.interpolation,
            )
        if augmentation.auto_augment:
            raise ValueError(
                f"auto_augment is {augmentation.auto_augment!r} with crop {augmentation.crop!r}; "
                "it needs crop 'resized'"
            )
        *resize, to_tensor, normalize = self.build().transforms  # type: ignore[attr-defined]
        steps: list[Any] = list(resize)
        if augmentation.rotation:
            steps.append(transforms.RandomRotation(augmentation.rotation, InterpolationMode.BILINEAR))
        if augmentation.crop == "padded" and augmentation.padding:
            steps.append(transforms.RandomCrop(self.image_size, padding=augmentation.padding))
        if augmentation.horizontal_flip:
            steps.append(transforms.RandomHorizontalFlip(augmentation.horizontal_flip))
        steps += [to_tensor, normalize]
        if augmentation.random_erasing:
            steps.append(RandomErasing(augmentation.random_erasing, mode="const", device="cpu"))
        return transforms.Compose(steps)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> InputTransform:
        """The transform that ``to_dict`` wrote; a ValueError for fields that are unknown or missing."""
        try:
            return cls(**fields)
        except TypeError as error:
            raise ValueError(f"an input transform does not read: {error}") from error


def read_image(path: str | Path, mode: str) -> Image.Image:
    """Reads one image file, turns it upright as its EXIF data say and converts its colours.

    Args:
        path: any file that Pillow reads.
        mode: ``"L"`` or ``"RGB"``.

    Returns:
        The decoded image.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is a folder, no image, damaged or cut off; the message names the path.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"the image {path} does not exist")
    if path.is_dir():
        raise ValueError(f"the image {path} is a folder; give image files, for example {path / '*.png'}")
    try:
        with Image.open(path) as file:
            return convert_colours(ImageOps.exif_transpose(file), mode)
    # Pillow's decoders raise errors of many kinds on damaged files; to the user they are all one.
    except Exception as error:
        reason = "it is empty" if path.stat().st_size == 0 else str(error)
        raise ValueError(f"the image {path} cannot be read: {reason}") from error


def convert_colours(image: Image.Image, mode: str) -> Image.Image:
    """The image in ``mode``; 16-bit greyscale is scaled to 8 bits, which Pillow would clip to white."""
    if image.mode.startswith("I;16") or image.mode == "I":
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 256).astype(np.uint8))
    return image.convert(mode)
