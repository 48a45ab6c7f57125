"""The tests in ``forking_*.py``, each file in a process of its own.

They fork trainings, which PyTorch allows as long as no backward pass has run in the process, and no second thread has
computed: a fork has none of OpenMP's threads, and waits for them for ever.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FILES = sorted(Path(__file__).parent.glob("forking_*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_in_a_process_of_its_own(file):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(file)]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=1800, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
