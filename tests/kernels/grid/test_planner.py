"""The choice of a kernel: it runs what can run, takes the cheapest, and says why not."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helpers import FOR_CPUS
from lambdanets.kernels.grid import costs, planner
from lambdanets.kernels.grid.contract import GridInputs, GridProblem
from lambdanets.kernels.grid.costs import cost_of
from lambdanets.kernels.grid.planner import GRID_KERNELS, choose, explain, seconds
from lambdanets.kernels.grid.spectral import fft_length
from lambdanets.kernels.names import require


def problem(grid, extents=None, *, causal=False, **changes):
    extents = extents or tuple(2 * size - 1 for size in grid)
    origin = [extent // 2 for extent in extents]
    if causal:
        extents = (origin[0] + 1, *extents[1:])
    sizes = {"batch": 2, "heads": 4, "dim_key": 16, "dim_value": 16, "intra_depth": 1, **changes}
    return GridProblem.of(grid=grid, extents=extents, origin=origin, **sizes)


@pytest.fixture
def calibration(tmp_path, monkeypatch):
    """A user's calibration file in a folder of its own."""
    path = tmp_path / "costs.json"
    monkeypatch.setattr(costs, "cache_file", lambda: path)
    costs.reload()
    yield path
    monkeypatch.undo()
    costs.reload()


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(
    "each", [problem((14, 14)), problem((28, 28), (7, 7)), problem((64,)), problem((4, 5, 6)), problem((1, 1))]
)
def test_the_cheapest_that_can_run_is_chosen(each, backward):
    able = [verdict for verdict in explain(each) if verdict.reason is None]
    estimates = {v.name: v.backward_seconds if backward else v.forward_seconds for v in able}
    assert choose(each, backward).name == min(estimates, key=estimates.get)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("name", FOR_CPUS)
def test_more_positions_are_never_cheaper(name, backward):
    kernel = GRID_KERNELS[name]
    sides = (8, 16, 32, 64)
    scope = (7, 7) if name == "banded" else None
    estimates = [planner.seconds(kernel, problem((side, side), scope), backward) for side in sides]
    assert estimates == sorted(estimates)
    assert estimates[0] > 0


def test_every_kernel_is_explained_with_its_reason():
    verdicts = {verdict.name: verdict for verdict in explain(problem((40, 40, 40)))}
    assert set(verdicts) == set(GRID_KERNELS)
    assert "rank 3" in verdicts["row_spectral"].reason
    assert "Toeplitz operand would have" in verdicts["query_first"].reason
    assert "local contexts" in verdicts["banded"].reason
    assert verdicts["spectral"].reason is None


def test_a_name_runs_or_raises_the_reason():
    require("spectral", problem((9,)))
    with pytest.raises(ValueError, match="kernel='banded' cannot run here: it is for local contexts"):
        require("banded", problem((9,)))
    with pytest.raises(ValueError, match="did you mean 'row_spectral'"):
        require("row-spectral")


def test_a_calibration_is_preferred(calibration):
    slow = {"forward": [1.0, 1.0, 1.0], "backward": [1.0, 1.0, 1.0]}
    expensive = {name: slow for name in GRID_KERNELS if name != "spectral"}
    calibration.write_text(json.dumps({"devices": {"cpu": expensive}}))
    costs.reload()
    assert choose(problem((7, 7)), backward=False).name == "spectral"


@pytest.mark.parametrize(
    "text",
    [
        '{"devices": ',
        "[]",
        '{"devices": [1]}',
        '{"devices": {"cpu": {"spectral": {}}}}',
        '{"devices": {"cpu": {"spectral": null}}}',
        '{"devices": {"cpu": {"spectral": {"forward": [1.0], "backward": [1.0, 1.0, 1.0]}}}}',
        '{"devices": {"cpu": {"spectral": {"forward": [1.0, 1.0, NaN], "backward": [1.0, 1.0, 1.0]}}}}',
    ],
)
def test_a_damaged_calibration_is_reported_and_ignored(calibration, text):
    calibration.write_text(text)
    costs.reload()
    with pytest.warns(UserWarning, match=r"costs.json is not a calibration.*bench --calibrate"):
        assert costs.cost_of("cpu", "spectral", False) == costs.shipped()["devices"]["cpu"]["spectral"]["forward"]


def test_the_package_brings_constants_for_every_kernel_and_names_the_machine():
    shipped = costs.shipped()
    assert {"machine", "torch", "threads"} <= set(shipped["measured_on"])
    assert set(shipped["devices"]["cpu"]) == set(FOR_CPUS)
    for directions in shipped["devices"]["cpu"].values():
        for constants in directions.values():
            assert len(constants) == 3
            assert all(constant >= 0 for constant in constants)
            assert any(constants)


@pytest.mark.parametrize("least", [1, 7, 11, 13, 27, 45, 67, 111, 121, 729, 3969, 12321])
def test_good_lengths_have_small_factors_and_are_little_more_than_the_least(least):
    length = fft_length(least)
    assert least <= length < max(least + 2, 1.4 * least)
    for prime in (2, 3, 5, 7):
        while length % prime == 0:
            length //= prime
    assert length == 1


