"""Reading the checkpoints of other implementations, and our own, into models with our lambda layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lambdanets.interop.adopt.checkpoints import Checkpoint, check_plain, named_as, read_checkpoint
from lambdanets.interop.adopt.faithful import TwoOrderLambdaLayer
from lambdanets.interop.adopt.renaming import Renamed, to_our_names
from lambdanets.interop.adopt.sources import SOURCES, Source, UnfitError, describe_sources, recognise
from lambdanets.interop.tree import own_tensors, submodule
from lambdanets.layers import LambdaLayer
from lambdanets.layers.arguments import check_bool
from lambdanets.models.options import note_argument
from lambdanets.names import count, did_you_mean, first_of

__all__ = ["LoadedWeights", "copy_weights", "load_weights"]

_OURS = "lambdanets"
_OURS_MARKS = frozenset({"qkv", "positions"})


@dataclass(frozen=True)
class LoadedWeights:
    """Result of :func:`load_weights`; prints as a list.

    Args:
        source: whose weights they are; several joined by "+", "plain" where the file has no lambda layer.
        origin: the file.
        entry: the nested entry and the prefixes that led to the weights.
        layers: the lambda layers that were translated, by their names in the model.
        loaded: number of tensors copied into the model.
        missing: the model's names that the weights lack; with ``strict=False`` alone.
        unexpected: names in the weights that the model lacks; with ``strict=False`` alone.
        adjusted: changes to the model, without which the weights would mean something else.
    """

    source: str
    origin: str
    entry: tuple[str, ...]
    layers: tuple[str, ...]
    loaded: int
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    adjusted: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = f" ({', '.join(self.entry)})" if self.entry else ""
        layers = count(len(self.layers), "lambda layer", "lambda layers")
        lines = [f"{count(self.loaded, 'tensor', 'tensors')} from {self.origin}{where}: {self.source}, {layers}"]
        lines += [f"  adjusted: {each}" for each in self.adjusted]
        for what, names in (("missing", self.missing), ("unexpected", self.unexpected)):
            if names:
                lines.append(f"  {what}: {first_of(names)}")
        return "\n".join(lines)


def load_weights(
    model: nn.Module,
    weights: str | Path | Mapping[str, object] | Checkpoint,
    source: str = "auto",
    strict: bool = True,
) -> LoadedWeights:
    """Read weights of timm's, lucidrains', d-li14's, leaderj1001's or our lambda models into a model of our layers.

    Lambda layers are found in the names of the weights and translated; all other names must be those of the model.
    d-li14's ResNets have the names of ours; those of leaderj1001 are renamed where the model is a LambdaResNet of
    this library. Weights of timm's models go into timm's model after :func:`lambdanets.adopt`.

    Everything is checked before anything is copied. The model's device and dtype stay. Where weights carry a position
    bias that is not zero, and a layer has none, the layer gets one; where leaderj1001 pools behind a layer without a
    stride, so does ours: both are in the result's ``adjusted``. Make the optimizer afterwards.

    Args:
        model: has :class:`lambdanets.LambdaLayer` wherever the weights have a lambda layer.
        weights: a safetensors file, a file by ``torch.save`` (read with ``weights_only=True``), or a state dict;
            nested and prefixed as training scripts write them, see :func:`lambdanets.interop.read_checkpoint`.
        source: whose weights they are: "timm", "lucidrains", "d-li14", "leaderj1001", "lambdanets", or "auto"
            (default), each layer by its names.
        strict: the weights must have all names of the model and no others. False loads what both have; shapes must
            agree there too.

    Returns:
        What was loaded.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: ``model``, ``weights`` or ``strict`` is of another kind.
        ValueError: the source is unknown or not that of the weights; the file is damaged or an untrusted pickle; the
            weights are those of another model (the first names that differ and their number are told); or a layer
            has no equal among ours.

    Example:
        >>> theirs = timm.create_model("lambda_resnet26t")
        >>> model = lambdanets.adopt(timm.create_model("lambda_resnet26t")).model
        >>> lambdanets.load_weights(model, theirs.state_dict()).source  # or a file: "weights.pth"
        'timm'
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    check_bool("strict", strict)
    sources = _chosen(source)
    checkpoint = named_as(read_checkpoint(weights), model.state_dict())
    found = _find_layers(checkpoint.tensors, sources)
    if sources and source != "auto" and not found:
        raise _not_of(checkpoint, source)
    renamed = to_our_names(_translate(checkpoint, found, model), found, model)
    plan = _Plan(model, renamed)
    plan.check(checkpoint.origin, strict, bool(found))
    loaded = plan.carry_out()
    names = {each.name for each in found.values()} | {_OURS for _ in _ours(checkpoint.tensors)}
    return LoadedWeights(
        "+".join(sorted(names)) or "plain",
        checkpoint.origin,
        checkpoint.entry,
        tuple(renamed.layers.get(path, path) for path in [*found, *_ours(checkpoint.tensors)]),
        loaded,
        tuple(plan.missing),
        tuple(plan.unexpected),
        tuple(plan.adjusted),
    )


