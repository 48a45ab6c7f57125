"""The cost of a model before it is built: parameters, multiply-adds, activations, counted on the meta device."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

from lambdanets.layers import LambdaLayer
from lambdanets.models.resnet import LambdaResNet

__all__ = ["ModelCost", "PartCost", "model_cost"]

_COUNTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, LambdaLayer)


@dataclass(frozen=True)
class PartCost:
    """What a part of a model costs for one image.

    Args:
        name: of the part: the stem, a stage, the head; or a submodule of the model.
        placement: letters of a stage's blocks, "CLCLCL"; "" where there are none.
        output: shape of the output without the batch.
        parameters: their number.
        multiply_adds: in one forward pass.
        activations: elements that convolutions, linear and lambda layers put out.
    """

    name: str
    placement: str
    output: tuple[int, ...]
    parameters: int
    multiply_adds: int
    activations: int


@dataclass(frozen=True)
class ModelCost:
    """What a model costs for one image.

    Args:
        name: of the model.
        stages: its placement, as "CCLL"; "" if it is no LambdaResNet.
        image_size: (height, width) of the image.
        parameters: their number.
        multiply_adds: in one forward pass.
        activations: elements that convolutions, linear and lambda layers put out.
        parts: the same, part by part.
    """

    name: str
    stages: str
    image_size: tuple[int, int]
    parameters: int
    multiply_adds: int
    activations: int
    parts: tuple[PartCost, ...]


def model_cost(name: str, image_size: int | Sequence[int] | None = None, **kwargs: Any) -> ModelCost:
    """Count a model of timm's registry on the meta device: nothing is allocated, nothing computed.

    Multiply-adds are those of products of matrices, convolutions included, half of what PyTorch's
    ``FlopCounterMode`` counts. A lambda layer counts in the paper's order, position lambdas first, b·n·m·k·v·u and
    b·h·n·k·v, whatever kernel runs; m are the context positions that lie inside the scope *and* inside the map.

    Args:
        name: of a model in timm's registry.
        image_size: side or (height, width) of the image; default the model's own.
        **kwargs: further arguments of the model, as ``stages="CLLL"``.

    Returns:
        Its cost.

    Raises:
        ValueError: if ``image_size`` is not positive, or larger than global lambda layers take.
    """
    with torch.device("meta"):
        model = timm.create_model(name, **kwargs).eval()
    own = timm.data.resolve_model_data_config(model)["input_size"]
    height, width = _image_size(image_size, own[1:])
    with torch.no_grad(), _measured(model) as (outputs, activations):
        counter = FlopCounterMode(display=False)
        with counter:
            model(torch.empty(1, own[0], height, width, device="meta"))
    flops = counter.get_flop_counts()
    root = type(model).__name__
    parts = tuple(
        PartCost(
            name=part,
            placement=placement,
            output=outputs[members[-1]],
            parameters=sum(p.numel() for member in members for p in model.get_submodule(member).parameters()),
            multiply_adds=sum(sum(flops.get(f"{root}.{member}", {}).values()) for member in members) // 2,
            activations=sum(
                count
                for layer, count in activations.items()
                if any(f"{layer}.".startswith(f"{member}.") for member in members)
            ),
        )
        for part, placement, members in _parts(model, outputs)
    )
    return ModelCost(
        name=name,
        stages=model.stages if isinstance(model, LambdaResNet) else "",
        image_size=(height, width),
        parameters=sum(p.numel() for p in model.parameters()),
        multiply_adds=counter.get_total_flops() // 2,
        activations=sum(activations.values()),
        parts=parts,
    )


def _image_size(given: int | Sequence[int] | None, own: Sequence[int]) -> tuple[int, int]:
    size = tuple(own) if given is None else (given, given) if isinstance(given, int) else tuple(given)
    if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise ValueError(f"image_size must be a positive int or (height, width), got {given!r}")
    return size


def _parts(model: nn.Module, ran: dict[str, Any]) -> Iterator[tuple[str, str, list[str]]]:
    """(name, placement, submodules) of each part: a LambdaResNet's stem, stages and head; else each child."""
    if not isinstance(model, LambdaResNet):
        yield from ((name, "", [name]) for name, _ in model.named_children() if name in ran)
        return
    yield "stem", "", ["conv1", "bn1", "act1", "maxpool"]
    for index, word in enumerate(model.placement, start=1):
        yield f"layer{index}", word, [f"layer{index}"]
    yield "head", "", ["global_pool", "fc"]


@contextmanager
def _measured(model: nn.Module) -> Iterator[tuple[dict[str, tuple[int, ...]], dict[str, int]]]:
    """While it lasts, forward passes fill in output shapes of the children and counts of what layers put out."""
    outputs: dict[str, tuple[int, ...]] = {}
    activations: dict[str, int] = {}

    def measure(name: str, module: nn.Module, counted: bool) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if not isinstance(output, Tensor):
                return
            outputs[name] = tuple(output.shape[1:])
            if counted:
                # A lambda layer's output before its pooling has the grid of its input.
                shape = (module.dim_out, *args[0].shape[2:]) if isinstance(module, LambdaLayer) else output.shape
                activations[name] = activations.get(name, 0) + math.prod(shape)

        return module.register_forward_hook(hook)

    handles = [
        measure(name, module, isinstance(module, _COUNTED))
        for name, module in model.named_modules()
        if isinstance(module, _COUNTED) or (name and "." not in name)
    ]
    try:
        yield outputs, activations
    finally:
        for handle in handles:
            handle.remove()


def _pairs(size: int, extent: int, origin: int) -> int:
    """How many (query, context position) of one axis have an offset inside the table."""
    return sum(max(0, size - abs(offset)) for offset in range(-origin, extent - origin))


def _position_products(query: Sequence[int], value: Sequence[int], table: Sequence[int], grid: Any, origin: Any) -> int:
    """b·u·k·v for each pair of positions that sees each other."""
    pairs = math.prod(_pairs(*axis) for axis in zip(grid, table[2:], origin, strict=True))
    return query[0] * table[0] * table[1] * value[3] * pairs


@register_flop_formula(torch.ops.lambdanets.grid_term)
def _grid_term_flops(
    query: Any, value: Any, table: Any, grid: Any, origin: Any, *args: Any, out_shape: Any = None, **kwargs: Any
) -> int:
    """The paper's order, λp first: λp for every query, then the queries applied to it."""
    return 2 * (_position_products(query, value, table, grid, origin) + math.prod(query) * value[3])


@register_flop_formula(torch.ops.lambdanets.grid_term_backward)
def _grid_term_backward_flops(
    grad: Any, query: Any, value: Any, table: Any, grid: Any, origin: Any, *args: Any, **kwargs: Any
) -> int:
    """λp once more for the queries' gradient, then one product each for the values and for the table."""
    products = 3 * _position_products(query, value, table, grid, origin)
    return 2 * (products + 2 * math.prod(query) * value[3])
