"""Normalisations of queries and values, by name or by class, and the test that one keeps a causal order."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lambdanets.kernels.autograd.modes import is_readable

__all__ = ["NormLayer", "PositionNorm", "check_enough_values", "check_keeps_order", "check_order", "make_norm"]

NormLayer = str | Callable[[int], nn.Module]

# Positions along each axis of the inputs that a norm is tried on, by the number of axes.
_POSITIONS = {1: 16, 2: 8, 3: 5}
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


class PositionNorm(nn.LayerNorm):
    """Layer-norm over the channels of each position of a grid (b, channels, *grid), of any rank.

    Parameters and their names are those of ``nn.LayerNorm``.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(b, channels, *grid) -> (b, channels, *grid)."""
        last = x.ndim - 1  # not -1, which the TorchScript exporter of torch.onnx passes on
        return super().forward(x.movedim(1, last)).movedim(last, 1)


def make_norm(given: NormLayer, named: Mapping[str, Callable[..., nn.Module]], width: int, **factory: Any) -> nn.Module:
    """Return the norm of a number of channels that a layer's argument ``norm_layer`` asks for.

    Args:
        given: a name, or a class or function that makes a norm from a number of channels.
        named: what makes the norm of each name.
        width: channels.
        **factory: device and dtype; None leaves a norm made by a class or function as it is.

    Raises:
        ValueError: if the name is unknown.
        TypeError: if ``given`` is something else, or does not make a module.
    """
    if isinstance(given, str):
        if given not in named:
            names = ", ".join(map(repr, named))
            raise ValueError(
                f"norm_layer must be one of {names}, or a class that makes a norm from channels, got {given!r}"
            )
        return named[given](width, **factory)
    if isinstance(given, nn.Module):
        raise TypeError(
            f"norm_layer must make a norm from a number of channels, got the module {given!r}; give its class, "
            f"norm_layer={type(given).__name__}, or a function, norm_layer=lambda channels: nn.GroupNorm(4, channels)"
        )
    if not callable(given):
        raise TypeError(f"norm_layer must be a name or make a norm from a number of channels, got {given!r}")
    norm = given(width)
    if not isinstance(norm, nn.Module):
        raise TypeError(f"norm_layer must make a torch.nn.Module from a number of channels, got {norm!r}")
    asked = {name: value for name, value in factory.items() if value is not None}
    return norm.to(**asked) if asked else norm


@torch.no_grad()
def check_keeps_order(norm: nn.Module, width: int, ndim: int, channels_axis: int) -> None:
    """Raise unless a norm keeps positions apart, in evaluation and in training; found out by running a copy of it.

    The copy is run on 16 positions of a sequence, 8x8 of an image, 5x5x5 of a volume, of which the last one is changed:
    a norm that looks further ahead than that is not found out. The copy's parameters are random numbers: zeros would
    hide what the norm does once it is trained. The norm, its buffers and the random generator stay as they are. A norm
    whose parameters are on the meta device or are fake tensors cannot be run, and passes.

    Args:
        norm: the norm.
        width: channels of its inputs.
        ndim: number of axes of positions.
        channels_axis: where the channels stand among the axes of its inputs: 1 or -1.

    Raises:
        ValueError: if the output at a position depends on a later one, or the norm does not take such inputs.
    """
    sizes = (2, *(_POSITIONS[ndim],) * ndim, width)
    x = torch.linspace(-9, 9, math.prod(sizes), dtype=torch.float64, device="cpu").sin().reshape(sizes)
    state = [*norm.parameters(), *norm.buffers()]
    if not is_readable(x) or not all(map(is_readable, state)):
        return
    changed = x.clone()
    changed.flatten(1, -2)[:, -1].mul_(3).add_(1)
    x, changed = x.movedim(-1, channels_axis), changed.movedim(-1, channels_axis)
    kind, remedy = type(norm).__name__, 'norm_layer="layer" normalises the channels of each position'
    for mode, training in (("evaluation", False), ("training", True)):
        generator = torch.get_rng_state()
        try:
            before = _copied(norm, training)(x)
            torch.set_rng_state(generator)  # the same dropout for both inputs
            after = _copied(norm, training)(changed)
        except (RuntimeError, IndexError, ValueError) as error:
            raise ValueError(
                f"norm_layer made {kind}, which does not take an input of shape {tuple(x.shape)}: {error}; {remedy}"
            ) from error
        finally:
            torch.set_rng_state(generator)
        before, after = (out.movedim(channels_axis, -1).flatten(1, -2)[:, :-1] for out in (before, after))
        if not torch.allclose(before, after, rtol=1e-5, atol=1e-5):
            raise ValueError(
                f"norm_layer made {kind}, in whose {mode} the output at a position depends on later positions, which "
                f"causal=True excludes; {remedy}"
            )


def _copied(norm: nn.Module, training: bool) -> nn.Module:
    """A copy in float64 on the CPU, with the same random parameters each time."""
    copied = copy.deepcopy(norm).to("cpu", torch.float64).train(training)
    generator = torch.Generator("cpu").manual_seed(0)
    for parameter in copied.parameters():
        if parameter.is_floating_point():
            parameter.uniform_(0.5, 1.5, generator=generator)
    return copied


def check_order(*norms: nn.Module) -> None:
    """Raise a ValueError if a norm of a causal layer mixes positions in the mode that it is in, by its class."""
    for norm in norms:
        of_inputs = norm.training or getattr(norm, "running_mean", None) is None
        if isinstance(norm, _BATCH_NORMS) and of_inputs:
            raise ValueError(
                'norm_layer="batch" mixes positions in training, which causal=True excludes; build the layer with '
                'norm_layer="layer" (the default) to train it, or call .eval() before using weights that were '
                "trained with batch-norm"
            )
        # Of PyTorch's own alone: a subclass may do so for each position by itself.
        if type(norm).forward is nn.GroupNorm.forward or (type(norm) in _INSTANCE_NORMS and of_inputs):
            raise ValueError(
                f"norm_query and norm_value must keep positions apart, since causal=True, got {type(norm).__name__}; "
                'norm_layer="layer" (the default) normalises the channels of each position'
            )


def check_enough_values(given: str, *norms: nn.Module) -> None:
    """Raise a ValueError if a batch-norm would have to take the statistics of a single value.

    Args:
        given: what has one value a channel, for the message.
        *norms: of the layer.
    """
    for norm in norms:
        # A SyncBatchNorm has the values of other processes too; PyTorch looks at them together.
        takes_statistics = isinstance(norm, _BATCH_NORMS) and (norm.training or norm.running_mean is None)
        if takes_statistics and not isinstance(norm, nn.SyncBatchNorm):
            raise ValueError(
                f"{given} has one value for each channel, of which batch-norm can take no statistics in training; "
                'train with more than one, call .eval(), or build the layer with norm_layer="layer"'
            )
