"""Memory that kernels share from call to call: nothing that they return lies in it, and nothing old is read."""

import threading

import pytest
import torch

from lambdanets.kernels.autograd import memory
from lambdanets.kernels.autograd.memory import Workspace, release
from lambdanets.kernels.grid.contract import GridInputs
from lambdanets.kernels.grid.planner import GRID_KERNELS

KERNELS = [name for name, kernel in GRID_KERNELS.items() if kernel.device is None]
# (grid, extents, u): one tile and many, scope 1, a global context, a sequence, a volume, one row.
SHAPES = [
    ((5, 7), (3, 5), 2),
    ((4, 6), (1, 1), 1),
    ((5, 4), (9, 7), 1),
    ((4, 4), (7, 7), 2),
    ((23,), (5,), 1),
    ((3, 4, 2), (3, 3, 3), 1),
]


@pytest.fixture(autouse=True)
def nothing_kept():
    release()
    yield
    release()


def kept():
    return Workspace.for_thread().buffer


def poison():
    """What lies in the kept memory, as if other calls had been there."""
    if kept() is not None:
        kept().fill_(255)  # NaN in every dtype


def forward(kernel, inputs):
    with Workspace.for_thread() as workspace:
        return kernel.forward(inputs, workspace)


def backward(kernel, grad, inputs):
    with Workspace.for_thread() as workspace:
        return kernel.backward(grad, inputs, workspace)[:3]


def inputs_and_grad(grid, extents, u, seed=0):
    torch.manual_seed(seed)
    n = torch.Size(grid).numel()
    query, value, table, grad = (
        torch.randn(*shape, dtype=torch.float64)
        for shape in ((2, 3, n, 4), (2, u, n, 5), (u, 4, *extents), (2, 3, n, 5))
    )
    origin = [extent // 2 for extent in extents]
    return GridInputs.of(query, value, table, grid, origin), grad


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        (name, shape)
        for name in KERNELS
        for shape in SHAPES
        if GRID_KERNELS[name].check(inputs_and_grad(*shape)[0].problem) is None
    ],
)
def test_later_calls_give_the_same(name, shape):
    inputs, grad = inputs_and_grad(*shape)
    kernel = GRID_KERNELS[name]

    def run():
        return forward(kernel, inputs), *backward(kernel, grad, inputs)

    first = [result.clone() for result in run()]
    poison()
    second = run()
    poison()
    for expected, actual in zip(first, second, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_kernels_keep_what_they_need_up_to_the_limit(monkeypatch):
    inputs, _ = inputs_and_grad((5, 7), (3, 5), 1)
    kernel = GRID_KERNELS["banded"]
    expected = forward(kernel, inputs)
    needed = kept().numel()
    forward(kernel, inputs)
    assert kept().numel() == needed

    release()
    monkeypatch.setattr(memory, "LARGEST_BUFFER", needed // 2)
    for _ in range(3):
        torch.testing.assert_close(forward(kernel, inputs), expected, rtol=0, atol=0)
    assert kept().numel() == needed // 2


def test_threads_have_memory_of_their_own():
    inputs, _ = inputs_and_grad((9, 8), (5, 5), 1)
    other, _ = inputs_and_grad((9, 8), (5, 5), 1, seed=1)
    kernel = GRID_KERNELS["banded"]
    expected = [forward(kernel, each) for each in (inputs, other)]
    wrong = []

    def repeat(each, right):
        for _ in range(50):
            if not torch.equal(forward(kernel, each), right):
                wrong.append(each)

    threads = [threading.Thread(target=repeat, args=pair) for pair in zip((inputs, other), expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_memory_made_in_inference_mode_serves_training():
    inputs, grad = inputs_and_grad((5, 7), (3, 5), 1)
    kernel = GRID_KERNELS["query_first"]
    with torch.inference_mode():
        forward(kernel, inputs)
    for result in (forward(kernel, inputs), *backward(kernel, grad, inputs)):
        assert not result.is_inference()


def test_a_workspace_gives_the_same_memory_again():
    like, workspace = torch.empty(0, dtype=torch.float32), Workspace()
    with workspace:
        workspace.scratch(like, 100)
    with workspace:
        outer = workspace.scratch(like, 3, 5)
        with workspace:
            first = workspace.scratch(like, 20)
        second = workspace.scratch(like, 20)
    assert first.data_ptr() == second.data_ptr() != outer.data_ptr()
    assert outer.shape == (3, 5)
    assert outer.is_contiguous()
    assert outer.data_ptr() % 64 == 0


def test_an_error_ends_the_call():
    workspace = Workspace()
    with pytest.raises(RuntimeError, match="expanded size"), workspace:
        workspace.scratch(torch.empty(0), 10).expand(3)
    with workspace:
        piece = workspace.scratch(torch.empty(0), 10)
    assert piece.data_ptr() == workspace.buffer.data_ptr()


def test_outside_of_a_call_memory_is_fresh():
    workspace = Workspace()
    with workspace:
        workspace.scratch(torch.empty(0), 4)
    piece = workspace.scratch(torch.empty(0), 4)
    kept = workspace.buffer.numel()
    for _ in range(10):
        workspace.scratch(torch.empty(0), 1000)
    with workspace:
        workspace.scratch(torch.empty(0), 4)
    assert workspace.buffer.numel() == kept  # what is taken outside counts for no call
    assert piece.shape == (4,)
    assert piece.data_ptr() != workspace.buffer.data_ptr()


def test_only_cpus_have_a_buffer():
    workspace = Workspace()
    with workspace:
        assert workspace.scratch(torch.empty(0, device="meta"), 4).is_meta
    assert workspace.buffer is None


@pytest.mark.parametrize("pads", [(1, 2), (0, 0, 3, 1), (2, 0, 0, 1, 1, 1)])
def test_padded_is_pad(pads):
    tensor = torch.randn(2, 3, 4).transpose(0, 1)
    for _ in range(2):
        with Workspace.for_thread() as workspace:
            assert torch.equal(workspace.padded(tensor, pads), torch.nn.functional.pad(tensor, pads))
        poison()


def test_contiguous_copies_only_what_is_not():
    tensor = torch.randn(3, 4)
    with Workspace.for_thread() as workspace:
        assert workspace.contiguous(tensor) is tensor
        copy = workspace.contiguous(tensor.T)
        assert torch.equal(copy, tensor.T)
        assert copy.is_contiguous()