def copy_weights(model: nn.Module, checkpoint: Checkpoint) -> int:
    """Read a checkpoint into the model that it belongs to, without any translation.

    Returns:
        The number of tensors.

    Raises:
        ValueError: the checkpoint is one of another model; nothing was loaded.
    """
    plan = _Plan(model, Renamed(named_as(checkpoint, model.state_dict()).tensors))
    plan.check(checkpoint.origin, strict=True, translated=False)
    return plan.carry_out()


def _chosen(source: str) -> list[Source]:
    if source == "auto":
        return list(SOURCES.values())
    if source == _OURS:
        return []
    if isinstance(source, str) and source in SOURCES:
        return [SOURCES[source]]
    known = [*SOURCES, _OURS, "auto"]
    raise ValueError(f"source must name an implementation, got {source!r}; {did_you_mean(source, known, count=2)}")


def _names_inside(tensors: Mapping[str, Tensor]) -> dict[str, set[str]]:
    """Prefix -> the names directly below it."""
    inside: dict[str, set[str]] = {}
    for name in tensors:
        parts = name.split(".")
        for depth, part in enumerate(parts):
            inside.setdefault(".".join(parts[:depth]), set()).add(part)
    return inside


def _find_layers(tensors: Mapping[str, Tensor], sources: list[Source]) -> dict[str, Source]:
    """Prefix -> source of every lambda layer of theirs."""
    recognised = {prefix: recognise(names, sources) for prefix, names in _names_inside(tensors).items()}
    return {prefix: source for prefix, source in recognised.items() if source is not None}


def _ours(tensors: Mapping[str, Tensor]) -> list[str]:
    return [prefix for prefix, names in _names_inside(tensors).items() if names >= _OURS_MARKS]


def _not_of(checkpoint: Checkpoint, source: str) -> ValueError:
    others = {each.name for each in _find_layers(checkpoint.tensors, list(SOURCES.values())).values()}
    others |= {_OURS for _ in _ours(checkpoint.tensors)}
    if others:
        instead = f"it has those of {', '.join(sorted(others))}"
    else:
        instead = f"names begin {first_of(checkpoint.tensors)}"
    return ValueError(
        f"{checkpoint.origin} has no lambda layer of {source}: {instead}. Leave source at 'auto', which looks for "
        f"{describe_sources()}"
    )


def _translate(checkpoint: Checkpoint, found: Mapping[str, Source], model: nn.Module) -> dict[str, Tensor]:
    """All tensors, those of lambda layers by our names and in our order."""
    tensors = {name: tensor.detach() for name, tensor in checkpoint.tensors.items()}
    for prefix, source in found.items():
        start = f"{prefix}." if prefix else ""
        theirs = {name.removeprefix(start): tensors.pop(name) for name in list(tensors) if name.startswith(start)}
        try:
            layout = source.layout(theirs)
            ours = layout.translate(theirs)
        except UnfitError as error:
            raise ValueError(
                f"{checkpoint.origin}: the layer {prefix!r} looks like one of {source.name}, but {error}"
            ) from error
        if layout.two_orders and not isinstance(submodule(model, prefix), TwoOrderLambdaLayer):
            raise ValueError(
                f"{checkpoint.origin}: the layer {prefix!r} of leaderj1001 has intra-depth u = {layout.intra_depth}, "
                "where its two terms read the values in two orders, which no layer of the model does. Load it into "
                "the original model and call lambdanets.adopt(model, faithful=True)"
            )
        _check_pool(checkpoint.origin, prefix, source, submodule(model, prefix))
        tensors |= {start + name: tensor for name, tensor in ours.items()}
    return tensors


