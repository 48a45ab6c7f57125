"""Lambda layers for other grids than they were made for: the position tables of global ones, resampled."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lambdanets.layers import LambdaLayer, TokenLambda
from lambdanets.layers.arguments import per_axis
from lambdanets.models.options import by_stage, note_argument
from lambdanets.models.patches import patches_around
from lambdanets.models.resnet import LambdaBottleneck, LambdaResNet

__all__ = ["fit_positions", "resize_positions"]


@torch.no_grad()
def resize_positions(model: nn.Module, size: int | Sequence[int]) -> nn.Module:
    """Resample the position tables of all global lambda layers in a model, in place, for inputs of another size.

    The table of a layer for S positions along an axis holds the offsets -(S-1) to S-1. It is interpolated as timm
    resamples relative position tables: bicubic, corners not aligned, anti-aliased where it shrinks; so offset o of
    the new grid gets what the table has at the same fraction of the grid, and offset 0 stays offset 0.

    A larger grid sums more context positions. Tables are scaled so that the variance of the layer's output stays,
    for values that are independent from position to position, whatever the interpolation has smoothed: a table as
    initialised (variance 1 / (k · u · context positions)) gets the scale of one that is initialised at the new size.

    Where :func:`lambdanets.replace_attention` has put layers into a vision transformer, give that its size first
    (timm: ``model.set_input_size(img_size=size)``), then resample; or make it with ``dynamic_img_size=True``. The
    vectors of class tokens and registers stay as they are: they stand at no position. A local layer keeps its table
    and is told the new grid, which its tokens do not tell if it is not a square.

    Args:
        model: any module tree with :class:`lambdanets.LambdaLayer` or :class:`lambdanets.interop.TokenLambda` made by
            ``size=``; other layers made by ``scope=`` take any grid and stay as they are.
        size: an int, or one for each axis. For layers in the blocks of a :class:`lambdanets.LambdaResNet` or in a
            vision transformer of timm or torchvision it is the size of the images, and each layer gets the size of
            the map or the grid of patches that it sees; for any other layer the size of its grid.

    Returns:
        The model. Parameters stay the same objects with the same dtype, device and ``requires_grad``, so that tables
        shared by layers stay shared; gradients are dropped, and an optimizer must be made anew, since its state
        has the old shapes. Nothing is changed where the size is the same.

    Raises:
        TypeError: if ``model`` is not a module.
        ValueError: if no layer is global, ``size`` is not of positive whole numbers or has another rank than a layer's
            grid, or layers that share a table would need two sizes of it; the model is unchanged then.

    Example:
        >>> layer = lambdanets.LambdaLayer(16, size=(7, 7))
        >>> lambdanets.resize_positions(layer, 14).size
        (14, 14)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    targets = _targets(model, size)
    if not targets:
        raise ValueError(
            f"model has no global lambda layers to resize, got {type(model).__name__}; layers with scope= take any "
            "grid as they are"
        )
    networks = [
        module
        for module in model.modules()
        if isinstance(module, LambdaResNet) and not targets.keys().isdisjoint(module.modules())
    ]
    image_size = per_axis("size", size, 2, odd=False) if networks else ()
    resized = _resized_tables(targets)
    for layer, grid in targets.items():
        layer.size = grid
        if isinstance(layer, TokenLambda) and layer.ndim == 2:
            layer.grid = grid
    for table, (_, values) in resized.items():
        table.data, table.grad = values, None
    for network in networks:
        _note_image_size(network, *image_size)
    return model


def _resized_tables(
    targets: Mapping[LambdaLayer | TokenLambda, tuple[int, ...]],
) -> dict[nn.Parameter, tuple[tuple[int, ...], Tensor]]:
    """Each table that changes, with the grid that it is for then and its new values.

    Raises:
        ValueError: if layers that share a table would need two sizes of it.
    """
    resized: dict[nn.Parameter, tuple[tuple[int, ...], Tensor]] = {}
    for layer, grid in targets.items():
        table, old = layer.positions, layer.size
        if table is None or old is None or old == grid or layer.scope is not None:
            continue
        if table not in resized:
            resized[table] = grid, _resample(table, old, grid)
        elif resized[table][0] != grid:
            raise ValueError(
                f"size={layer.size} layers of the model share one table of positions, and would need it for the grids "
                f"{resized[table][0]} and {grid}; give each a table of its own before"
            )
    return resized


