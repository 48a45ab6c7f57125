"""What the tests of the commands share."""

import sys

import numpy as np
import pytest
from PIL import Image

from lambdanets_cli import app as cli


@pytest.fixture(scope="package")
def colours(tmp_path_factory):
    """Pictures of two colours, a folder each."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    for channel, name in ((0, "red"), (2, "blue")):
        (folder / name).mkdir()
        for index in range(20):
            pixels = random.integers(0, 120, (8, 8, 3))
            pixels[..., channel] += 100
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{index}.png")
    return folder


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command in this process; gives exit code, output and error output."""

    def run_command(*words):
        monkeypatch.setattr(sys, "argv", ["lambdanets", *map(str, words)])
        monkeypatch.setenv("COLUMNS", "120")
        monkeypatch.delenv("LAMBDANETS_DEBUG", raising=False)
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        return end.value.code or 0, captured.out, captured.err

    return run_command
