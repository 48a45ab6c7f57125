"""One lambda layer of another implementation into one of ours, and the comparison of the two."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lambdanets.interop.adopt.faithful import TwoOrderLambdaLayer
from lambdanets.interop.adopt.sources import Layout, Piece, Source, UnfitError
from lambdanets.interop.tree import hooks_of, own_tensors, submodule
from lambdanets.layers import LambdaLayer
from lambdanets.layers.arguments import check_bool

__all__ = ["Converted", "Converter"]

# Of float64: layers that compute the same differ by rounding alone, relative to the largest output.
_TOLERANCE = 1e-9
# A global layer of theirs runs at its own size only, and keeps n · m · k · u numbers on the way.
_MOST_NUMBERS_TO_COMPARE = 1 << 25

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)


@dataclass(frozen=True, eq=False)
class Converted:
    """A layer of ours with the numbers of another, the largest difference of their outputs (or None), and notes."""

    layer: LambdaLayer
    difference: float | None
    notes: tuple[str, ...]


class Converter:
    """Converter of layers, one by one; parameters that they share stay shared.

    Args:
        faithful: what to do with a layer that reads its values in two orders, see :func:`lambdanets.adopt`.
    """

    def __init__(self, faithful: bool | None) -> None:
        if faithful is not None:
            check_bool("faithful", faithful)
        self.faithful = faithful
        self._made: dict[tuple[object, ...], nn.Parameter] = {}

    def convert(self, old: nn.Module, source: Source) -> Converted:
        """Build our layer for one of theirs and compare the two; ``old`` is not changed.

        Raises:
            UnfitError: if no layer of ours computes what ``old`` does.
            ValueError: if ``faithful`` must be chosen.
        """
        if isinstance(old, torch.jit.ScriptModule):
            raise UnfitError("it is TorchScript, whose modules cannot be replaced; adopt the model before scripting it")
        _check_projections(old, source)
        try:
            tensors = own_tensors(old)
        except ValueError as error:
            raise UnfitError(str(error)) from error
        layout = source.layout(tensors)
        layout.translate({name: tensor.detach() for name, tensor in tensors.items()})
        _check_submodules(old, source, layout)
        layer = self._build(layout, tensors)
        self._take_modules(layer, old, source, layout)
        notes = self._notes(layout)
        if layout.two_orders and not self.faithful:
            return Converted(layer, None, notes)
        compared, remark = _difference(old, layer)
        return Converted(layer, compared, (*notes, *remark))

    def _build(self, layout: Layout, tensors: dict[str, Tensor]) -> LambdaLayer:
        if layout.two_orders and self.faithful is None:
            raise ValueError(
                f"faithful must be chosen: a LambdaConv of leaderj1001 has intra-depth u = {layout.intra_depth}, where "
                "its content term reads the value channels as (v, u) and its position term as (u, v). faithful=True "
                "reproduces that, with equal outputs; faithful=False takes the paper's layer, with other outputs"
            )
        ours = {piece.ours for piece in layout.pieces}
        kind = TwoOrderLambdaLayer if layout.two_orders and self.faithful else LambdaLayer
        layer = kind(
            layout.dim,
            layout.num_heads * layout.dim_value,
            num_heads=layout.num_heads,
            dim_key=layout.dim_key,
            intra_depth=layout.intra_depth,
            scope=layout.scope,
            size=layout.size,
            qkv_bias="qkv.bias" in ours,
            position_bias="position_bias" in ours,
            norm_layer=lambda width: nn.Identity(),
            device="meta",
        )
        for piece in layout.pieces:
            owner, _, name = piece.ours.rpartition(".")
            setattr(layer.get_submodule(owner), name, self._parameter(piece, tensors))
        return layer

    def _parameter(self, piece: Piece, tensors: dict[str, Tensor]) -> nn.Parameter:
        theirs = [tensors[name] for name in piece.theirs]
        key = (piece.ours, *map(id, theirs))
        if key not in self._made:
            for what in ("requires_grad", "dtype", "device"):
                if len({getattr(tensor, what) for tensor in theirs}) > 1:
                    raise UnfitError(f"{', '.join(piece.theirs)} become one parameter but differ in {what}")
            value = piece({name: tensor.detach() for name, tensor in tensors.items()})
            same = len(theirs) == 1 and value.shape == theirs[0].shape and isinstance(theirs[0], nn.Parameter)
            self._made[key] = (
                theirs[0]  # type: ignore[assignment]
                if same
                else nn.Parameter(
                    value.clone(memory_format=torch.contiguous_format), requires_grad=theirs[0].requires_grad
                )
            )
        return self._made[key]

    @staticmethod
    def _take_modules(layer: LambdaLayer, old: nn.Module, source: Source, layout: Layout) -> None:
        layer.train(old.training)  # before their modules come in, which have modes of their own
        for own, other in layout.norms.items():
            norm = submodule(old, other)
            if norm is None:
                continue
            if own == "norm_value" and layout.value_order is not None:
                norm = _reordered(norm, layout)
            setattr(layer, own, norm)
        pool = submodule(old, source.pool) if source.pool else None
        if pool is not None:
            layer.pool = pool
            stride = getattr(pool, "stride", 1)
            layer.stride = stride if isinstance(stride, int) else stride[0]
        for name in _HOOKS:
            if name in old.__dict__:
                setattr(layer, name, old.__dict__[name])

    def _notes(self, layout: Layout) -> tuple[str, ...]:
        if not layout.two_orders:
            return ()
        if self.faithful:
            return ("faithful: its content term reads the values as (v, u), its position term as (u, v), as there",)
        return ("OUTPUTS CHANGE: both terms read the values as (u, v) now, the content term read them as (v, u)",)


def _reordered(norm: nn.Module, layout: Layout) -> nn.Module:
    norm = copy.deepcopy(norm)
    with torch.no_grad():
        for tensor in norm.state_dict(keep_vars=True).values():
            tensor.copy_(layout.reorder(tensor))
    return norm


def _check_projections(old: nn.Module, source: Source) -> None:
    for name in source.projections:
        conv = submodule(old, name)
        if not isinstance(conv, nn.Conv2d):
            raise UnfitError(f"{name} is {type(conv).__name__}, not Conv2d")
        if conv.kernel_size != (1, 1) or conv.stride != (1, 1) or conv.padding not in ((0, 0), "valid"):
            raise UnfitError(f"{name} is no 1x1 projection: {conv}")
        if conv.groups != 1:
            raise UnfitError(f"{name} is grouped ({conv.groups} groups), ours is not")
    conv = submodule(old, source.position_conv) if source.position_conv else None
    if conv is None:
        return
    if not isinstance(conv, nn.Conv3d):
        raise UnfitError(f"{source.position_conv} is {type(conv).__name__}, not Conv3d")
    plain = conv.stride == conv.dilation == (1, 1, 1) and conv.groups == 1 and conv.padding_mode == "zeros"
    if not plain or conv.padding not in (tuple(size // 2 for size in conv.kernel_size), "same"):
        raise UnfitError(f"{source.position_conv} keeps no grid with zeros around it: {conv}")


def _check_submodules(old: nn.Module, source: Source, layout: Layout) -> None:
    """Raise an UnfitError for what would be lost without a trace in the weights: dropout, say, or hooks."""
    kept = {*layout.norms.values(), *filter(None, [source.pool])}
    read = {name.rpartition(".")[0] for piece in layout.pieces for name in piece.theirs}
    for name, module in old.named_modules():
        if not name or any(name == own or name.startswith(f"{own}.") for own in kept):
            continue
        if hooks_of(module):
            raise UnfitError(f"{name} has hooks, and goes into a projection or table of ours, where nothing calls them")
        inner = next(module.children(), None) is not None
        if not inner and name not in read and not isinstance(module, nn.Identity | nn.Softmax):
            raise UnfitError(f"it has {name} ({type(module).__name__}), which our layer has no place for")


def _double(module: nn.Module) -> nn.Module:
    """A copy in float64 on the CPU, in evaluation mode and without hooks: those are the user's, not for our input."""
    double = copy.deepcopy(module).to("cpu", torch.float64).eval()
    for each in double.modules():
        for name in _HOOKS:
            if isinstance(hooks := each.__dict__.get(name), dict):
                hooks.clear()
    return double


