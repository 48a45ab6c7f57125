"""The cost of a model before it is built: parameters, multiply-adds, activations, counted on the meta device."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, baddbmm_flop, flop_registry, register_flop_formula
from torch.utils.hooks import RemovableHandle

from lambdanets.layers import LambdaLayer, TokenLambda
from lambdanets.layers.arguments import check_bool, per_axis
from lambdanets.layers.registry import layer_classes
from lambdanets.models.resnet import LambdaResNet
from lambdanets.models.shipped import check_tag
from lambdanets.names import did_you_mean
from lambdanets.positions import pairs_in_reach

__all__ = ["ModelCost", "PartCost", "model_cost"]

_COUNTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


@dataclass(frozen=True)
class PartCost:
    """Costs of a part of a model for one image.

    Args:
        name: of the part: the stem, a stage, the head; or a submodule of the model.
        placement: letters of a stage's blocks, "CLCLCL"; "" where there are none.
        output: shape of the output without the batch.
        parameters: their number.
        multiply_adds: in one forward pass.
        activations: elements that convolutions, linear layers and the layers of the registry put out.
    """

    name: str
    placement: str
    output: tuple[int, ...]
    parameters: int
    multiply_adds: int
    activations: int


@dataclass(frozen=True)
class ModelCost:
    """Costs of a model for one image.

    Args:
        name: of the model.
        stages: its placement, as "CCLL"; "" if it is no LambdaResNet.
        image_size: (height, width) of the image.
        parameters: their number.
        multiply_adds: in one forward pass.
        activations: elements that convolutions, linear layers and the layers of the registry put out.
        parts: the same, part by part.
    """

    name: str
    stages: str
    image_size: tuple[int, int]
    parameters: int
    multiply_adds: int
    activations: int
    parts: tuple[PartCost, ...]


def model_cost(
    name: str, image_size: int | Sequence[int] | None = None, *, count_padding: bool = False, **kwargs: Any
) -> ModelCost:
    """Count a model of timm's registry on the meta device: nothing is allocated, nothing computed.

    Multiply-adds are those of products of matrices, convolutions included, half of what PyTorch's
    ``FlopCounterMode`` counts. A lambda layer counts in the paper's order, position lambdas first, b·n·m·k·v·u and
    b·h·n·k·v, whatever kernel runs; m are the context positions that lie inside the scope *and* inside the map. A layer
    states in methods what PyTorch does not count: products element by element in ``elementwise_multiply_adds(*grid)``,
    those with a padded map in ``padding_multiply_adds(*grid)``.

    Args:
        name: of a model in timm's registry.
        image_size: side or (height, width) of the image; default the model's own.
        count_padding: count a local lambda layer as a convolution over a padded map, m = scope², as public
            counters do. At scope 23 most of that is outside of a small map. Default False.
        **kwargs: further arguments of the model, as ``stages="CLLL"``.

    Returns:
        Its cost.

    Raises:
        ValueError: if there is no such model, ``image_size`` is not positive, or the model does not take such images.
    """
    check_bool("count_padding", count_padding)
    if not timm.is_model(name):
        raise ValueError(
            f"name must be a model of timm's registry, got {name!r}; {did_you_mean(name, timm.list_models())}"
        )
    check_tag(name)
    if image_size is not None:
        image_size = per_axis("image_size", image_size, 2, odd=False)
        if getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False):
            kwargs.setdefault("img_size", image_size)
    with torch.device("meta"):
        model = timm.create_model(name, **kwargs).eval()
    for module in model.modules():
        if isinstance(module, LambdaLayer | TokenLambda):
            module.kernel = None  # the op as a whole, which is counted in the paper's order
    channels, *own = timm.data.resolve_model_data_config(model)["input_size"]
    if isinstance(model, LambdaResNet) and model.img_size is not None:
        own = list(model.img_size)
    height, width = image_size or own
    channels = kwargs.get("in_chans") or channels
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), _watched(model) as seen, counter:
        try:
            model(torch.empty(1, channels, height, width, device="meta"))
        # Models refuse sizes with errors of many kinds.
        except Exception as error:
            raise ValueError(f"{name} does not take images of {height}x{width}: {error}") from error
    flops = {name: sum(counts.values()) // 2 for name, counts in counter.get_flop_counts().items()}

    def count(members: Sequence[str]) -> dict[str, int]:
        inside = tuple(f"{member}." if member else "" for member in members)
        products = sum(flops.get(f"{type(model).__name__}.{member}" if member else "Global", 0) for member in members)
        padding = seen.total("padding", inside) if count_padding else 0
        return {
            "parameters": sum(p.numel() for name, p in model.named_parameters() if name.startswith(inside)),
            "multiply_adds": products + seen.total("products", inside) + padding,
            "activations": seen.total("activations", inside),
        }

    parts = _parts(model, seen.outputs)
    return ModelCost(
        name=name,
        stages=model.stages if isinstance(model, LambdaResNet) else "",
        image_size=(height, width),
        **count([""]),
        parts=tuple(PartCost(part, word, seen.outputs[own[-1]], **count(own)) for part, word, own in parts),
    )


def _parts(model: nn.Module, ran: Mapping[str, Any]) -> Iterator[tuple[str, str, list[str]]]:
    """(name, placement, submodules) of each part: a LambdaResNet's stem, stages and head; else each child."""
    if not isinstance(model, LambdaResNet):
        yield from ((name, "", [name]) for name, _ in model.named_children() if name in ran)
        return
    yield "stem", "", ["conv1", "bn1", "act1", "maxpool"]
    for index, word in enumerate(model.placement, start=1):
        yield f"layer{index}", word, [f"layer{index}"]
    yield "head", "", ["global_pool", "fc"]


