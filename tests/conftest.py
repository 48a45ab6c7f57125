"""What all tests share."""

import os
import signal

# One thread for each worker of pytest-xdist, and for what tests start: threads that wait for each other's cores cost
# far more than they gain on tensors as small as those of the tests.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Inductor compiles a program for each instruction set to see if it runs, which takes longer than what it then compiles.
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "0")

import pytest
import torch

from lambdanets.kernels.grid import costs

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def pytest_collection_modifyitems(items):
    """Tests that take minutes come first: at the end the other processes would wait for them."""
    items.sort(key=lambda item: "test_forking" not in item.nodeid)


@pytest.fixture(scope="session", autouse=True)
def signals_as_in_a_terminal():
    """A process that a shell starts in the background ignores SIGINT, and with it the commands under test."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _no_calibration_but_the_packages(tmp_path_factory):
    """Tests neither depend on this user's calibration nor write one."""
    path = tmp_path_factory.mktemp("cache") / "costs.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(costs, "cache_file", lambda: path)
        yield
