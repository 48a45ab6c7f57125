"""The kills of ``kills.py`` in a process of their own: they fork trainings, before which autograd may not have run."""

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent


def test_kills_in_a_process_of_their_own():
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        str(FOLDER / "kills.py"),
    ]
    done = subprocess.run(command, cwd=FOLDER.parents[1], capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
