"""The check of a page: the weights that it shows, applied to the values, give what the layer gave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lambdanets.explanation.packing import rounded
from lambdanets.explanation.terms import LayerTerms

__all__ = ["TOLERANCE", "Check", "ExplanationDifferenceError", "check", "require"]

# What float16 leaves: its numbers are 5e-4 apart, relative to their size.
TOLERANCE = 1e-2
QUERIES = 1024


@dataclass(frozen=True)
class Check:
    """Agreement of the weights of one layer with its output, and the share of each term in it.

    Args:
        layer: its name.
        error: ‖Σ_m S_nm V_m − the layer's output‖ / ‖output‖, from numbers rounded as the page carries them.
        queries: number of queries that it is over; at most 1,024, evenly spaced.
        content: share of the content term in the output, ⟨content, output⟩ / ‖output‖²; with ``position`` it adds up to
            1. Negative where the term opposes the output.
        position: share of the position term, with the bias of its entries where there is one.
    """

    layer: str
    error: float
    queries: int
    content: float
    position: float


class ExplanationDifferenceError(ValueError):
    """The weights do not give the layer's output, so that they would explain something else.

    Args:
        message: what to say.
        checks: those of all layers.
    """

    def __init__(self, message: str, checks: Mapping[str, Check]):
        super().__init__(message)
        self.checks = dict(checks)


def check(terms: LayerTerms) -> Check:
    """Compare Σ S V of a layer with its output."""
    n = terms.num_queries
    queries = np.unique(np.linspace(0, n - 1, min(n, QUERIES)).astype(np.int64))
    difference = squared = 0.0
    products = np.zeros(2)
    for query, (content, position, bias) in zip(queries, rounded(terms).outputs(queries), strict=True):
        output = terms.output[:, query].astype(np.float64)
        difference += float(np.square(content + position + bias - output).sum())
        squared += float(np.square(output).sum())
        products += ((content * output).sum(), ((position + bias) * output).sum())
    error = float(np.sqrt(difference / squared)) if squared else float(np.sqrt(difference))
    total = products.sum()
    content_share, position_share = products / total if total else (0.0, 0.0)
    return Check(terms.name, error, len(queries), float(content_share), float(position_share))


def require(checks: Mapping[str, Check]) -> None:
    """Raise an :class:`ExplanationDifferenceError` that names the layers whose error is above the tolerance."""
    # Not `>`: an error that is not a number is one too.
    failed = [made for made in checks.values() if not made.error <= TOLERANCE]
    if failed:
        named = ", ".join(f"{made.layer} {made.error:.1e}" for made in failed)
        raise ExplanationDifferenceError(
            f"the weights of {len(failed)} of {len(checks)} layers do not add up to the layer's output within "
            f"{TOLERANCE:g} in float16: {named}; explain the others with layers=[...], and report the layer as a fault "
            "unless its two terms cancel each other or its input has numbers that are not finite",
            checks,
        )
