"""Two processes train as one does."""

import dataclasses
import json
import signal
from itertools import chain
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from helpers import load_script
from lambdanets.training import Run
from lambdanets.training.data import load_data
from lambdanets.training.data.readers import StreamImages
from lambdanets.training.engine.checkpoint import find_checkpoint
from lambdanets.training.engine.devices import make_accelerator
from lambdanets.training.engine.loaders import TrainingBatches, input_transform
from lambdanets.training.engine.loop import Trainer
from lambdanets.training.engine.mixing import BatchMixer
from lambdanets.training.engine.optimisation import freeze_stages
from lambdanets.training.runs.model import build_model


@pytest.fixture(scope="module")
def harness():
    return load_script("kill_harness")


class Wide(nn.Module):
    """A model in float64 on inputs in float32."""

    def __init__(self, model):
        super().__init__()
        self.model = model.double()

    def forward(self, x):
        return self.model(x.double())


def synchronised_batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps):
    """Batch-norm over the images of all processes; PyTorch's own is for GPUs only."""
    if not training:
        return original_batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
    axes = [0, *range(2, x.ndim)]
    shape = [1, -1, *[1] * (x.ndim - 2)]
    count = x.numel() / x.shape[1]
    sums = torch.cat([x.sum(axes), x.square().sum(axes), x.new_tensor([count])])
    if torch.distributed.is_initialized():
        sums = torch.distributed.nn.functional.all_reduce(sums)
    mean, square = (sums[:-1] / sums[-1]).chunk(2)
    normal = (x - mean.view(shape)) / (square - mean.square() + eps).sqrt().view(shape)
    return normal * weight.view(shape) + bias.view(shape)


def kept_batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps):
    """Batch-norm by its first statistics: the parts of a batch and of a process hold other images together."""
    return original_batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)


original_batch_norm = nn.functional.batch_norm


def mixed_by_process(recipe, classes, processes):
    """Mixes a whole batch as so many processes mix their shares of it."""
    mixers = [BatchMixer(recipe, classes, process) for process in range(processes)]

    def mix(inputs, labels, epoch, batch):
        shares = zip(mixers, inputs.chunk(processes), labels.chunk(processes), strict=True)
        mixed = [mixer(images, targets, epoch, batch) for mixer, images, targets in shares]
        return tuple(torch.cat(values) for values in zip(*mixed, strict=True))

    return mix


def train_until(trainer, losses, steps):
    """Trains until so many losses were noted, each the mean over all processes."""
    trainer.model.train()
    while len(losses) < steps:
        for inputs, labels in trainer.batches.of_epoch(trainer.epoch, trainer.batch):
            found = trainer.accelerator.reduce(trainer._step(len(losses) + 1, inputs, labels)).tolist()
            losses.append(found[0] / found[2])
            trainer.batch += 1
            if len(losses) == steps:
                return
        trainer.epoch, trainer.batch = trainer.epoch + 1, 0


