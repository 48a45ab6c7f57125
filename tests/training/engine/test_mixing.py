"""Mixup and cutmix, drawn as a function of the place."""

import pytest
import torch

from lambdanets.training import Augmentation, Recipe
from lambdanets.training.engine.mixing import BatchMixer, check_mixing


def make(**fields):
    return Recipe(name="r", model="m", data="digits", augmentation=Augmentation(**fields))


def mix(recipe, epoch=0, batch=0, process=0):
    inputs = torch.arange(6 * 16, dtype=torch.float32).reshape(6, 1, 4, 4)
    images, targets = BatchMixer(recipe, 4, process)(inputs.clone(), torch.tensor([0, 1, 2, 3, 0, 1]), epoch, batch)
    return inputs, images, targets


@pytest.mark.parametrize("choice", ["mixup", "cutmix"])
def test_images_and_labels_are_mixed_alike(choice):
    recipe = make(**{choice: 1.0})
    inputs, images, targets = mix(recipe)
    torch.testing.assert_close(targets.sum(1), torch.ones(6))
    # The share of its own label, label smoothing (0.1 over 4 classes) taken away.
    share = float((targets[0, 0] - 0.025) / 0.9)
    assert 0 < share < 1
    flipped = inputs.flip(0)
    if choice == "mixup":
        torch.testing.assert_close(images, share * inputs + (1 - share) * flipped)
    else:
        assert bool(((images == inputs) | (images == flipped)).all())
        assert float((images == inputs).float().mean()) == pytest.approx(share)


def test_what_is_drawn_is_a_function_of_the_place():
    recipe = make(mixup=0.5, cutmix=0.5)
    state = torch.get_rng_state()
    first = mix(recipe, 1, 2)[1]
    assert torch.equal(first, mix(recipe, 1, 2)[1])
    assert torch.equal(state, torch.get_rng_state())
    others = [mix(recipe, 2, 1), mix(recipe, 1, 3), mix(recipe, 1, 2, process=1), mix(recipe.override(seed=1), 1, 2)]
    assert all(not torch.equal(first, other[1]) for other in others)


def test_some_batches_are_left_as_they_are():
    recipe = make(mixup=1.0, mix_probability=0.5)
    same = [torch.equal(*mix(recipe, 0, batch)[:2]) for batch in range(40)]
    assert 10 < sum(same) < 30
    assert not make(mix_probability=1.0).augmentation.mixes
    assert not make(mixup=1.0, mix_probability=0.0).augmentation.mixes


def test_odd_batches_are_refused():
    check_mixing(make(), 3)
    check_mixing(make(cutmix=1.0), 4)
    with pytest.raises(ValueError, match="batch_size is 64; mixup and cutmix mix pairs, and a process gets 3 images"):
        check_mixing(make(cutmix=1.0), 3)
