"""Checks of the keyword arguments that models hand on to layers, with the nearest name for a wrong one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from lambdanets.layers.registry import DECIDED, LAYERS
from lambdanets.names import did_you_mean

__all__ = ["by_stage", "check_lambda_args", "check_options", "note_argument"]


def check_options(letter: str, given: Mapping[str, Any] | None, argument: str, place: str) -> dict[str, Any]:
    """Keyword arguments of a layer, checked by name.

    Args:
        letter: of the layer in :data:`lambdanets.layers.registry.LAYERS`.
        given: the arguments; None for none.
        argument: how the caller's argument is called, for the message.
        place: what decides channels and stride, for the message: "each convolution".

    Raises:
        TypeError: if they are no mapping.
        ValueError: if the layer does not take one of them, or its place decides it.
    """
    if given is not None and not isinstance(given, Mapping):
        raise TypeError(f"{argument} must be a mapping of names to values, got {given!r}")
    options, entry = dict(given or {}), LAYERS[letter]
    for name in options:
        if name in DECIDED:
            raise ValueError(f"{argument} must not have {name!r}: it is taken from {place}")
        if name not in entry.options:
            kind = entry.layer.__name__ if entry.layer else f"a {entry.name}"
            raise ValueError(
                f"{argument} has {name!r}, which {kind} does not take; {did_you_mean(name, entry.options)}"
            )
    return options


def check_lambda_args(given: Mapping[str, Any] | None, place: str) -> dict[str, Any]:
    """Keyword arguments of :class:`lambdanets.LambdaLayer`, checked by name; see :func:`check_options`."""
    return check_options("L", given, "lambda_args", place)


def note_argument(model: nn.Module, name: str, value: Any) -> None:
    """Note that a model is now as if it had been made with an argument.

    timm keeps what a model was made with, and its export for the hub writes that down. A mapping adds to what is noted,
    to each of a sequence.
    """
    for facts in ("_model_args", "_traits"):
        noted = getattr(model, facts, None)
        if isinstance(noted, dict) and not (facts == "_traits" and name not in noted):
            setattr(model, facts, {**noted, name: _added(noted.get(name), value)})


def by_stage(args: Any, change: Callable[[Any], Any]) -> Any:
    """Change arguments of layers that are given for all stages, or as a list for each of them."""
    return [change(each) for each in args] if isinstance(args, list | tuple) else change(args)


def _added(noted: Any, value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return by_stage(noted, lambda args: {**(args or {}), **value})