def test_good_lengths_are_even_where_that_is_faster():
    assert [fft_length(least) for least in (27, 63, 729, 3969)] == [32, 64, 768, 4000]


def test_only_reachable_offsets_are_kept():
    query, value = torch.empty(1, 2, 210, 3), torch.empty(1, 1, 210, 4)
    table = torch.arange(23.0 * 23).view(23, 23).expand(1, 3, 23, 23)
    inputs = GridInputs.of(query, value, table, (7, 30), (11, 11))
    assert (inputs.problem.extents, inputs.problem.origin) == ((13, 23), (6, 11))
    assert torch.equal(inputs.table, table[:, :, 5:18])
    grad = inputs.whole_table(torch.ones_like(inputs.table), table, (11, 11))
    assert torch.equal(grad, torch.nn.functional.pad(torch.ones_like(inputs.table), (0, 0, 5, 5)))
    causal = problem((5,), (9,), causal=True)
    assert (causal.extents, causal.origin, causal.one_sided) == ((5,), (4,), True)
    causal = problem((9, 9), (5, 5), causal=True)
    assert (causal.extents, causal.origin, causal.one_sided) == ((3, 5), (2, 2), True)
    assert not problem((1, 9), (5, 5)).one_sided


def test_float64_costs_more():
    single, double = (problem((14, 14), dtype=dtype) for dtype in (torch.float32, torch.float64))
    kernel = GRID_KERNELS["query_first"]
    assert planner.seconds(kernel, double, False) > planner.seconds(kernel, single, False)


@pytest.mark.parametrize("backward", [False, True])
def test_a_kernel_without_the_content_term_is_charged_a_pass(backward):
    problem = GridProblem(2, 4, 16, 16, 1, grid=(14, 14), extents=(7, 7), origin=(3, 3))
    kernel = GRID_KERNELS["spectral"]
    moved = cost_of("cpu", "spectral", backward)[1]
    joint = replace(kernel, adds_content=True)
    extra = seconds(kernel, problem, backward) - seconds(joint, problem, backward)
    assert extra == pytest.approx(moved * 2 * 4 * 14 * 14 * 16)


def test_row_spectral_says_where_its_matrices_are_too_large():
    problem = GridProblem(1, 1, 4, 4, 1, grid=(16, 4000), extents=(3, 7999), origin=(1, 3999))
    assert GRID_KERNELS["row_spectral"].check(problem) is None
    problem = GridProblem(1, 1, 4, 4, 1, grid=(16, 8000), extents=(3, 15999), origin=(1, 7999))
    reason = GRID_KERNELS["row_spectral"].check(problem)
    assert re.fullmatch(r"its largest matrix would have 256,000,000 elements, more than 67,108,864", reason)


def test_a_kernel_without_constants_says_how_to_measure_them(calibration, monkeypatch):
    new = replace(GRID_KERNELS["spectral"], name="new")
    monkeypatch.setitem(GRID_KERNELS, "new", new)
    with pytest.raises(RuntimeError, match=r"'new' has no constants in .*costs.json.*bench --calibrate --output"):
        choose(problem((7, 7)), backward=False)
    spectral = costs.shipped()["devices"]["cpu"]["spectral"]
    calibration.write_text(json.dumps({"devices": {"cpu": {"new": spectral}}}))
    costs.reload()
    assert seconds(new, problem((7, 7)), False) == seconds(GRID_KERNELS["spectral"], problem((7, 7)), False)


def test_an_empty_grid_is_explained():
    empty = problem((0, 5))
    assert {verdict.reason for verdict in explain(empty)} == {
        "there is nothing to compute for the grid (0, 5) with batch 2"
    }
    with pytest.raises(ValueError, match="no kernel can run: there is nothing to compute"):
        choose(empty, backward=False)


def test_the_planner_may_be_kept_from_kernels_that_spread_errors():
    each = problem((56, 56), (23, 23))
    assert not choose(each, backward=False, may_spread=False).spreads_errors
    huge = problem((200_000,), dtype=torch.float64)  # no other kernel has room for it
    assert choose(huge, backward=False, may_spread=False).name == "spectral"


def test_the_planner_may_be_kept_from_kernels_that_mix_channels():
    each = problem((56, 56), dim_value=64)
    chosen = choose(each, backward=False, may_mix=False)
    assert not chosen.mixes_channels
    assert not choose(each, backward=False, may_spread=False).mixes_channels  # which spread errors too


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("grid", [(100_000,), (3, 190), (20, 30, 40)], ids=str)
def test_there_is_a_kernel_for_everything(grid, causal, dtype, device):
    each = problem(grid, causal=causal, dtype=dtype, device=device)
    assert GRID_KERNELS["spectral"].check(each) is None
    assert choose(each, backward=True, may_spread=False, may_mix=False)


def test_every_kernel_is_in_the_table():
    """A file with a kernel that the planner does not collect is forgotten."""
    folder = Path(planner.__file__).parent
    files = [path for path in folder.rglob("*.py") if "\nKERNEL = " in path.read_text(encoding="utf-8")]
    assert len(files) == len(GRID_KERNELS)
