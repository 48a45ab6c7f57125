"""Putting our lambda layers in place of those of other implementations, inside any module tree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import nn

from lambdanets.interop.adopt.convert import Converter
from lambdanets.interop.adopt.faithful import TwoOrderLambdaLayer
from lambdanets.interop.adopt.sources import SOURCES, Source, UnfitError, describe_sources, recognise
from lambdanets.interop.tree import swap
from lambdanets.layers import LambdaLayer
from lambdanets.names import count, first_of

__all__ = ["AdoptedLayer", "Adoption", "SkippedLayer", "adopt"]


@dataclass(frozen=True)
class AdoptedLayer:
    """A layer that was replaced.

    Args:
        path: where it is in the model; "" is the model itself. A layer used in several places has the first one here.
        source: whose it was: timm, lucidrains, d-li14 or leaderj1001.
        old: class name of the old layer.
        new: our layer, as it prints itself.
        difference: largest difference between the two layers' outputs on a small random input, in the model's
            precision, relative to the largest output where that is above 1; None where they were not run (see
            ``notes``).
        notes: what else to know.
        faithful: the layer reads its values in two orders, as there.
    """

    path: str
    source: str
    old: str
    new: str
    difference: float | None
    notes: tuple[str, ...] = ()
    faithful: bool = False

    def __str__(self) -> str:
        compared = "" if self.difference is None else f", outputs differ by {self.difference:.1e}"
        lines = [f"{self.path or '(model)'}: {self.old} of {self.source} -> {self.new}{compared}"]
        return "\n    ".join([*lines, *self.notes])


@dataclass(frozen=True)
class SkippedLayer:
    """A module that looks like a lambda layer and was left as it is, with the reason."""

    path: str
    source: str
    old: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path or '(model)'}: {self.old}, looks like {self.source}'s: {self.reason}"


@dataclass(frozen=True, eq=False)
class Adoption:
    """Result of :func:`adopt`; prints as a list.

    Args:
        model: the model, changed in place; another object only where the model itself was one lambda layer.
        adopted: the layers that were replaced.
        skipped: the modules that look like lambda layers but have no equal among ours.
    """

    model: nn.Module = field(repr=False)
    adopted: tuple[AdoptedLayer, ...]
    skipped: tuple[SkippedLayer, ...] = ()

    def __str__(self) -> str:
        lines = [f"Adopted {count(len(self.adopted), 'lambda layer', 'lambda layers')}:"]
        lines += [f"  {layer}" for layer in self.adopted]
        if self.skipped:
            lines.append(f"Left as {'it is' if len(self.skipped) == 1 else 'they are'}:")
            lines += [f"  {layer}" for layer in self.skipped]
        return "\n".join(lines)


def adopt(model: nn.Module, *, faithful: bool | None = None) -> Adoption:
    """Put our lambda layers in place of those of timm, lucidrains, d-li14 and leaderj1001, with the same outputs.

    Layers are recognised by the names and shapes of their parameters, not by their class, anywhere in the tree.
    Ours takes over weights, biases (the position bias too), normalisations and pooling (the same module objects:
    statistics, eps, momentum, mode), training mode, device, dtype, ``requires_grad`` and forward and backward
    hooks. A layer used in several places stays one layer, and tied parameters stay tied but for those that are joined
    with others into one. Copies of each pair of layers are run once in float64 on a small random input, in evaluation
    mode; where outputs differ by more than rounding, or a module inside has no place in ours, as dropout, the old layer
    stays, and the report says so. Outputs and gradients then agree within rounding, in both modes.

    The model is changed in place, and only after all layers have been read: an error leaves it as it was.
    Parameters that change shape are new objects (projections that are joined, position tables), so make the
    optimizer afterwards; names in ``state_dict`` become ours, which :func:`lambdanets.load_weights` reads.

    Args:
        model: any module; a lambda layer itself too.
        faithful: matters for leaderj1001's ``LambdaConv`` at u > 1 alone, whose content term reads the value channels
            in another order than its position term. None (default) refuses such layers; True reproduces it, with
            :class:`lambdanets.interop.TwoOrderLambdaLayer`; False takes the paper's layer, values in the order of
            the position term, which changes the outputs.

    Returns:
        What was changed and what was not: ``adoption.model`` is the model.

    Raises:
        TypeError: if ``model`` is not a module.
        ValueError: if there is no lambda layer of theirs, or none that has an equal among ours, or ``faithful`` is
            None and must be chosen.

    Example:
        >>> model = lambdanets.adopt(timm.create_model("lambda_resnet26t")).model
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    converter = Converter(faithful)
    adopted: list[AdoptedLayer] = []
    skipped: list[SkippedLayer] = []
    replaced: dict[nn.Module, nn.Module] = {}
    for path, old, source in _candidates(model):
        try:
            made = converter.convert(old, source)
        except UnfitError as reason:
            skipped.append(SkippedLayer(path, source.name, type(old).__name__, str(reason)))
            continue
        replaced[old] = made.layer
        new = f"{type(made.layer).__name__}({made.layer.extra_repr()})"
        faithful_here = isinstance(made.layer, TwoOrderLambdaLayer)
        adopted.append(
            AdoptedLayer(path, source.name, type(old).__name__, new, made.difference, made.notes, faithful_here)
        )
    if not adopted:
        raise _nothing(model, skipped)
    return Adoption(swap(model, replaced), tuple(adopted), tuple(skipped))


def _candidates(model: nn.Module) -> Iterator[tuple[str, nn.Module, Source]]:
    """The modules that have the marks of a source, each once, none inside another."""
    inside: set[nn.Module] = set()
    for path, module in model.named_modules():
        if module in inside or isinstance(module, LambdaLayer):
            continue
        names = [name for name, _ in module.named_children()] + [
            name for name, _ in module.named_parameters(recurse=False)
        ]
        source = recognise(names, SOURCES.values())
        if source is not None:
            inside.update(module.modules())
            yield path, module, source


def _nothing(model: nn.Module, skipped: list[SkippedLayer]) -> ValueError:
    kind = type(model).__name__
    if skipped:
        reasons = first_of([str(layer) for layer in skipped], separator="; ")
        return ValueError(
            f"{kind} has {count(len(skipped), 'module', 'modules')} like lambda layers, but none can be ours: {reasons}"
        )
    modules = list(model.modules())
    ours = sum(isinstance(module, LambdaLayer) for module in modules)
    already = f" It has {ours} of this library's already, and needs no adopting." if ours else ""
    return ValueError(
        f"{kind} has no lambda layer of another implementation among its {len(modules)} modules.{already} "
        f"Looked for modules that contain, by name: {describe_sources()}"
    )
