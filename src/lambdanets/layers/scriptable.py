"""A lambda layer that ``torch.jit.script`` compiles, for timm's ``scriptable=True``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lambdanets.layers.lambda_layer import LambdaLayer

__all__ = ["ScriptableLambdaLayer"]


class ScriptableLambdaLayer(LambdaLayer):
    """A :class:`lambdanets.LambdaLayer` for images that ``torch.jit.script`` compiles.

    In Python it is the layer itself. A script has no planner and none of this package's ops: it convolves the values
    with the table of offsets, as the kernel "portable" does, and runs without this package once it is saved.

    Args:
        *args: as for :class:`lambdanets.LambdaLayer`.
        **kwargs: as for :class:`lambdanets.LambdaLayer`; for images, and not causal. A ``kernel`` has no meaning in the
            script.

    Raises:
        ValueError: if the layer is causal, or not for images.
    """

    __jit_unused_properties__ = ("num_context",)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.causal or self.ndim != 2:
            raise ValueError(
                f"a scriptable lambda layer must be for images and not causal, got ndim={self.ndim} and "
                f"causal={self.causal}; torch.export and torch.compile take every layer"
            )

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """As :class:`lambdanets.LambdaLayer`; a script takes neither ``context`` nor ``mask``."""
        if not torch.jit.is_scripting():
            return super().forward(x, context, mask)
        if context is not None or mask is not None:
            raise ValueError("context and mask must be None in a script")
        return self._scripted(x)

    def _scripted(self, x: Tensor) -> Tensor:
        """Both terms for images (b, dim, height, width), position lambdas first."""
        b, _, height, width = x.shape
        reach = [self.positions.shape[2] // 2, self.positions.shape[3] // 2]
        if self.scope is None and (height > reach[0] + 1 or width > reach[1] + 1):
            raise ValueError(
                f"x must have at most {reach[0] + 1}x{reach[1] + 1} positions, the size of this global layer, got "
                f"{height}x{width}; use a layer with a larger size, or with a scope"
            )
        n, h, k, u, v = height * width, self.num_heads, self.dim_key, self.intra_depth, self.dim_value
        query, key, value = self.qkv(x).split([h * k, u * k, u * v], dim=1)
        query = self.norm_query(query).reshape(b, h, k, n)
        keys = key.reshape(b, u, k, n).softmax(dim=3)
        value = self.norm_value(value).reshape(b, u, v, n)
        content = torch.einsum("bukm,buvm->bkv", keys, value)
        # The value depth is one more batch axis.
        images = value.transpose(1, 2).reshape(b * v, u, height, width)
        position = F.conv2d(images, self.positions.transpose(0, 1), padding=reach).reshape(b, v, k, n)
        out = torch.einsum("bhkn,bkv->bhvn", query, content) + torch.einsum("bhkn,bvkn->bhvn", query, position)
        bias = self.position_bias
        if bias is not None:
            out = out + torch.einsum("bhkn,k->bhn", query, bias)[:, :, None]
        return self.pool(out.reshape(b, self.dim_out, height, width))
