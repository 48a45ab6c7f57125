"""Names of users, however odd, through the commands: printed as they are, in every encoding, and never an error."""

import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

CLASSES = ["[bold]x", "y[b]", "$x$", "_x", "犬", "é", "a\nb", "\x1b[31mred"]
# All commands in one process: what takes long is to import PyTorch.
DRIVER = """
import json, sys
from lambdanets_cli.app import main
for words in json.loads(sys.argv[1]):
    sys.argv = ["lambdanets", *words]
    try:
        main()
    except SystemExit as end:
        if end.code:
            sys.exit(f"{words}: {end.code}")
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for name in CLASSES:
        (folder / name).mkdir()
        for i in range(6):
            Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / name / f"{i}.png")
    return folder


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_every_name_goes_through_every_command(images, tmp_path, encoding):
    run = "runs[/b]/run[lr=1e-3]"
    photo = str(images / CLASSES[0] / "0.png")
    size = ["--image-size", "32", "--epochs", "1", "--batch-size", "8", "--workers", "0"]
    commands = [
        ["train", "--data", f"imagefolder:{images}", "--output", run, *size],
        ["evaluate", run],
        ["predict", run, photo, "--top", str(len(CLASSES))],
        ["predict", run, photo, "--top", str(len(CLASSES)), "--json"],
        ["export", run, "--format", "torch-export"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(commands)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
        capture_output=True,
        timeout=900,
        check=False,
    )
    shown = done.stdout.decode(encoding)
    assert done.returncode == 0, done.stderr.decode(encoding, "replace")
    assert not done.stderr, done.stderr.decode(encoding, "replace")
    assert f"Wrote {run}" in shown
    for name in ("[bold]x", "y[b]", "$x$", "_x", "犬", "é", "\\x1b[31mred"):
        assert name.encode(encoding, "backslashreplace").decode(encoding) in shown
    assert "\x1b" not in shown
    report = shown[shown.index("[\n  {") : shown.index("\n]") + 2]
    assert {guess["class"] for guess in json.loads(report)[0]["classes"]} == set(CLASSES)
    config = json.loads((tmp_path / run / "config.json").read_text(encoding="utf-8"))
    assert sorted(config["class_names"]) == sorted(CLASSES)
    with open(tmp_path / run / "confusion.csv", encoding="utf-8", newline="") as file:
        assert len(list(csv.reader(file))) > len(CLASSES)