def write_losses(recipe, folder, steps, batch_norm):
    """Trains some steps and writes the losses, and the averaged weights at the end; half way it goes on if sharded."""
    import torch.distributed.nn.functional

    nn.functional.batch_norm = batch_norm
    accelerator = make_accelerator(recipe)
    if accelerator.num_processes == 1:
        recipe = recipe.override(accumulate=1, shard=False)
    data = load_data(recipe.data)
    transform = input_transform(data, recipe)
    if accelerator.is_main_process:
        Run.create(folder, recipe, data, transform)
    accelerator.wait_for_everyone()

    def make(seed):
        torch.manual_seed(seed)
        model = Wide(build_model(recipe.model, num_classes=len(data.class_names), in_chans=3))
        freeze_stages(model.model, recipe.frozen_stages)
        return Trainer(accelerator, Run.open(folder), data, model)

    trainer, losses = make(0), []
    assert all(hasattr(weight, "full_tensor") == recipe.shard for weight in trainer.model.parameters())
    if accelerator.num_processes == 1 and trainer.mixer is not None:
        trainer.mixer = mixed_by_process(recipe, len(data.class_names), 2)
    if recipe.shard:
        train_until(trainer, losses, steps // 2)
        trainer.save()
        trainer = make(1)
        trainer.resume(find_checkpoint(folder))
    train_until(trainer, losses, steps)
    trainer.save_weights("last")
    if accelerator.is_main_process:
        (folder / "losses.json").write_text(json.dumps(losses))


def test_losses_are_those_of_one_process(harness, colours, tmp_path):
    """With the same global batch, in float64: in whole batches, in mixed parts, and with sharded weights, resumed."""
    parts = harness.small_recipe(colours, 0, epochs=9).override(ema_decay=0.5, drop_rate=0.0, drop_path_rate=0.0)
    plain = parts.replace({"accumulate": 1, "mixup": 0.0, "cutmix": 0.0, "clip_grad": 0.5})
    trainings = {
        "plain": (plain, synchronised_batch_norm, 20),
        "in mixed parts": (parts, kept_batch_norm, 6),
        "sharded": (plain.override(shard=True), synchronised_batch_norm, 10),
        "sharded, in mixed parts": (parts.override(shard=True, frozen_stages=1), kept_batch_norm, 6),
    }

    def work(folder):
        for name, (recipe, batch_norm, steps) in trainings.items():
            write_losses(recipe, folder / name, steps, batch_norm)

    for processes in (1, 2):
        folder, log = tmp_path / str(processes), tmp_path / "log.txt"
        training = harness.Training(lambda folder=folder: work(folder), processes, log)
        try:
            training.wait()
        finally:
            training.send(signal.SIGKILL)
        assert not training.failed, log.read_text()
    for name in trainings:
        one, two = (json.loads((tmp_path / processes / name / "losses.json").read_text()) for processes in "12")
        assert one[0] != one[-1]
        assert two == pytest.approx(one, rel=0, abs=1e-5), name
        one, two = (load_file(tmp_path / processes / name / "last.safetensors") for processes in "12")
        parameters = [key for key in one if "running" not in key and "num_batches" not in key]
        for key in parameters:
            torch.testing.assert_close(two[key], one[key], rtol=0, atol=1e-5)


class Numbers(StreamImages):
    """A stream of 50 images, of which timm would give each process a share."""

    def __init__(self):
        pass

    def __len__(self):
        return 50

    def __iter__(self):
        return self.stored()

    def stored(self):
        return ((torch.full((1,), float(index)), index) for index in range(50))


def write_labels(recipe, folder):
    """Writes the labels that this process gets in two epochs of a stream, the second one from its second batch on."""
    accelerator = make_accelerator(recipe)
    data = dataclasses.replace(load_data("digits"), train=Numbers())
    batches = TrainingBatches(
        accelerator, data, recipe, SimpleNamespace(build_training=lambda augmentation: torch.Tensor.clone), 60.0
    )
    labels = [[batch[1].tolist() for batch in batches.of_epoch(epoch, first)] for epoch, first in ((0, 0), (1, 1))]
    (folder / f"{accelerator.process_index}.json").write_text(json.dumps(labels))
    accelerator.wait_for_everyone()


def test_a_stream_is_shared_out(harness, tmp_path):
    """Two processes together get the batches of one."""
    recipe = harness.small_recipe("digits", 2)
    found = []
    for processes in (1, 2):
        folder, log = tmp_path / str(processes), tmp_path / "log.txt"
        folder.mkdir()
        training = harness.Training(lambda folder=folder: write_labels(recipe, folder), processes, log)
        try:
            training.wait()
        finally:
            training.send(signal.SIGKILL)
        assert not training.failed, log.read_text()
        ranks = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(processes)]
        found.append(
            [[list(chain(*parts)) for parts in zip(*epoch, strict=True)] for epoch in zip(*ranks, strict=True)]
        )
    assert found[0] == found[1]
    assert [len(epoch) for epoch in found[0]] == [6, 5]
    assert len({label for batch in found[0][0] for label in batch}) == 48
