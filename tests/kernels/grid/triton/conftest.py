"""Triton's kernels on a machine without a GPU: by its interpreter, which is chosen when a kernel is made."""

import importlib
import importlib.util
import os

import pytest
import torch

HAS_TRITON = importlib.util.find_spec("triton") is not None


def pytest_collection_modifyitems(items):
    """Skip what needs Triton where it is missing."""
    if not HAS_TRITON:
        skip = pytest.mark.skip(reason="triton is not installed")
        for item in items:
            if item.get_closest_marker("needs_triton"):
                item.add_marker(skip)


def _make_kernels_for_the_interpreter():
    """Import them once with the interpreter chosen; nothing else in this process is to be interpreted."""
    importlib.import_module("triton.language")
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        importlib.import_module("lambdanets.kernels.grid.triton.query_kernels")
        importlib.import_module("lambdanets.kernels.grid.triton.lambda_kernels")
    finally:
        os.environ.pop("TRITON_INTERPRET")
        if before is not None:
            os.environ["TRITON_INTERPRET"] = before


@pytest.fixture(autouse=True, scope="module")
def _functions_called_by_kernels_are_plain():
    """Leave out what the interpreter does again for each function that a kernel calls.

    It replaces all of triton.language, which takes ten times as long as the function; the kernel's own call has done
    so already.
    """
    if not HAS_TRITON:
        yield
        return
    from triton.runtime.interpreter import InterpretedFunction

    with pytest.MonkeyPatch.context() as patch:
        call = lambda self, *args, **kwargs: self.rewrite()(*args, **kwargs)  # noqa: E731
        patch.setattr(InterpretedFunction, "__call__", call)
        yield


if HAS_TRITON and not torch.cuda.is_available():
    _make_kernels_for_the_interpreter()


@pytest.fixture
def device(monkeypatch):
    """Where the kernels run: a GPU if there is one; else the planner is told that the CPU will do."""
    if torch.cuda.is_available():
        return "cuda"
    from lambdanets.kernels.grid.triton import launch

    monkeypatch.setattr(launch, "unavailable", lambda device: None)
    return "cpu"