def _difference(old: nn.Module, new: LambdaLayer) -> tuple[float | None, tuple[str, ...]]:
    """The largest difference of the outputs in float64 on a small random input, relative to the largest output.

    Returns:
        The difference, or None, and a remark where they were not compared.

    Raises:
        UnfitError: if they differ by more than rounding.
    """
    if new.qkv.weight.is_meta:
        return None, ("not compared: its weights are on the meta device",)
    grid = new.size or (7, 6)
    n = grid[0] * grid[1]
    if new.size and n * n * new.dim_key * new.intra_depth > _MOST_NUMBERS_TO_COMPARE:
        return None, (f"not compared: too large at its own size {grid}",)
    generator = torch.Generator("cpu").manual_seed(0)  # whatever the default device
    x = torch.randn(2, new.dim, *grid, generator=generator, dtype=torch.float64, device="cpu")
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        try:
            expected = _double(old).forward(x)
        except Exception as error:  # theirs may raise anything
            return None, (f"not compared: it raised {type(error).__name__} on an input of {tuple(x.shape)} in float64",)
        actual = _double(new).forward(x)
    if actual.shape != expected.shape:
        raise UnfitError(f"it gives {tuple(expected.shape)} where ours gives {tuple(actual.shape)}")
    if expected.numel() == 0:
        return 0.0, ()
    largest = float(expected.abs().max())
    if not math.isfinite(largest):
        return None, ("not compared: its output is not finite, and so its weights may not be",)
    worst = float((actual - expected).abs().max())
    if largest == 0 == worst:
        return None, ("not compared: all of its outputs are 0",)
    worst = worst / largest if largest else math.inf
    if worst > _TOLERANCE:
        raise UnfitError(
            f"it computes something else: its outputs differ by {worst:.2g} of the largest from those of our layer "
            "with its weights"
        )
    return worst, ()
