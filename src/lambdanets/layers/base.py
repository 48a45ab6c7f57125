"""Base of the lambda layers: sizes, their checks, and the start of the projection."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lambdanets.kernels.grid.contract import GridProblem
from lambdanets.kernels.names import require_on_any, require_without_grid
from lambdanets.layers.arguments import check_heads, positive_int

__all__ = ["LambdaModule"]


class LambdaModule(nn.Module):
    """Base of the layers that project an input to queries, keys and values with one module ``qkv``.

    Args:
        dim: channels of the input.
        dim_out: channels of the output; None for ``dim``.
        num_heads: the paper's h.
        dim_key: the paper's k.
        intra_depth: the paper's u.

    Raises:
        ValueError: if one is not a positive int, or the heads do not divide ``dim_out``.
    """

    def __init__(self, dim: int, dim_out: int | None, num_heads: int, dim_key: int, intra_depth: int) -> None:
        super().__init__()
        self.dim = positive_int("dim", dim)
        self.dim_out = positive_int("dim_out", dim if dim_out is None else dim_out)
        self.num_heads, self.dim_key = positive_int("num_heads", num_heads), positive_int("dim_key", dim_key)
        self.intra_depth = positive_int("intra_depth", intra_depth)
        check_heads(self.num_heads, self.dim_out)
        self.dim_value = self.dim_out // self.num_heads

    def _widths(self) -> list[int]:
        """Channels of queries (h, k), keys (u, k) and values (u, v), in the projection's order."""
        return [
            self.num_heads * self.dim_key,
            self.intra_depth * self.dim_key,
            self.intra_depth * self.dim_value,
        ]

    def _check_kernel(
        self, kernel: str, scope: tuple[int, ...] | None, size: tuple[int, ...] | None, causal: bool
    ) -> None:
        """Refuse a kernel that runs on no input of this layer.

        Args:
            kernel: its name.
            scope: scope of a local context; None for a global one.
            size: sizes of the largest grid of a global one; both are None for a layer without positions.
            causal: as the layer's.
        """
        if not scope and not size:
            require_without_grid(kernel, "no positions")
            return
        extents = [*scope] if scope else [2 * s - 1 for s in size or ()]
        origin = [extent // 2 for extent in extents]
        if causal:
            extents[0] = origin[0] + 1
        # Some kernels are limited to small grids, some to contexts that do not reach all over the grid.
        large = [o + 2 for o in origin] if scope else size or ()
        sizes = (1, self.num_heads, self.dim_key, self.dim_value, self.intra_depth)
        grids = [min(2, s) for s in large], large
        require_on_any(kernel, [GridProblem.of(*sizes, grid, extents, origin) for grid in grids])

    @torch.no_grad()
    def _reset_projection(self, weight: Tensor, norms: Iterable[nn.Module]) -> None:
        """Initialise as in the paper: keys and values with std dim^-1/2, queries with std (k · dim)^-1/2.

        Args:
            weight: of the projection ``qkv``, queries first.
            norms: of queries and values; they start as they reset.
        """
        width = self._widths()[0]
        nn.init.normal_(weight[:width], std=(self.dim_key * self.dim) ** -0.5)
        nn.init.normal_(weight[width:], std=self.dim**-0.5)
        for norm in norms:
            reset = getattr(norm, "reset_parameters", None)
            if callable(reset):
                reset()
