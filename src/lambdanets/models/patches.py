"""The token grid of a vision transformer of timm or torchvision, and the number of tokens in front of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

__all__ = ["Patches", "patches_around"]


@dataclass(frozen=True)
class Patches:
    """Patches of a vision transformer's images.

    Args:
        transformer: the vision transformer.
        grid: height and width in patches of the images that it is for; None if it is for all sizes.
        prefix_tokens: how many tokens, class tokens and registers, are in front of the patches.
    """

    transformer: nn.Module
    grid: tuple[int, int] | None
    prefix_tokens: int

    @property
    def any_size(self) -> bool:
        """True if it takes images of any size without being resized."""
        return self.grid is None or bool(getattr(self.transformer, "dynamic_img_size", False))

    def grid_of(self, height: int, width: int) -> tuple[int, int]:
        """Height and width in patches of images of another size.

        Raises:
            ValueError: if not one patch fits into the image.
        """
        transformer: Any = self.transformer
        embed: Any = _embed(transformer)
        if hasattr(embed, "dynamic_feat_size"):
            rows, columns = embed.dynamic_feat_size((height, width))
        else:
            patch = (embed or transformer).patch_size
            patch = patch if isinstance(patch, tuple) else (patch, patch)
            rows, columns = height // patch[0], width // patch[1]
        if rows < 1 or columns < 1:
            raise ValueError(
                f"size must be at least one patch of {type(transformer).__name__} along each axis, got an image of "
                f"{height} x {width}, which makes a grid of {rows} x {columns}"
            )
        return rows, columns


def patches_around(model: nn.Module, name: str) -> Patches | None:
    """Patches of the innermost vision transformer around the module of that name; None if it is in none."""
    parts = name.split(".") if name else []
    for depth in range(len(parts), -1, -1):
        around: Any = model.get_submodule(".".join(parts[:depth]))
        embed, prefix = _embed(around), getattr(around, "num_prefix_tokens", None)
        grid = getattr(embed, "grid_size", None)
        if isinstance(grid, tuple) and len(grid) == 2:
            return Patches(around, grid, int(prefix or 0))
        if isinstance(prefix, int) and hasattr(embed, "patch_size"):
            return Patches(around, None, prefix)
        if isinstance(getattr(around, "class_token", None), nn.Parameter) and hasattr(around, "conv_proj"):
            side = around.image_size // around.patch_size
            return Patches(around, (side, side), 1)
    return None


def _embed(transformer: Any) -> Any:
    """Timm's module that makes patches of images; NaFlexVit has another name for it."""
    return getattr(transformer, "patch_embed", None) or getattr(transformer, "embeds", None)
