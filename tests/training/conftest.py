from pathlib import Path

import pytest

from lambdanets.training import Augmentation, Recipe, train
from lambdanets.training.engine.loop import Trainer
from training.pictures import write_colours

CLASSES = ("blue", "green", "red")


@pytest.fixture(scope="session")
def colours(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "colours"
    write_colours(folder, 20)
    return folder


@pytest.fixture(scope="session")
def recipe(colours) -> Recipe:
    """Seconds of training, but with all parts: augmentation, warm-up, moving average, drop path."""
    return Recipe(
        name="test",
        model="lambda_resnet_tiny",
        data=str(colours),
        image_size=8,
        epochs=3,
        batch_size=16,
        lr=5e-3,
        ema_decay=0.8,
        drop_path_rate=0.1,
        augmentation=Augmentation(crop="padded", padding=1, horizontal_flip=0.5, rotation=5, random_erasing=0.1),
    )


@pytest.fixture(autouse=True)
def _without_curves():
    """Drawing them takes as long as the rest of such a training; ``trained`` has them, and the tests of the command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_draw", lambda trainer: None)
        yield


@pytest.fixture(scope="session")
def trained(recipe, tmp_path_factory):
    """A finished training of ``recipe``; tests must not write into its folder."""
    return train(recipe, output=tmp_path_factory.mktemp("runs") / "finished")
