"""Query first for batches that go through in parts."""

import pytest
import torch

from helpers import assert_same, grid_call, outputs_and_gradients, small_blocks
from lambdanets import lambda_apply
from lambdanets.kernels.autograd.memory import Workspace
from lambdanets.kernels.grid import query_first
from lambdanets.kernels.grid.contract import GridInputs


@pytest.fixture(params=[0, 1 << 20], ids=["rows", "one row"])
def few_scores(request):
    """Room for the scores of two examples of 5x6 positions, or one of 17x11."""
    with small_blocks("grid.query_first", SCORE_ELEMENTS=4000, ONE_ROW_ELEMENTS=request.param):
        yield


@pytest.mark.parametrize(("grid", "extents"), [((5, 6), (9, 11)), ((17, 11), (5, 5)), ((63,), (125,))])
@pytest.mark.parametrize("u", [1, 2])
@pytest.mark.parametrize("has_key", [True, False])
def test_parts_of_a_batch_are_the_whole(few_scores, grid, extents, u, has_key):
    call = grid_call(grid, extents, b=5, u=u)

    def apply(kernel):
        def compute(c):
            return lambda_apply(c.query, c.key if has_key else None, *c.args[2:], **c.kwargs, kernel=kernel)

        return compute

    expected = outputs_and_gradients(apply("reference"), call)
    assert_same(outputs_and_gradients(apply("query_first"), call), expected)


def test_memory_of_scores_does_not_grow_with_the_batch():
    batch, heads, n, depth = 256, 4, 400, 8
    query, value = torch.randn(batch, heads, n, depth), torch.randn(batch, 1, n, depth)
    inputs = GridInputs.of(query, value, torch.randn(1, depth, 39, 39), (20, 20), (19, 19))
    activities = [torch.profiler.ProfilerActivity.CPU]
    with Workspace() as workspace, torch.profiler.profile(profile_memory=True, activities=activities) as profile:
        query_first.forward(inputs, workspace)
    events = profile.profiler.kineto_results.events()
    largest = max(event.nbytes() for event in events if event.name() == "[memory]")
    # The output; S of a row of all examples would have been more than twice as much.
    assert largest == 4 * batch * heads * n * depth
