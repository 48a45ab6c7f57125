"""The way from ``lambda_apply`` to a kernel: at most eight frames, none of them a closure."""

import functools
import importlib
import sys

import pytest
import torch

from helpers import PRESENT, dense_call, edge_call, grid_call, random_call
from lambdanets import lambda_apply
from lambdanets.kernels.grid.planner import GRID_KERNELS

MOST_FRAMES = 8


def frames_to(code, call):
    """Frames of our code from ``lambda_apply`` to the first call of a function, both included."""
    walks = []

    def watch(frame, event, arg):
        if event == "call" and frame.f_code is code and not walks:
            walk = []
            while frame is not None:
                if "lambdanets" in frame.f_code.co_filename and "tests" not in frame.f_code.co_filename:
                    walk.append(frame.f_code)
                frame = frame.f_back
            walks.append(walk[::-1])

    sys.setprofile(watch)
    try:
        call()
    finally:
        sys.setprofile(None)
    (walk,) = walks
    return walk


def forward_of(kernel):
    """The code of a kernel's forward pass: of a compiled one, the last function in Python."""
    forward = GRID_KERNELS[kernel].forward
    return (forward.func if isinstance(forward, functools.partial) else forward).__code__


def assert_short(walk):
    names = [code.co_qualname if sys.version_info >= (3, 11) else code.co_name for code in walk]
    assert names[0] == "lambda_apply"
    assert len(walk) <= MOST_FRAMES, names
    assert not [name for name in names if "<locals>" in name or "<lambda>" in name], names


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("has_key", [False, True])
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("kernel", PRESENT)
def test_to_a_kernel(kernel, requires_grad, has_key, causal):
    forward = forward_of(kernel)
    call = grid_call((5, 6), (3, 5), dtype=torch.float32)
    query = call.query.requires_grad_(requires_grad)
    key = call.key if has_key else None
    assert_short(
        frames_to(forward, lambda: lambda_apply(query, key, call.value, call.positions, causal=causal, kernel=kernel))
    )


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize(
    ("module", "make", "causal"),
    [
        ("causal_content", lambda: random_call(9), True),
        ("dense", lambda: dense_call(5, 7), False),
        ("edges", lambda: edge_call(5, 7, 9), False),
    ],
)
def test_to_a_term(module, make, causal, requires_grad):
    forward = importlib.import_module(f"lambdanets.kernels.terms.{module}")._forward.__code__
    call = make()
    call.query.requires_grad_(requires_grad)
    assert_short(frames_to(forward, lambda: lambda_apply(*call.args, causal=causal)))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kernel", PRESENT)
def test_autocast_and_half_precision_go_the_same_way(kernel, autocast):
    call = grid_call((5, 6), (3, 5), dtype=torch.float32 if autocast else torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        assert_short(frames_to(forward_of(kernel), lambda: lambda_apply(*call.args, kernel=kernel)))