@dataclass
class _Seen:
    """Record of the hooks: shapes of the children's outputs, and counts by the name of a layer."""

    outputs: dict[str, tuple[int, ...]] = field(default_factory=dict)
    activations: dict[str, int] = field(default_factory=dict)
    padding: dict[str, int] = field(default_factory=dict)
    products: dict[str, int] = field(default_factory=dict)  # that layers state, since PyTorch does not count them

    def add(self, name: str, module: nn.Module, grid: tuple[int, ...], output: Tensor) -> None:
        """Note one call of a layer."""
        self.activations[name] = self.activations.get(name, 0) + output.numel()
        for counts, stated in (
            (self.products, getattr(module, "elementwise_multiply_adds", None)),
            (self.padding, getattr(module, "padding_multiply_adds", None)),
        ):
            if stated is not None:
                counts[name] = counts.get(name, 0) + stated(*grid)

    def add_pooled(self, name: str, before: Tensor, output: Tensor) -> None:
        """Note the pooling that ends a layer: its activations are those before it."""
        self.activations[name] = self.activations.get(name, 0) + before.numel() - output.numel()

    def total(self, kind: str, inside: tuple[str, ...] = ("",)) -> int:
        """Sum of a kind of counts over the layers in some submodules."""
        return sum(count for name, count in getattr(self, kind).items() if f"{name}.".startswith(inside))


@contextmanager
def _watched(model: nn.Module) -> Iterator[_Seen]:
    """While it lasts, forward passes are noted."""
    layers = layer_classes()
    seen, counted = _Seen(), (*_COUNTED, *layers)
    pools = {f"{name}.pool" for name, module in model.named_modules() if isinstance(module, layers)}

    def watch(name: str, module: nn.Module) -> RemovableHandle:
        def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor):
                seen.outputs[name] = tuple(output.shape[1:])
                if name in pools:
                    seen.add_pooled(name.removesuffix(".pool"), args[0], output)
                elif isinstance(module, counted):
                    seen.add(name, module, tuple(args[0].shape[2:]), output)

        return module.register_forward_hook(hook)

    handles = [watch(name, module) for name, module in model.named_modules() if name]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _position_products(query: Sequence[int], value: Sequence[int], table: Sequence[int], grid: Any, origin: Any) -> int:
    """b·u·k·v for each pair of positions that sees each other."""
    pairs = pairs_in_reach(grid, table[2:], origin)
    return query[0] * table[0] * table[1] * value[3] * pairs


# PyTorch counts the product that makes its output, but not the one that adds to a tensor in place.
flop_registry.setdefault(torch.ops.aten.baddbmm_, baddbmm_flop)


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
