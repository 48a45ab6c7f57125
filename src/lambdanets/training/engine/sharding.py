"""A training whose weights are shared out to its processes: PyTorch's FSDP2.

Each process keeps a part of each weight, of its gradient, its moving average and the optimizer's state for it, and the
whole of a block's weights only while it computes with them. What a run folder holds are whole weights and states.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from lambdanets.training.engine.optimisation import make_optimizer
from lambdanets.training.recipes.recipe import Recipe
from lambdanets.training.rules import refuse

_CONTAINERS = (nn.Sequential, nn.ModuleList)
_ODD = 131


def shard(model: nn.Module, accelerator: Accelerator) -> None:
    """Share out the weights of a model to the processes, block by block, in place.

    Args:
        model: on its device, the same in all processes; each block is called as a module.
        accelerator: the process's place among the others.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for block in [*_blocks(model), model]:
        fully_shard(block, mesh=mesh)


def _blocks(model: nn.Module) -> list[nn.Module]:
    """The parts of a model whose weights are gathered together; those that share weights with others are left out."""
    found = list(_members(model))
    uses = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    return [block for block in found if all(uses[weight] == own for weight, own in _uses(block).items())]


def _uses(module: nn.Module) -> Counter[int]:
    return Counter(id(weight) for _, weight in module.named_parameters(remove_duplicate=False))


def _members(module: nn.Module) -> Iterator[nn.Module]:
    """The modules with parts of their own that stand in a row, the outermost ones."""
    for child in module.children():
        is_member = isinstance(module, _CONTAINERS) and not isinstance(child, _CONTAINERS)
        if is_member and any(child.children()):
            yield child
        else:
            yield from _members(child)


def unsharded(tree: Any, *, keep: bool) -> Any:
    """Gather the sharded tensors of nested dictionaries and lists; all processes must call it.

    Args:
        tree: a state with or without such tensors.
        keep: True where the result is used; elsewhere None stands for each of them.
    """
    if isinstance(tree, Mapping):
        return {key: unsharded(value, keep=keep) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(unsharded(value, keep=keep) for value in tree)
    if not hasattr(tree, "full_tensor"):
        return tree
    gathered = tree.full_tensor()
    # One at a time on the device.
    return gathered.detach().cpu() if keep else None


def sharded_like(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This process's part of a whole tensor if ``like`` is sharded, else the tensor itself."""
    if not hasattr(like, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    sharded: Any = like
    # All processes have the whole tensor.
    return distribute_tensor(tensor.to(like.device), sharded.device_mesh, sharded.placements, src_data_rank=None)


def load_state(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Put whole weights into a model, sharded or not."""
    expected = model.state_dict()
    model.load_state_dict(
        {name: sharded_like(tensor, expected[name]) if name in expected else tensor for name, tensor in weights.items()}
    )


def load_optimizer(optimizer: Any, tree: Any) -> None:
    """Put a whole state into an optimizer, sharded or not."""
    optimizer.load_state_dict(tree)
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                # Stored without gaps, a state may lie in another order than its weights, and sums over it would differ.
                values[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(sharded_like(value, parameter))


def check_sharding(accelerator: Accelerator, recipe: Recipe) -> None:
    """Raise a ValueError if the recipe asks for sharded weights and something stands against it.

    The optimizer is tried on two layers: with and without sharding it must find the same weights, and go on from a
    whole state. All processes must call this.
    """
    if not recipe.shard:
        return
    if accelerator.num_processes == 1:
        raise refuse(
            True,
            "shard",
            "there is one process, which has no other one to share weights with; start more by "
            "`torchrun --nproc-per-node N -m lambdanets train ...`, or use False",
        )
    against = {
        "precision": (recipe.precision == "fp16", "use bf16 or fp32"),
        "channels_last": (recipe.channels_last, "use False"),
        "compile": (recipe.compile, "use False"),
        "clip_mode": (recipe.clip_grad is not None and recipe.clip_mode == "agc", "use norm"),
    }
    for name, (found, remedy) in against.items():
        if found:
            raise refuse(getattr(recipe, name), name, f"it does not go with shard; {remedy}")
    try:
        with torch.random.fork_rng(devices=[]):
            difference = _difference(accelerator, replace(recipe, layer_decay=None, lr=1.0, lr_batch_size=None))
    # Optimizers fail in their own ways, where their operations do not know of shards.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        remedy = f"it does not work with shard ({reason}); use another one"
        raise refuse(recipe.optimizer, "optimizer", remedy) from error
    if not difference < 1e-4:
        raise refuse(recipe.optimizer, "optimizer", "it finds other weights with shard than without; use another one")


def _difference(accelerator: Accelerator, recipe: Recipe) -> float:
    """The largest difference between the weights of two layers trained with and without sharding."""
    found = []
    for sharded in (False, True):
        torch.manual_seed(0)
        # So large that optimizers factor its state, and not divisible by any number of processes.
        layers = nn.Sequential(nn.Linear(_ODD, _ODD), nn.Conv2d(3, 5, 3)).to(accelerator.device)
        gradients = [torch.randn_like(weight) for weight in layers.parameters()]
        if sharded:
            shard(layers, accelerator)
        optimizer = make_optimizer(layers, recipe)
        for _ in range(2):
            for weight, gradient in zip(layers.parameters(), gradients, strict=True):
                weight.grad = sharded_like(gradient, weight)
            optimizer.step()
            state = unsharded(optimizer.state_dict(), keep=True)
            optimizer = make_optimizer(layers, recipe)
            load_optimizer(optimizer, state)
        found.append(unsharded(layers.state_dict(), keep=True))
    one, other = found
    return max(float((one[name].cpu() - other[name]).abs().max()) for name in one)
