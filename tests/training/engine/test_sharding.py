"""Weights that are shared out to processes, here to a group of one; two are in ``forking_losses.py``."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import timm
import torch

from lambdanets.training import Recipe
from lambdanets.training.engine.metrics import measure
from lambdanets.training.engine.optimisation import make_optimizer
from lambdanets.training.engine.sharding import _blocks, check_sharding, load_optimizer, load_state, shard, unsharded


@pytest.fixture(scope="module")
def accelerator():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield SimpleNamespace(
        num_processes=1, device=torch.device("cpu"), autocast=nullcontext, gather_for_metrics=lambda values: values
    )
    torch.distributed.destroy_process_group()


def make(**fields):
    return Recipe(**{"name": "r", "model": "m", "data": "digits", "shard": True, **fields})


def names_of_blocks(model):
    names = {module: name for name, module in model.named_modules()}
    return [names[block] for block in _blocks(model)]


def test_blocks_are_what_stands_in_a_row():
    assert names_of_blocks(timm.create_model("lambda_resnet_tiny")) == ["layer1.0", "layer2.0", "layer3.0", "layer4.0"]
    transformer = timm.create_model("vit_tiny_patch16_224", depth=2)
    assert names_of_blocks(transformer) == ["blocks.0", "blocks.1"]
    # A weight that two blocks share belongs to neither.
    transformer.blocks[1].mlp = transformer.blocks[0].mlp
    assert names_of_blocks(transformer) == []


def test_whole_states_go_into_sharded_models_and_back(accelerator):
    torch.manual_seed(0)
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)  # in which the order of sums does not show
    model, sharded = (timm.create_model("lambda_resnet_tiny", num_classes=3).double() for _ in range(2))
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    shard(sharded, accelerator)
    assert all(hasattr(weight, "full_tensor") for weight in sharded.parameters())
    load_state(sharded, weights)
    gathered = unsharded(sharded.state_dict(), keep=True)
    assert gathered.keys() == weights.keys()
    assert all(type(tensor) is torch.Tensor and torch.equal(tensor, weights[name]) for name, tensor in gathered.items())
    optimizers = [make_optimizer(one, make()) for one in (model, sharded)]
    # A resumed training may validate before it trains.
    one, other = (measure(accelerator, it, [(images, torch.tensor([0, 1]))], 3).loss for it in (model, sharded))
    assert other == pytest.approx(one)
    for one, optimizer in zip((model, sharded), optimizers, strict=True):
        one(images).square().mean().backward()
        optimizer.step()
    state, other = (unsharded(optimizer.state_dict(), keep=True) for optimizer in optimizers)
    torch.testing.assert_close(other, state)
    load_optimizer(optimizers[1], state)
    torch.testing.assert_close(unsharded(optimizers[1].state_dict(), keep=True), state, rtol=0, atol=0)
    dropped = unsharded(sharded.state_dict(), keep=False)
    assert [name for name, tensor in dropped.items() if tensor is None] == [
        name for name, _ in sharded.named_parameters()
    ]


@pytest.mark.parametrize(
    ("fields", "processes", "message"),
    [
        ({}, 1, "shard is True; there is one process, .*torchrun --nproc-per-node N"),
        ({"precision": "fp16"}, 2, "precision is 'fp16'; it does not go with shard; use bf16 or fp32"),
        ({"channels_last": True}, 2, "channels_last is True; it does not go with shard"),
        ({"compile": True}, 2, "compile is True; it does not go with shard"),
        ({"clip_grad": 0.1, "clip_mode": "agc"}, 2, "clip_mode is 'agc'; it does not go with shard; use norm"),
    ],
)
def test_what_does_not_go_with_it(fields, processes, message):
    check_sharding(SimpleNamespace(num_processes=processes), make(**fields, shard=False))
    with pytest.raises(ValueError, match=message):
        check_sharding(SimpleNamespace(num_processes=processes), make(**fields))


class Local(torch.optim.SGD):
    """Steps by the part of the gradient that a process has."""

    def step(self, closure=None):
        for weight in self.param_groups[0]["params"]:
            if hasattr(weight, "full_tensor"):
                weight.grad.mul_(2)
        return super().step(closure)


def test_optimizers_are_tried(accelerator, monkeypatch):
    two = SimpleNamespace(num_processes=2, device=accelerator.device)
    monkeypatch.setattr("torch.distributed.device_mesh.init_device_mesh", lambda kind, shape: MESH(kind, (1,)))
    check_sharding(two, make(optimizer="adamw"))
    with pytest.raises(ValueError, match=r"optimizer is 'mars'; it does not work with shard \("):
        check_sharding(two, make(optimizer="mars"))
    monkeypatch.setattr(
        "lambdanets.training.engine.sharding.make_optimizer", lambda model, recipe: Local(model.parameters(), lr=1.0)
    )
    with pytest.raises(ValueError, match="it finds other weights with shard than without"):
        check_sharding(two, make())


MESH = torch.distributed.device_mesh.init_device_mesh
