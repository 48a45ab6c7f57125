"""Pictures to train on, in class folders."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_colours(folder: Path, images: int, seed: int = 0) -> None:
    """A folder for each colour with noisy pictures of it, of 12 x 10 pixels."""
    random = np.random.default_rng(seed)
    for channel, name in ((2, "blue"), (1, "green"), (0, "red")):
        (folder / name).mkdir(parents=True)
        for index in range(images):
            pixels = random.integers(0, 120, (10, 12, 3))
            pixels[..., channel] += 100
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{index:03d}.png")
