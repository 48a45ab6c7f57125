"""Checks of the layers' arguments."""

from __future__ import annotations

import operator
from collections.abc import Sequence

from torch import Tensor, nn

from lambdanets.kernels.autograd.modes import is_autocast

__all__ = ["check_bool", "check_dtype", "check_heads", "per_axis", "positive_int"]

# Others' projections may take another dtype than that of their weights.
_PLAIN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def positive_int(name: str, given: object, or_zero: bool = False) -> int:
    """``given`` as an int.

    Raises:
        ValueError: if it is not a whole number above 0, or ``or_zero`` 0; bools are not numbers here.
    """
    try:
        number = operator.index(given)  # type: ignore[arg-type]
    except TypeError:
        number = -1
    if isinstance(given, bool) or number < (0 if or_zero else 1):
        raise ValueError(f"{name} must be {'a whole number from 0 on' if or_zero else 'a positive int'}, got {given!r}")
    return number


def check_bool(name: str, given: object) -> bool:
    """``given`` as a bool; a TypeError unless it is True or False."""
    if not isinstance(given, bool):
        raise TypeError(f"{name} must be True or False, got {given!r}")
    return given


def check_dtype(name: str, x: Tensor, projection: nn.Module) -> None:
    """Raise a TypeError unless the input has the dtype of the projection's weight, or autocast is on."""
    if type(projection) not in _PLAIN or x.dtype == projection.weight.dtype:  # type: ignore[union-attr]
        return
    if is_autocast(x.device.type):
        return
    dtype = projection.weight.dtype  # type: ignore[union-attr]
    raise TypeError(
        f"{name} must have the dtype of the layer's weights, {dtype}, got {x.dtype}; convert it with "
        f"{name}.to({dtype}) or the layer with layer.to({x.dtype}), or run it under torch.autocast"
    )


def check_heads(num_heads: int, dim_out: int) -> None:
    """Raise a ValueError unless the heads divide the width."""
    if dim_out % num_heads:
        divisors = [h for h in range(1, dim_out + 1) if dim_out % h == 0]
        nearest = min(divisors, key=lambda h: abs(h - num_heads))
        raise ValueError(
            f"num_heads must divide dim_out = {dim_out}, got num_heads={num_heads}; {nearest} heads would do"
        )


def per_axis(name: str, given: int | Sequence[int], ndim: int, odd: bool) -> tuple[int, ...]:
    """One int for each axis of the grid, from an int or a sequence.

    Raises:
        ValueError: if there are not ``ndim``, one is not positive, or ``odd`` and one is even.
    """
    several = isinstance(given, Sequence) and not isinstance(given, str)
    each = list(given) if several else [given] * ndim  # type: ignore[arg-type]
    if len(each) != ndim:
        raise ValueError(f"{name} must be an int or {ndim} of them, one for each axis, got {given!r}")
    try:
        sizes = tuple(positive_int(name, size) for size in each)
    except ValueError:
        raise ValueError(f"{name} must be {'odd and ' if odd else ''}positive ints, got {given!r}") from None
    even = next((size for size in sizes if odd and size % 2 == 0), None)
    if even is not None:
        raise ValueError(f"{name} must be odd and positive, got {given!r}; {even - 1} or {even + 1} would do")
    return sizes
