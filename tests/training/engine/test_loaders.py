"""The order of an epoch and an image's random changes are functions of the seed and the place."""

import dataclasses
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import IterableDataset

from lambdanets.training.data import load_data
from lambdanets.training.engine.fit import make_accelerator
from lambdanets.training.engine.loaders import EpochOrder, SeededImages, SeededStream, TrainingBatches, input_transform


def indices(order, epoch, first=0):
    order.set_epoch(epoch)
    order.first = first
    return list(order)


def test_order_is_a_function_of_seed_and_epoch():
    order = EpochOrder(50, seed=3)
    epochs = [indices(order, epoch) for epoch in range(3)]
    assert all(sorted(index for _, index in epoch) == list(range(50)) for epoch in epochs)
    assert [[number for number, _ in epoch] for epoch in epochs] == [[number] * 50 for number in range(3)]
    orders = [[index for _, index in epoch] for epoch in epochs]
    assert orders[0] != orders[1] != orders[2]
    random.seed(5)
    torch.manual_seed(5)
    assert indices(EpochOrder(50, seed=3), 1) == epochs[1]
    assert indices(EpochOrder(50, seed=4), 1) != epochs[1]
    assert indices(order, 1, first=20) == epochs[1][20:]


class Noise:
    """Images that are drawn from all generators."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return index, random.random(), np.random.rand(), torch.rand(1).item()


def test_changes_are_a_function_of_seed_epoch_and_index():
    images = SeededImages(Noise(), seed=0)
    batch = images.__getitems__([(0, 3), (0, 4), (1, 3)])
    assert batch[0] == images[(0, 3)]
    assert images.__getitems__([(1, 3), (0, 4)]) == [batch[2], batch[1]]
    assert batch[0][1:] != batch[2][1:]
    assert SeededImages(Noise(), seed=1)[(0, 3)] != batch[0]
    state = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    images[(0, 3)]
    assert torch.equal(state[0], torch.get_rng_state())
    assert (state[1], state[2]) == (np.random.get_state()[1].tolist(), random.getstate())


class NoiseStream(IterableDataset):
    def __len__(self):
        return 10

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        return (Noise()[index] for index in range(4))


def test_changes_of_a_stream_are_a_function_of_seed_epoch_and_position():
    stream = SeededStream(NoiseStream(), seed=0)
    stream.set_epoch(2)
    one = list(stream)
    torch.manual_seed(9)
    assert list(stream) == one
    assert len({item[3] for item in one}) == 4
    stream.set_epoch(3)
    assert stream.images.epoch == 3
    assert [item[1] for item in stream] != [item[1] for item in one]


@pytest.fixture
def batches(recipe, colours):
    def make(workers, batch_size=16, **changes):
        data = load_data(str(colours))
        chosen = recipe.override(workers=workers, batch_size=batch_size, **changes)
        accelerator = make_accelerator(chosen)
        return TrainingBatches(accelerator, data, chosen, input_transform(data, chosen), 60.0)

    return make


def equal(one, other):
    return len(one) == len(other) and all(
        torch.equal(left, right) for pair in zip(one, other, strict=True) for left, right in zip(*pair, strict=True)
    )


def test_batches_do_not_depend_on_workers_and_can_begin_anywhere(batches):
    alone, helped = batches(0), batches(2)
    before = torch.get_rng_state()
    epochs = [list(alone.of_epoch(epoch)) for epoch in (0, 1)]
    assert all(equal(list(helped.of_epoch(epoch)), epochs[epoch]) for epoch in (1, 0))
    assert not equal(epochs[0], epochs[1])
    for loader in (alone, helped):
        assert equal(list(loader.of_epoch(1, first=2)), epochs[1][2:])
        assert list(loader.of_epoch(1, first=len(loader))) == []
    assert torch.equal(before, torch.get_rng_state())


def test_a_stream_is_skipped_to_where_it_was():
    class Stream(NoiseStream):
        def __len__(self):
            return 48

        def __iter__(self):
            return ((torch.rand(2), index) for index in range(48))

    data = dataclasses.replace(load_data("digits"), train=Stream())
    recipe = SimpleNamespace(batch_size=16, seed=0, workers=0, augmentation=None)
    transform = SimpleNamespace(build_training=lambda augmentation: None)
    accelerator = make_accelerator(SimpleNamespace(precision="fp32"))
    loader = TrainingBatches(accelerator, data, recipe, transform, 60.0)
    before = torch.get_rng_state()
    whole = list(loader.of_epoch(1))
    assert equal(list(loader.of_epoch(1, first=1)), whole[1:])
    assert torch.equal(before, torch.get_rng_state())
