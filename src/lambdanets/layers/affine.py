"""When a batch-norm behind a convolution may become part of its weights for one call."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["is_plain", "scale_and_shift"]

_PLAIN = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
)


def is_plain(module: nn.Module) -> bool:
    """Whether a module is PyTorch's own convolution or batch-norm, and nobody waits for its being called."""
    watched = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
    return type(module) in _PLAIN and not watched


def scale_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor] | None:
    """What a batch-norm in evaluation does to each channel; None for any other norm, and while one is trained."""
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or norm.training or not is_plain(norm):
        return None
    if norm.running_mean is None or norm.running_var is None:
        return None
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.affine:
        scale = norm.weight * scale
        return scale, torch.addcmul(norm.bias, norm.running_mean, scale, value=-1)
    return scale, -norm.running_mean * scale