def _targets(model: nn.Module, size: int | Sequence[int]) -> dict[LambdaLayer | TokenLambda, tuple[int, ...]]:
    """Each layer that knows its grid, as all global ones do, with the grid that it is to have."""
    targets: dict[LambdaLayer | TokenLambda, tuple[int, ...]] = {}
    for name, module in model.named_modules():
        if isinstance(module, TokenLambda):
            grid = _token_grid(model, name, module, size)
            if grid is not None:
                targets[module] = grid
            continue
        if isinstance(module, LambdaBottleneck) and module.reduction is not None:
            layer, reduction = module.conv2, module.reduction
        else:
            layer, reduction = module, 1
        if isinstance(layer, LambdaLayer) and layer.size is not None and layer not in targets:
            sides = _sides(size, layer.ndim, name)
            targets[layer] = tuple(-(-side // reduction) for side in sides)
        elif layer is not module and getattr(layer, "size", None) is not None:
            raise ValueError(
                f"model has a layer that cannot be resized, {name}.conv2, a {type(layer).__name__} for maps of "
                f"{layer.size}; make the model anew with another img_size"
            )
    return targets


def _token_grid(model: nn.Module, name: str, layer: TokenLambda, size: int | Sequence[int]) -> tuple[int, ...] | None:
    """The grid that the tokens are to have; None where the layer need not know it."""
    patches = patches_around(model, name)
    if layer.size is None and (patches is None or layer.ndim < 2):
        return None
    if patches is None:
        return _sides(size, layer.ndim, name)
    height, width = _sides(size, 2, name)
    grid = patches.grid_of(height, width)
    return grid if layer.ndim == 2 else (math.prod(grid),)


def _sides(size: int | Sequence[int], ndim: int, name: str) -> tuple[int, ...]:
    if isinstance(size, Sequence) and len(size) != ndim:
        raise ValueError(
            f"size must be an int or {ndim} of them for the grid of rank {ndim} of layer {name!r}, got {size!r}"
        )
    return per_axis("size", size, ndim, odd=False)


def _note_image_size(model: LambdaResNet, height: int, width: int) -> None:
    model.img_size = (height, width)
    note_argument(model, "img_size", model.img_size)
    # Made anew, the layers have the sizes that follow from it.
    noted = (getattr(model, "_model_args", None) or {}).get("lambda_args")
    note_argument(model, "lambda_args", by_stage(noted, _without_size))


def _without_size(args: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    return args if args is None or args.get("size") is None else {**args, "scope": None, "size": None}


def _resample(table: Tensor, old: Sequence[int], new: Sequence[int]) -> Tensor:
    """Another size's table: interpolated along each axis, then scaled to keep the variance of the layer's output."""
    values = table.detach()
    values = values if values.dtype == torch.float64 else values.float()
    before = _energy(values, old)
    for axis, (have, want) in enumerate(zip(old, new, strict=True), start=2):
        values = _interpolate(values, axis, 2 * want - 1) if have != want else values
    after = _energy(values, new)
    scale = (before / after.clamp_min(torch.finfo(values.dtype).tiny)).sqrt()
    return (values * scale).to(table.dtype)


def _interpolate(values: Tensor, axis: int, length: int) -> Tensor:
    """Bicubic along one axis: the outer axes and the inner ones are the image's batch and its width."""
    shape = values.shape
    folded = values.reshape(math.prod(shape[:axis]), 1, shape[axis], math.prod(shape[axis + 1 :]))
    folded = F.interpolate(folded, (length, folded.shape[3]), mode="bicubic", antialias=length < shape[axis])
    return folded.reshape(*shape[:axis], length, *shape[axis + 1 :])


def _energy(table: Tensor, size: Sequence[int]) -> Tensor:
    """Mean over the queries of a grid of Σ_m |E[n, m]|²: each offset counts as often as two positions have it."""
    counted = table.square().sum((0, 1))
    for axis, side in enumerate(size):
        offset = torch.arange(1 - side, side, device=table.device)
        often = (side - offset.abs()).to(table.dtype) / side
        counted = counted * often.reshape(-1, *[1] * (len(size) - 1 - axis))
    return counted.sum()


def fit_positions(state_dict: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Weights for a model whose global layers have another size: tables are resampled as by `resize_positions`.

    timm calls it when it loads pretrained weights.

    Args:
        state_dict: weights of a model that differs in nothing but the sizes of its global layers.
        model: the model that they are for.

    Returns:
        The weights, tables resampled where the model's have another shape.
    """
    fitted = dict(state_dict)
    for name, module in model.named_modules():
        key = f"{name}.positions" if name else "positions"
        table = fitted.get(key)
        if not isinstance(module, LambdaLayer) or module.size is None or table is None:
            continue
        same_kind = table.ndim == module.positions.ndim and table.shape[:2] == module.positions.shape[:2]
        if same_kind and table.shape != module.positions.shape:
            old = tuple((extent + 1) // 2 for extent in table.shape[2:])
            fitted[key] = _resample(table, old, module.size)
    return fitted
