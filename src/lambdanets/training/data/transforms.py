"""The way from an image file to a model's input, the same in training, evaluation and prediction.

Pixels are read by these rules, whatever the format of the file:

- The EXIF orientation is applied. Of an animation or a file of several pages the first image is taken.
- Transparent pixels are laid over white, by their opacity (RGBA, LA, PA, palettes and single colours that are declared
  transparent).
- 16-bit greyscale (``I;16`` in either byte order) is divided by 257, so that 65535 becomes 255; 12-bit greyscale of
  TIFF, which Pillow gives in this mode, so that 4095 becomes 255.
- 32-bit integers (``I``) are 8-bit values if the image has none above 255, 16-bit values if it has none above 65535.
  (Pillow gives the 16-bit greyscale of PGM files in this mode; they are 16-bit values in any case.)
- Floats (``F``) from 0 to 1 are multiplied by 255.
- TIFF whose 0 is white (PhotometricInterpretation 0) is inverted; Pillow does it for 8 bits and fewer alone.
- Numbers outside of these ranges, NaN, and signed integers of 8 bits (SampleFormat 2 of TIFF), which Pillow takes for
  unsigned ones, are refused with the file's name, its mode and its range.
- CMYK, YCbCr, HSV, LAB and 1-bit images are converted by Pillow to red, green and blue, and from these to grey where
  the model takes one channel. Colour profiles are not applied. Pillow reads colours of 16 bits as their upper 8 bits.
- Images of more than ``MAX_PIXELS`` pixels are refused before they are decoded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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

from lambdanets.training.recipes.recipe import MAX_IMAGE_SIZE, Augmentation
from lambdanets.training.rules import Rule, check_attributes, each, number, one_of, refuse, whole

Transform = Callable[[Image.Image], torch.Tensor]

# From here on Pillow itself warns. A small file can announce far more than the memory holds.
MAX_PIXELS = 89_478_485


class UnreadableImageError(ValueError):
    """An image that is there and cannot be read: damaged, empty, too large, or its numbers have no rule."""


@dataclass(frozen=True)
class InputTransform:
    """The steps from an image to a model's input when nothing is random; stored with every run.

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
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        check_attributes(self, _RULES)
        for name in ("mean", "std"):
            if len(getattr(self, name)) != self.channels:
                raise refuse(getattr(self, name), name, f"give one number for each of the {self.channels} channels")

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


def _channels(value: object, name: str) -> None:
    if type(value) is not int or value not in (1, 3):
        raise refuse(value, name, "use 1 (greyscale) or 3 (red, green, blue)")


_RULES: dict[str, Rule] = {
    "image_size": whole(1, MAX_IMAGE_SIZE),
    "channels": _channels,
    "mean": each(number(-1e6, 1e6, "use numbers from -1e6 to 1e6")),
    "std": each(number(1e-6, 1e6, "use numbers above 0, from 1e-6 to 1e6")),
    "interpolation": one_of(("bilinear", "bicubic", "nearest", "lanczos", "box", "hamming")),
    "crop_pct": number(0.05, 1, "use a share from 0.05 to 1"),
}


def read_image(path: str | Path, mode: str) -> Image.Image:
    """Read one image file by the rules of this module.

    Args:
        path: any file that Pillow reads.
        mode: ``"L"`` or ``"RGB"``.

    Returns:
        The decoded image.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is a folder or another thing than a file; the message names the path.
        UnreadableImageError: it is no image, damaged, cut off or too large, or its numbers have no rule.
    """
    path = Path(path)
    check_image_file(path)
    return decode_image(path, path.__str__, mode)


def check_image_file(path: Path) -> None:
    """Raise an error of ``read_image`` for a path that is no file with content."""
    if path.is_symlink() and not path.exists():
        raise FileNotFoundError(f"the image {path} is a link that leads nowhere")
    if not path.exists():
        raise FileNotFoundError(f"the image {path} does not exist")
    if path.is_dir():
        raise ValueError(f"the image {path} is a folder; give image files, for example {path / '*.png'}")
    if not path.is_file():
        raise ValueError(f"the image {path} is no regular file but a pipe or a device; give image files")
    if path.stat().st_size == 0:
        raise UnreadableImageError(f"the image {path} cannot be read: it is empty")


