"""A guard against wrong gradients of a single example.

PyTorch's batch-norms of images and volumes on CPUs take a batch of one for channels last where its channels are the
innermost axis, whatever the stride of the batch is, in one place, and look at that stride in another. Their gradient is
wrong then, without a word (2.11 to 2.14 at least). What comes back from a lambda layer may be such a gradient, so it is
made contiguous behind the norm.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lambdanets.functional import is_readable
from lambdanets.kernels.autograd.modes import is_transformed

__all__ = ["guarded"]


def guarded(norm: nn.Module, x: Tensor) -> Tensor:
    """``norm(x)``, whose gradient reaches a batch-norm contiguous.

    Not where a graph is traced by ``torch.jit.trace`` or ``torch.export``, which keep no backward pass of ours: train
    such a graph with more than one example.
    """
    out = norm(x)
    if not isinstance(norm, _BatchNorm) or out.ndim < 4 or torch.jit.is_tracing() or torch.compiler.is_exporting():
        return out
    if is_transformed():
        return _OfTransforms.apply(out)
    if not is_readable(out):
        return _ContiguousGradient.apply(out)
    if len(out) == 1 and out.requires_grad:
        out.register_hook(lambda grad: None if grad is None else grad.contiguous())
    return out


class _ContiguousGradient(torch.autograd.Function):
    """The identity. Graphs know it, and whoever watches operations."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad.contiguous()


class _OfTransforms(torch.autograd.Function):
    """The same with what transforms and forward mode ask for; ``torch.compile`` does not take it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        """Nothing to keep."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad.contiguous()

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:  # type: ignore[override]
        return tangent.view_as(tangent)
