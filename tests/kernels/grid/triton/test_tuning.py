"""The choice of a configuration: the fastest, kept for a shape; the first that fits where nothing can be timed."""

from dataclasses import replace

import pytest
import torch

from lambdanets.kernels.grid.contract import GridProblem
from lambdanets.kernels.grid.triton.tiling import Config

pytestmark = pytest.mark.needs_triton

PROBLEM = GridProblem(100, 4, 16, 64, 1, (14, 14), (27, 27), (13, 13), torch.bfloat16, "cpu")
CANDIDATES = (Config(16, 4, 3), Config(16, 8, 2), Config(32, 4, 2))


@pytest.fixture
def tuning(monkeypatch):
    from lambdanets.kernels.grid.triton import tuning

    tuning.forget()
    monkeypatch.setattr(tuning, "_can_time", lambda problem: True)
    yield tuning
    tuning.forget()


def out_of_resources():
    from triton.runtime.errors import OutOfResources

    return OutOfResources(300_000, 232_448, "shared memory")


def test_the_fastest_is_kept_for_a_shape(tuning, monkeypatch):
    tried, launched = [], []

    def bench(call, **kwargs):
        tried.append(1)
        return {1: 3.0, 2: 1.0}[len(tried)]

    monkeypatch.setattr(tuning, "do_bench", bench)
    for batch, grid in ((100, (14, 14)), (100, (14, 14)), (128, (14, 14)), (100, (16, 15))):  # one power of 2, sixteens
        problem = replace(PROBLEM, batch=batch, grid=grid)
        tuning.run_best("output", problem, CANDIDATES, launched.append)
    assert len(tried) == 2  # another width of the tile would be another order of the sums
    assert launched == [CANDIDATES[1]] * 4


def test_another_precision_of_products_is_tried_again(tuning, monkeypatch):
    tried = []
    monkeypatch.setattr(tuning, "do_bench", lambda call, **kwargs: tried.append(1) or 1.0)
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        for precision in ("ieee", "tf32"):
            torch.backends.cuda.matmul.fp32_precision = precision
            tuning.run_best("output", PROBLEM, CANDIDATES, lambda config: None)
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    assert len(tried) == 4


def test_deterministic_algorithms_leave_out_the_clock(monkeypatch):
    from lambdanets.kernels.grid.triton import tuning

    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    on_cuda = replace(PROBLEM, device="cuda")
    assert tuning._can_time(on_cuda)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert not tuning._can_time(on_cuda)


def test_what_the_device_has_no_room_for_is_passed_over(tuning, monkeypatch):
    launched = []

    def launch(config):
        if config.block == 16:
            raise out_of_resources()
        launched.append(config)

    monkeypatch.setattr(tuning, "do_bench", lambda call, **kwargs: call() or 1.0)
    tuning.run_best("output", PROBLEM, CANDIDATES, launch)
    assert set(launched) == {CANDIDATES[2]}


def test_without_timing_the_first_that_fits_runs(tuning, monkeypatch):
    monkeypatch.setattr(tuning, "_can_time", lambda problem: False)
    launched = []

    def launch(config):
        if config == CANDIDATES[0]:
            raise out_of_resources()
        launched.append(config)

    tuning.run_best("output", PROBLEM, CANDIDATES, launch)
    assert launched == [CANDIDATES[1]]
    with pytest.raises(type(out_of_resources())):
        tuning.run_best("output", PROBLEM, CANDIDATES[:1], launch)
