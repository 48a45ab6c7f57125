"""Arrays as a page carries them: float16 with a scale, in base64."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lambdanets.explanation.terms import Array, LayerTerms

__all__ = ["Packed", "pack", "packed_arrays", "round_trip", "rounded"]


@dataclass(frozen=True, eq=False)
class Packed:
    """An array whose numbers are ``data`` times ``scale``.

    Args:
        data: float16, at most 1; float32 where exponents are carried, of which a rounding error would be magnified.
        scale: float32, of shape (first axis, 1, ..., 1): one number for each.
    """

    data: np.ndarray[Any, Any]
    scale: Array

    def unpack(self) -> Array:
        """The numbers."""
        return self.data.astype(np.float32) * self.scale

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        little = self.data.astype(self.data.dtype.newbyteorder("<"))
        return {
            "data": base64.b64encode(little.tobytes()).decode("ascii"),
            "type": self.data.dtype.name,
            "shape": list(self.data.shape),
            "scale": [float(scale) for scale in self.scale.reshape(-1)],
        }


def pack(array: Array, exact: bool = False) -> Packed:
    """Round an array to float16; each slice of its first axis is scaled to 1 before, so that small numbers survive."""
    if exact:
        return Packed(array.astype(np.float32), np.ones((array.shape[0],) + (1,) * (array.ndim - 1), np.float32))
    axes = tuple(range(1, array.ndim))
    largest = np.abs(array).max(axis=axes, keepdims=True, initial=0.0)
    scale = np.where(largest > 0, largest, 1.0).astype(np.float32)
    return Packed((array / scale).astype(np.float16), scale)


def round_trip(array: Array, exact: bool = False) -> Array:
    """The numbers that are left of an array once it was packed."""
    return pack(array, exact).unpack()


def packed_arrays(terms: LayerTerms) -> dict[str, Packed]:
    """All arrays of a layer that its page needs, V's norms among them."""
    exponents: Sequence[str] = ("key", "logsumexp") if terms.logsumexp is not None else ()
    arrays = {**terms.arrays(), "value_norms": terms.value_norms}
    return {name: pack(array, name in exponents) for name, array in arrays.items()}


def rounded(terms: LayerTerms) -> LayerTerms:
    """A layer with the numbers that its page carries; values, of which the page has the norms only, in float16 too."""
    arrays: dict[str, Any] = {
        name: packed.unpack() for name, packed in packed_arrays(terms).items() if name != "value_norms"
    }
    return replace(terms, value=round_trip(terms.value), **arrays)
