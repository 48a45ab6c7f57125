"""The order of an epoch and an image's random changes are functions of the seed and the place."""

import dataclasses
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lambdanets.training.data import load_data
from lambdanets.training.data.readers import StreamImages
from lambdanets.training.engine import loaders
from lambdanets.training.engine.devices import make_accelerator
from lambdanets.training.engine.loaders import (
    EpochOrder,
    SeededImages,
    SeededStream,
    TrainingBatches,
    input_transform,
    shuffled_in_window,
)


def indices(order, epoch, first=0):
    order.epoch = epoch
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


def test_shards_are_read_a_few_at_a_time(monkeypatch):
    """Each image once, those of a shard near each other, and another order in each epoch."""
    monkeypatch.setattr(loaders, "_MIXED", 8)
    order = EpochOrder(40, seed=0, groups=[5] * 8)
    epochs = [[index for _, index in indices(order, epoch)] for epoch in (0, 1, 0)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(40))
    assert epochs[0] != epochs[1]
    assert epochs[0] == epochs[2]
    for first in range(0, 40, 10):
        assert len({index // 5 for index in epochs[0][first : first + 10]}) == 2
    assert epochs[0][:5] != sorted(epochs[0][:5])
    assert [index for _, index in indices(order, 1, first=15)] == epochs[1][15:]


class NoiseStream(StreamImages):
    """Images that are numbers, changed by all generators."""

    transform = staticmethod(lambda image: (image, *Noise()[image][1:]))

    def __init__(self, announced=4):
        self.announced = announced

    def __len__(self):
        return self.announced

    def __iter__(self):
        raise AssertionError("an order is drawn from the stored images")

    def stored(self):
        return ((index, index) for index in range(4))


def test_order_and_changes_of_a_stream_are_a_function_of_seed_epoch_and_position():
    stream = SeededStream(NoiseStream(), seed=0)
    stream.epoch = 2
    one = list(stream)
    torch.manual_seed(9)
    assert list(stream) == one
    assert sorted(label for _, label in one) == [0, 1, 2, 3]
    assert len({image[3] for image, _ in one}) == 4
    stream.first = 2
    assert list(stream) == one[2:]
    stream.first = 0
    orders = set()
    for epoch in range(5):
        stream.epoch = epoch
        orders.add(tuple(label for _, label in stream))
    assert len(orders) > 1


def test_a_window_mixes_and_keeps_each_item():
    found = list(shuffled_in_window(range(100), random.Random(0), 10))
    assert sorted(found) == list(range(100))
    assert found != sorted(found)
    assert found[0] <= 10
    assert list(shuffled_in_window([], random.Random(0))) == []


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


class PictureStream(NoiseStream):
    def stored(self):
        return ((index, index) for index in range(48))

    @staticmethod
    def transform(image):
        return torch.rand(2) + image


@pytest.fixture
def stream(recipe):
    def make(announced=48, workers=0):
        data = dataclasses.replace(load_data("digits"), train=PictureStream(announced))
        chosen = recipe.override(batch_size=16, workers=workers)
        transform = SimpleNamespace(build_training=lambda augmentation: PictureStream.transform)
        return TrainingBatches(make_accelerator(chosen), data, chosen, transform, 60.0)

    return make


def test_a_stream_does_not_depend_on_workers_and_is_skipped_to_where_it_was(stream):
    loader = stream()
    before = torch.get_rng_state()
    whole = list(loader.of_epoch(1))
    assert sorted(torch.cat([labels for _, labels in whole]).tolist()) == list(range(48))
    assert equal(list(loader.of_epoch(1, first=1)), whole[1:])
    assert equal(list(stream(workers=2).of_epoch(1, first=1)), whole[1:])
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("announced", "message"), [(64, "4 batches, and gives 3 batches"), (32, "and gives more")])
def test_a_stream_that_announces_another_number(stream, announced, message):
    with pytest.raises(ValueError, match=message):
        list(stream(announced).of_epoch(0))


@pytest.mark.parametrize("busy", [False, True])
def test_waiting_counts_where_the_device_has_nothing_to_do(batches, monkeypatch, busy):
    mark = SimpleNamespace(query=lambda: not busy)
    monkeypatch.setattr(loaders, "_marked", lambda device: mark if busy else None)
    now = [0.0]
    monkeypatch.setattr(loaders, "time", SimpleNamespace(monotonic=lambda: now[0]))
    original = SeededImages.__getitems__

    def slow(self, indices):
        now[0] += 2
        return original(self, indices)

    monkeypatch.setattr(SeededImages, "__getitems__", slow)
    loader = batches(0)
    for _ in loader.of_epoch(0):
        now[0] += 5  # the step
    assert len(loader) == 3
    assert loader.waited == (0 if busy else 6)


@pytest.mark.parametrize("error", [EOFError(), ConnectionResetError(104, "reset"), FileNotFoundError(2, "no socket")])
def test_a_worker_that_ends_while_it_hands_over_a_batch_is_told(error):
    def batches():
        yield "first"
        raise error

    class Loader(SimpleNamespace):
        def __iter__(self):
            return batches()

    found = loaders.answered(Loader(num_workers=1))
    assert next(found) == "first"
    with pytest.raises(RuntimeError, match=f"DataLoader: a worker ended .*{type(error).__name__}"):
        next(found)
    # Without workers the error is of the images.
    with pytest.raises(type(error)):
        list(loaders.answered(Loader(num_workers=0)))


def test_an_error_of_an_image_in_a_worker_keeps_its_kind():
    class Missing(torch.utils.data.Dataset):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            raise FileNotFoundError("cat.png is gone")

    with pytest.raises(FileNotFoundError, match=r"cat\.png is gone"):
        list(loaders.answered(torch.utils.data.DataLoader(Missing(), num_workers=1)))
