"""What all tests share."""

import os

# One thread for each worker of pytest-xdist, and for what tests start: threads that wait for each other's cores cost
# far more than they gain on tensors as small as those of the tests.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