def decode_image(file: Any, name: Callable[[], str], mode: str) -> Image.Image:
    """Decode an image by the rules of this module.

    Args:
        file: a path or an open binary file.
        name: gives the image's name for messages; some readers look it up in a file.
        mode: ``"L"`` or ``"RGB"``.

    Raises:
        UnreadableImageError: it cannot be decoded; the message has the name.
    """
    with opened_image(file, name) as image:
        upright = ImageOps.exif_transpose(image)
        # What the rules ask for beside the pixels, and a copy has lost.
        upright.format = image.format
        upright.tag_v2 = getattr(image, "tag_v2", {})  # type: ignore[attr-defined]
        return convert_colours(upright, mode)


@contextmanager
def opened_image(file: Any, name: Callable[[], str]) -> Iterator[Image.Image]:
    """Open an image of at most ``MAX_PIXELS`` pixels, without decoding it.

    Args:
        file: a path or an open binary file.
        name: gives the image's name for messages.

    Raises:
        UnreadableImageError: it is no image, has too many pixels, or the block fails; the message has the name.
        ValueError: the machine refused; the message has the name.
    """
    try:
        with Image.open(file) as image:
            _check_pixels(image)
            yield image
    # Pillow's decoders raise errors of many kinds on damaged files; to the user they are all one.
    except Exception as error:
        # What the machine refused (permission, memory, a broken disk) says nothing about the image.
        of_machine = isinstance(error, MemoryError) or getattr(error, "errno", None) is not None
        kind = ValueError if of_machine else UnreadableImageError
        raise kind(f"the image {name()} cannot be read: {error}") from error


def _check_pixels(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"it has {width:,} x {height:,} pixels, more than the {MAX_PIXELS:,} that are read; store it smaller"
        )


def convert_colours(image: Image.Image, mode: str) -> Image.Image:
    """Convert an image to 8 bits a channel by the rules of this module.

    Args:
        image: of any of Pillow's modes.
        mode: ``"L"`` or ``"RGB"``.

    Raises:
        ValueError: the image's numbers have no rule, or Pillow cannot convert its mode.
    """
    if image.mode == "L" and _tiff_tag(image, _SAMPLE_FORMAT) == _SIGNED:
        raise ValueError("it has signed integers of 8 bits (SampleFormat 2 of TIFF); save unsigned ones, 0 .. 255")
    if image.mode == "F" or image.mode.startswith("I"):
        if image.format == "FITS":
            raise ValueError(f"mode {image.mode} of FITS has bytes in an order that Pillow does not read; save as TIFF")
        image = _scaled(image)
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode == mode:
        return image
    if image.mode not in ("1", "L", "P"):
        # Pillow knows no way from some modes to grey but through colours.
        image = image.convert("RGB")
    return image.convert(mode)


# Tags of TIFF, and values of theirs.
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
_WHITE_IS_ZERO, _SIGNED = 0, 2


def _tiff_tag(image: Image.Image, tag: int) -> object:
    """The value of a tag, the first one of several; None for images of other formats."""
    value = getattr(image, "tag_v2", {}).get(tag)
    return value[0] if isinstance(value, tuple) and value else value


def _scaled(image: Image.Image) -> Image.Image:
    """The 8-bit greyscale image of one with larger integers or floats."""
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if image.mode == "F":
        if not (low >= 0 and high <= 1):  # neither holds for NaN
            raise ValueError(f"mode F has values from {low:g} to {high:g}; scale floats to 0 .. 1, or save 8 bits")
        scaled = values.astype(np.float64) * 255
    elif low < 0 or high > 65535:
        raise ValueError(f"mode {image.mode} has values from {low} to {high}; scale integers to 0 .. 255 or 0 .. 65535")
    elif image.mode == "I" and high <= 255 and image.format != "PPM":
        scaled = values.astype(np.float64)
    elif _tiff_tag(image, _BITS_PER_SAMPLE) == 12:
        scaled = values.astype(np.float64) * (255 / 4095)
    else:
        scaled = values.astype(np.float64) / 257
    if _tiff_tag(image, _PHOTOMETRIC) == _WHITE_IS_ZERO:
        scaled = 255 - scaled
    pixels = np.round(scaled).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        pixels[values == transparent] = 255
    return Image.fromarray(pixels)
