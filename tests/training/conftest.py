from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lambdanets.training import Augmentation, Recipe, train

CLASSES = ("blue", "green", "red")


def write_colours(folder: Path, images: int, seed: int = 0) -> None:
    """A folder for each colour with noisy pictures of it, of 12 x 10 pixels."""
    random = np.random.default_rng(seed)
    for channel, name in ((2, "blue"), (1, "green"), (0, "red")):
        (folder / name).mkdir(parents=True)
        for index in range(images):
            pixels = random.integers(0, 120, (10, 12, 3))
            pixels[..., channel] += 100
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{index:03d}.png")


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


@pytest.fixture(scope="session")
def trained(recipe, tmp_path_factory):
    """A finished training of ``recipe``; tests must not write into its folder."""
    return train(recipe, output=tmp_path_factory.mktemp("runs") / "finished")
