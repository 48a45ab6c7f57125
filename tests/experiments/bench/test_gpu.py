"""The GPU's benchmark as far as it goes without one: contenders, floors, rows; and its refusal."""

import pytest
import torch
from typer.testing import CliRunner

from lambdanets.experiments.bench import gpu
from lambdanets.experiments.bench.cases import Case, select_cases
from lambdanets.experiments.bench.contenders import contenders
from lambdanets_cli.app import app

MACHINE = gpu.Rates(multiply_adds=1e12, bytes=1e11)


LIMITS = {"seconds": 0, "max_seconds": 0, "device": "cpu", "dtype": torch.float32, "flex": False}


def clock(call):
    call()
    return 2.0


@pytest.mark.parametrize("case", [Case(1, (5, 5), 16), Case(2, (6, 7), 16, 3), Case(1, (7,), 16, None, 2)])
def test_every_contender_is_a_row_for_each_pass(case):
    rows = gpu.measure_case(case, MACHINE, clock, **LIMITS)
    assert {(row["contender"], row["pass"]) for row in rows} >= {
        (name, way)
        for name in ("layer:lambdanets", "op:lambdanets", "op:attention")
        for way in ("forward", "forward+backward")
    }
    assert {tuple(row) for row in rows} == {gpu.COLUMNS}
    assert all(row["median_ms"] == 2000.0 for row in rows)
    wider = {row["contender"] for row in rows if row["note"] == "over the whole map"}
    assert wider == ({"op:attention"} if case.scope else set())


def test_layers_that_compute_another_thing_are_not_timed(monkeypatch):
    def doubled(case, kernels):
        for contender in contenders(case, kernels):
            if contender.name == "timm":
                contender.module.qkv.weight.data *= 2
            yield contender

    monkeypatch.setattr(gpu, "contenders", doubled)
    with pytest.raises(RuntimeError, match="timm differs from lambdanets in its output"):
        gpu.measure_case(Case(1, (3, 3), 16), MACHINE, clock, **LIMITS)


def test_what_has_no_room_is_a_row_with_a_note(monkeypatch):
    prepare = gpu._prepare

    def full(entry, device):
        if entry.name in no_room:
            raise torch.cuda.OutOfMemoryError("no room")
        return prepare(entry, device)

    monkeypatch.setattr(gpu, "_prepare", full)
    no_room = ["layer:timm", "op:lambdanets"]
    rows = gpu.measure_case(Case(1, (3, 3), 16), MACHINE, clock, **LIMITS)
    assert {row["contender"] for row in rows if row["note"] == "out of memory"} == set(no_room)
    assert {tuple(row) for row in rows} == {gpu.COLUMNS}
    # Without ours there is nothing to compare with.
    assert {row["contender"] for row in rows if row["ratio_median"] == ""} == {*no_room, "op:attention"}


def test_the_floor_is_the_cheaper_order_or_the_tensors():
    """By hand at 14x14, d 256: query first 4 · (16 + 64), lambda first 16 · 64 + 16 · 64 · 4 / 196 a pair."""
    case = Case(128, (14, 14), 256)
    pairs = 128 * 196 * 196
    assert gpu.floor_seconds(case, gpu.Rates(1e15, 1e18), backward=False) == pytest.approx(pairs * 320 / 1e15)
    assert gpu.floor_seconds(case, gpu.Rates(1e15, 1e18), backward=True) == pytest.approx(3 * pairs * 320 / 1e15)
    # Scope 23: of each axis, positions less than 12 apart, 14² - 2 · 3 of 196 pairs; at the border windows are smaller.
    near = gpu.floor_seconds(Case(128, (14, 14), 256, 23), gpu.Rates(1e15, 1e18), backward=False)
    assert near == pytest.approx(128 * 190**2 * 320 / 1e15)
    tensors = 128 * 196 * (64 + 16 + 64 + 256) * 2
    assert gpu.floor_seconds(case, gpu.Rates(1e30, 1e12), backward=False) == pytest.approx(tensors / 1e12)


def test_rates_are_a_product_and_a_copy():
    measured = gpu.rates(torch.float32, clock, device="cpu", size=64)
    assert measured == gpu.Rates(64**3 / 2.0, 2 * 64 * 64 * 4 / 2.0)


def test_cases_cover_the_shapes_of_resnets():
    names = {case.name for case in gpu.GPU_CASES}
    assert {"global-14x14-d256-b128", "scope23-28x28-d128-b128", "global-56x56-d64-b128"} <= names
    assert [case.name for case in select_cases("scope23-14*d64*", False, gpu.GPU_CASES)] == ["scope23-14x14-d64-b128"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_refuses_without_a_gpu():
    result = CliRunner().invoke(app, ["bench", "--device", "cuda"])
    with pytest.raises(ValueError, match=r"--device cuda needs a CUDA device, and PyTorch .* finds none"):
        raise result.exception
