"""When the planner takes the Triton kernels, and what it says when it does not; needs neither Triton nor a GPU."""

import importlib.util
from dataclasses import replace

import pytest
import torch

from helpers import FOR_CUDA
from lambdanets import GridPositions, lambda_apply
from lambdanets.kernels.grid.contract import GridProblem
from lambdanets.kernels.grid.planner import GRID_KERNELS, choose, explain
from lambdanets.kernels.grid.triton.launch import addressable
from lambdanets.kernels.grid.triton.query_first import check

KERNEL = "query_first_triton"
PROBLEM = GridProblem(128, 4, 16, 64, 1, (28, 28), (55, 55), (27, 27), torch.bfloat16, "cuda")


@pytest.fixture
def with_triton(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())


@pytest.mark.usefixtures("with_triton")
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("grid", [(196,), (14, 14), (56, 56)])
@pytest.mark.parametrize("depth", [16, 64, 128])
def test_one_of_them_is_chosen_on_cuda(grid, dtype, backward, depth):
    extents, origin = tuple(2 * size - 1 for size in grid), tuple(size - 1 for size in grid)
    problem = replace(PROBLEM, grid=grid, extents=extents, origin=origin, dtype=dtype, dim_value=depth)
    assert choose(problem, backward).name in FOR_CUDA


@pytest.mark.usefixtures("with_triton")
def test_lambda_first_is_for_shallow_values():
    shallow, deep, deepest = (replace(PROBLEM, dim_value=depth) for depth in (16, 128, 129))
    assert choose(shallow, backward=False).name == "lambda_first_triton"
    assert choose(deep, backward=False).name == "query_first_triton"
    assert "values up to 128, and these have 16 and 129" in GRID_KERNELS["lambda_first_triton"].check(deepest)


@pytest.mark.usefixtures("with_triton")
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"device": "cpu"}, "it runs on CUDA devices, and these tensors are on cpu"),
        ({"device": "mps"}, "it runs on CUDA devices, and these tensors are on mps"),
        ({"dtype": torch.float64}, "it computes in float32, float16, bfloat16, and these tensors are float64"),
        ({"grid": (4, 4, 4), "extents": (7,) * 3, "origin": (3,) * 3}, "it is for grids of rank 1 and 2"),
    ],
)
def test_says_why_they_cannot_run(change, reason):
    problem = replace(PROBLEM, **change)
    reasons = {verdict.name: verdict.reason for verdict in explain(problem)}
    assert all(reason in reasons[kernel] for kernel in FOR_CUDA)
    assert choose(problem, backward=False).name not in FOR_CUDA


def test_says_that_triton_is_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert GRID_KERNELS[KERNEL].check(PROBLEM) == "it needs triton, which is not installed; pip install triton"


def test_a_name_raises_the_reason():
    x = torch.randn(1, 1, 9, 4)
    with pytest.raises(ValueError, match="cannot run here: it runs on CUDA devices, and these tensors are on cpu"):
        lambda_apply(x, None, x, GridPositions(torch.randn(1, 4, 3, 3), (3, 3)), kernel=KERNEL)


@pytest.mark.usefixtures("with_triton")
@pytest.mark.parametrize("backward", [False, True])
def test_more_positions_are_never_cheaper(backward):
    sizes = [(7, 7), (14, 14), (28, 28), (56, 56)]
    works = [
        GRID_KERNELS[KERNEL].work(replace(PROBLEM, grid=grid, extents=(3, 3), origin=(1, 1)), backward).multiply_adds
        for grid in sizes
    ]
    assert works == sorted(works)
    assert works[0] > 0


@pytest.mark.usefixtures("with_triton")
@pytest.mark.parametrize(("dtype", "deepest"), [(torch.float32, 256), (torch.bfloat16, 512), (torch.float16, 512)])
def test_queries_that_are_too_deep_for_shared_memory(dtype, deepest):
    assert check(replace(PROBLEM, dim_key=deepest, dtype=dtype)) is None
    deeper = replace(PROBLEM, dim_key=deepest + 1, dtype=dtype)
    assert f"queries up to a depth of {deepest} in this precision, and these have {deepest + 1}" in check(deeper)
    assert choose(deeper, backward=False).name not in FOR_CUDA


@pytest.mark.usefixtures("with_triton")
@pytest.mark.parametrize(
    "sizes", [(4, 16, 64, 1), (16, 16, 4, 1), (1, 16, 64, 4)], ids=["outputs", "queries", "values"]
)
def test_examples_with_more_elements_than_32_bits_count(sizes):
    problem = GridProblem(1, *sizes, (3000, 3000), (7, 7), (3, 3), torch.bfloat16, "cuda")
    assert "an example has tensors of 2,304,000,000 elements, and it counts up to 2,147,483,648" in check(problem)


@pytest.mark.usefixtures("with_triton")
@pytest.mark.parametrize("kernel", FOR_CUDA)
def test_tables_with_more_elements_than_32_bits_count(kernel):
    problem = GridProblem(1, 1, 64, 4, 1, (4096, 4096), (8191, 8191), (4095, 4095), torch.bfloat16, "cuda")
    assert "the table of positions has 4,293,918,784 elements" in GRID_KERNELS[kernel].check(problem)


def test_views_whose_elements_are_too_far_apart_are_copied():
    near = torch.empty(2, 3, 40, 4, device="meta")
    assert addressable(near) is near
    far = torch.empty(1, device="meta").as_strided((2, 3, 40, 4), (12, 4, 1 << 26, 1))
    assert addressable(far).is_contiguous()