def _check_pool(origin: str, prefix: str, source: Source, layer: nn.Module | None) -> None:
    """Raise a ValueError where weights fit a layer that pools otherwise than theirs did: timm's over 2x2 positions."""
    if source.name != "timm" or not isinstance(layer, LambdaLayer) or layer.stride == 1:
        return
    if not isinstance(layer.pool, nn.AvgPool2d) or layer.pool.kernel_size not in (2, (2, 2)):
        raise ValueError(
            f"{origin}: the layer {prefix!r} of timm, where it has a stride, averages 2x2 positions, and the model's "
            "layer there 3x3; load it into timm's model after lambdanets.adopt(model), which keeps its average"
        )


class _Plan:
    """Plan of which tensor goes where, made before anything is changed."""

    def __init__(self, model: nn.Module, renamed: Renamed) -> None:
        self.model = model
        self.tensors = dict(renamed.tensors)
        self.given = len(self.tensors)
        self.state = own_tensors(model)
        self.biases = self._take_new_biases()
        self.pools = [path for path in renamed.pooled if isinstance(_layer(model, path).pool, nn.Identity)]
        self.missing = [
            name for name in self.state if name not in self.tensors and not name.endswith("num_batches_tracked")
        ]
        self.unexpected = [name for name in self.tensors if name not in self.state]
        self.common = [name for name in self.state if name in self.tensors]
        self.adjusted = [
            f"{what}: {len(paths)} ({first_of([path or '(model)' for path in paths])})"
            for paths, what in (
                (list(self.biases), "layers that have a position bias now, as the weights do"),
                (
                    self.pools,
                    "layers with a 3x3 average pool of stride 1 behind them now, as there; a state dict does not hold "
                    "it, so load these weights themselves into another model too",
                ),
            )
            if paths
        ]

    def _take_new_biases(self) -> dict[str, Tensor]:
        """Position biases for layers without one, taken out of the tensors; those of zeros say nothing."""
        biases = {}
        for name in list(self.tensors):
            path, _, last = name.rpartition(".")
            layer = submodule(self.model, path)
            if last == "position_bias" and name not in self.state and isinstance(layer, LambdaLayer):
                bias = self.tensors[name]
                if bias.shape == (layer.dim_key,):
                    del self.tensors[name]
                    if bias.any():
                        biases[path] = bias
        return biases

    def check(self, origin: str, strict: bool, translated: bool) -> None:
        """Raise a ValueError that names the first differences and counts them."""
        check_plain({name: self.tensors[name] for name in self.common}, origin)
        shapes = [name for name in self.common if self.state[name].shape != self.tensors[name].shape]
        problems = []
        if shapes:
            told = [
                f"{name} is {tuple(self.tensors[name].shape)}, the model's {tuple(self.state[name].shape)}"
                for name in shapes
            ]
            problems.append(f"{len(shapes)} of other shapes ({first_of(told, separator='; ')})")
        if self.missing and (strict or not self.common):
            problems.append(f"{len(self.missing)} missing ({first_of(self.missing)})")
        if self.unexpected and (strict or not self.common):
            problems.append(f"{len(self.unexpected)} unknown to the model ({first_of(self.unexpected)})")
        if problems:
            raise ValueError(
                f"{origin} has the weights of another model than this {type(self.model).__name__}: of its "
                f"{self.given} tensors and the model's {len(self.state)}, {', '.join(problems)}. Nothing was "
                f"loaded{self._remedy(shapes, translated)}"
            )
        lost = [name for name in self.common if _loses(self.tensors[name], self.state[name].dtype)]
        if lost:
            raise ValueError(
                f"{origin} has {count(len(lost), 'tensor', 'tensors')} with numbers that the model's type cannot "
                f"hold: {lost[0]} is {self.tensors[lost[0]].dtype}, the model's {self.state[lost[0]].dtype}. Nothing "
                "was loaded; write the weights in the model's type"
            )

    def _remedy(self, shapes: list[str], translated: bool) -> str:
        if not any(isinstance(module, LambdaLayer) for module in self.model.modules()):
            if translated:
                return "; the model has no lambda layer of this library, call lambdanets.adopt(model) first"
            if _ours(self.tensors):
                return f"; the weights are in this library's form already, {self._how_to_fit()}"
        if shapes and len(shapes) <= 2 and all("fc." in name or "head" in name for name in shapes):
            return f"; build the model with num_classes={self.tensors[shapes[0]].shape[0]}"
        if shapes and all(name.endswith("positions") for name in shapes):
            return (
                "; build the model with the scope, or the size of images, that the weights have; "
                "lambdanets.resize_positions changes global tables afterwards"
            )
        return ""

    def _how_to_fit(self) -> str:
        """Remedy for weights of this library's form and a model that has none of its layers."""
        if _find_layers(self.state, list(SOURCES.values())):
            return "adopt the model alone: lambdanets.load_weights(lambdanets.adopt(model).model, weights)"
        return "but the model has no lambda layer"

    @torch.no_grad()
    def carry_out(self) -> int:
        """Change the model, and count the tensors that were copied.

        Raises:
            ValueError: the model has no memory to copy into; nothing was changed.
        """
        if empty := [name for name in self.common if self.state[name].is_meta]:
            raise ValueError(
                f"model must have memory for its weights, got {count(len(empty), 'tensor', 'tensors')} on the meta "
                f"device, {empty[0]} the first; call model.to_empty(device='cpu') before"
            )
        if fixed := [name for name in self.common if not _is_writable(self.state[name])]:
            raise ValueError(
                f"model must have weights that can be written, got {fixed[0]}, which is expanded or was made in "
                "inference mode; give it memory of its own by a copy, tensor.clone(), outside of inference mode"
            )
        for path, bias in self.biases.items():
            layer = _layer(self.model, path)
            trains = layer.positions.requires_grad
            layer.position_bias = nn.Parameter(bias.to(layer.qkv.weight, copy=True), requires_grad=trains)
        layers = [module for module in self.model.modules() if isinstance(module, LambdaLayer)]
        if self.biases and all(layer.position_bias is not None for layer in layers):
            note_argument(self.model, "lambda_args", {"position_bias": True})
        for path in self.pools:
            _layer(self.model, path).pool = nn.AvgPool2d(3, 1, padding=1)
        for name in self.common:
            self.state[name].copy_(self.tensors[name])
        return len(self.common) + len(self.biases)


def _loses(tensor: Tensor, dtype: torch.dtype) -> bool:
    """True if a copy in another type is of another kind of number, or overflows."""
    if tensor.dtype == dtype or dtype.is_complex:
        return False
    if tensor.dtype.is_complex or tensor.dtype.is_floating_point != dtype.is_floating_point:
        return True
    if not dtype.is_floating_point:
        return bool((tensor.to(dtype).to(torch.int64) != tensor.to(torch.int64)).any())
    if torch.finfo(tensor.dtype).max <= torch.finfo(dtype).max:
        return False
    return bool((tensor.isfinite() & ~tensor.to(dtype).float().isfinite()).any())


def _is_writable(tensor: Tensor) -> bool:
    """False for a tensor whose elements share memory, and for one of inference mode outside of it."""
    expanded = any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))
    return not expanded and (not tensor.is_inference() or torch.is_inference_mode_enabled())


def _layer(model: nn.Module, path: str) -> LambdaLayer:
    layer = model.get_submodule(path)
    if not isinstance(layer, LambdaLayer):
        raise TypeError(f"{path} must be a LambdaLayer, got {type(layer).__name__}")
    return layer
