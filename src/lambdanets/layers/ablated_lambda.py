"""The lambda layer with one of its choices made otherwise, for ablations."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lambdanets.functional import lambda_apply
from lambdanets.layers.lambda_layer import LambdaLayer
from lambdanets.names import unknown_name
from lambdanets.positions import GridPositions

__all__ = ["NORMALISATIONS", "NORMS", "STARTS", "TERMS", "AblatedLambdaLayer"]

NORMALISATIONS = ("softmax", "softmax of queries too", "l2", "none")
TERMS = ("both", "content", "position")
NORMS = ("both", "queries", "values")
STARTS = ("default", "balanced", "unit positions", "convolution")


class AblatedLambdaLayer(LambdaLayer):
    """A :class:`lambdanets.LambdaLayer` for images whose normalisations, terms or start can be changed.

    Args:
        *args: as for :class:`lambdanets.LambdaLayer`.
        normalise: what becomes of the keys: "softmax" over the context positions (the paper's, the default); "softmax
            of queries too", over the channels of each query; "l2", divided by their norm over the context positions;
            "none".
        terms: "both" (the default), "content" or "position". Without the position term the table is frozen.
        norms: what passes the norm of ``norm_layer``: "both" queries and values (the default), or one of them.
        start: "default" as :meth:`lambdanets.LambdaLayer.reset_parameters`; "balanced", the same with queries scaled so
            that both terms together have variance 1 on the map of a global layer or the full square of a local one;
            "unit positions", position embeddings N(0, 1); "convolution", PyTorch's start of convolutions for the
            projection and for a local table, N(0, 1) for a global one, as in public implementations.
        **kwargs: as for :class:`lambdanets.LambdaLayer`.

    Raises:
        ValueError: for an unknown name, ``start="balanced"`` with a norm of the queries without a weight, or what
            :class:`lambdanets.LambdaLayer` refuses.
    """

    def __init__(
        self,
        *args: Any,
        normalise: str = "softmax",
        terms: str = "both",
        norms: str = "both",
        start: str = "default",
        **kwargs: Any,
    ) -> None:
        for name, given, known in (
            ("normalise", normalise, NORMALISATIONS),
            ("terms", terms, TERMS),
            ("norms", norms, NORMS),
            ("start", start, STARTS),
        ):
            if given not in known:
                raise unknown_name(name, given, known, f"{name} must be one of {', '.join(map(repr, known))}.")
        # Before the base class, whose reset_parameters reads them.
        self.normalise, self.terms, self.norms, self.start = normalise, terms, norms, start
        super().__init__(*args, **kwargs)
        if self.causal or self.ndim != 2:
            raise ValueError(
                f"an ablated layer must be for images and not causal, got ndim={self.ndim} and causal={self.causal}; "
                "use LambdaLayer"
            )
        if terms == "content" and self.position_bias is not None:
            raise ValueError(
                "position_bias=True adds to the position term, which terms='content' leaves out; leave one of them off"
            )
        if terms == "content" and self.kernel is not None:
            self._check_kernel(self.kernel, None, None, causal=False)
        self.positions.requires_grad_(terms != "content")
        if norms != "both":
            setattr(self, "norm_query" if norms == "values" else "norm_value", nn.Identity())
            self.reset_parameters()  # the projection of what has no norm starts otherwise

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise as ``start`` says."""
        super().reset_parameters()
        if self.start == "balanced":
            scale = (1 + self.dim_key * self.intra_depth * math.e / self.num_context) ** -0.5
            if isinstance(self.norm_query, nn.Identity):
                # Which starts with queries of variance 1/k.
                self.qkv.weight[: self.num_heads * self.dim_key] *= scale * self.dim_key**0.5
            elif (weight := getattr(self.norm_query, "weight", None)) is not None:
                nn.init.constant_(weight, scale)  # behind the norm, which undoes a smaller projection
            else:
                norm = type(self.norm_query).__name__
                raise ValueError(
                    f"start='balanced' scales the queries, which norm_layer's {norm} without a weight undoes; use a "
                    "norm with a weight, norm_layer='none' or another start"
                )
        elif self.start in ("unit positions", "convolution"):
            nn.init.normal_(self.positions)
        if self.start == "convolution":
            self.qkv.reset_parameters()
            if self.scope is not None:
                # As nn.Conv3d with one filter of scope² offsets and u input channels for each of k output channels.
                bound = (self.intra_depth * self.num_context) ** -0.5
                nn.init.uniform_(self.positions, -bound, bound)

    def extra_repr(self) -> str:
        """The arguments that the submodules do not show."""
        usual = {"normalise": "softmax", "terms": "both", "norms": "both", "start": "default"}
        changed = [f"{name}={getattr(self, name)!r}" for name in usual if getattr(self, name) != usual[name]]
        return ", ".join([super().extra_repr(), *changed])

    def project(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`lambdanets.LambdaLayer.project`, queries after their softmax where they have one.

        Args:
            x: (b, dim, *grid), for the queries.
            context: for keys and values, of the same shape; default ``x``.

        Returns:
            Queries (b, h, n, k), keys (b, u, m, k) before their normalisation, and values (b, u, m, v).
        """
        query, key, value = super().project(x, context)
        return query.softmax(dim=-1) if self.normalise == "softmax of queries too" else query, key, value

    def apply_lambdas(
        self, query: Tensor, key: Tensor, value: Tensor, positions: GridPositions, mask: Tensor | None
    ) -> Tensor:
        """As :meth:`lambdanets.LambdaLayer.apply_lambdas`, with the chosen normalisation and terms.

        Args:
            query: (b, h, n, k).
            key: (b, u, m, k).
            value: (b, u, m, v).
            positions: the layer's table on the grid of the input.
            mask: bool (b, m), True where the context position takes part; None for all.

        Returns:
            (b, h, n, v).

        Raises:
            ValueError: for a mask with keys that pass no softmax.
        """
        table = None if self.terms == "content" else positions
        if self.terms == "position":
            return lambda_apply(query, None, value, table, mask=mask, kernel=self.kernel)
        if self.normalise.startswith("softmax"):
            return lambda_apply(query, key, value, table, mask=mask, kernel=self.kernel)
        if mask is not None:
            raise ValueError(f"mask must be None with normalise={self.normalise!r}; use normalise='softmax'")
        if self.normalise == "l2":
            key = F.normalize(key, dim=2)
        content = query @ torch.einsum("bumk,bumv->bkv", key, value)[:, None]
        if table is None:
            return content
        return content + lambda_apply(query, None, value, table, kernel=self.kernel)
