"""Weights, gradients and optimizer state spread over the processes (FSDP2), and whole states of spread and plain models.

accelerate has FSDP2 for GPUs only, so PyTorch's own ``fully_shard`` is called, on every device in one way. A whole state
has plain tensors on the CPU under the model's own names, whatever the model is spread over: one process can read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
_FROM_WHOLE = StateDictOptions(full_state_dict=True)


def shard(model: nn.Module, device: torch.device, processes: int) -> nn.Module:
    """Spread a model's weights over all processes, in place: each block of a sequence by itself, then what is left.

    Args:
        model: with the same weights in all processes.
        device: of the weights.
        processes: how many there are.
    """
    mesh = init_device_mesh(device.type, (processes,))
    for sequence in [module for module in model.modules() if isinstance(module, (nn.Sequential, nn.ModuleList))]:
        for block in sequence:
            is_block = len(list(block.children())) > 1 and any(True for _ in block.parameters())
            if is_block and not isinstance(block, FSDPModule):
                fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def is_sharded(model: nn.Module) -> bool:
    """True if a model was spread by ``shard``."""
    return isinstance(model, FSDPModule)


def whole_state(model: nn.Module) -> dict[str, Any]:
    """The state of a model with whole tensors; of a spread one, all processes must ask, and the main one gets it."""
    if not is_sharded(model):
        return dict(model.state_dict())
    return get_model_state_dict(model, options=_WHOLE)


def put_state(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Set a model to a whole state, which all processes give."""
    if is_sharded(model):
        set_model_state_dict(model, dict(state), options=_FROM_WHOLE)
    else:
        model.load_state_dict(state)


def whole_optimizer_state(model: nn.Module, optimizer: Any) -> dict[str, Any]:
    """The state of an optimizer with whole tensors; as of ``whole_state``."""
    if not is_sharded(model):
        return optimizer.state_dict()
    return get_optimizer_state_dict(model, optimizer.optimizer, options=_WHOLE)


def put_optimizer_state(model: nn.Module, optimizer: Any, state: dict[str, Any]) -> None:
    """Set an optimizer to a whole state, which all processes give."""
    if is_sharded(model):
        set_optimizer_state_dict(model, optimizer.optimizer, state, options=_FROM_WHOLE)
        return
    optimizer.load_state_dict(state)
    # Stored without gaps, a state may lie in another order than its weights, and sums over it would differ.
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                values[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
