"""The portable kernel against the reference: float64, outputs and gradients, every kind of positions."""

import pytest
import torch

from helpers import assert_same, dense_call, edge_call, grid_call, outputs_and_gradients, random_call
from lambdanets import GridPositions, lambda_apply

# (grid, extents): ranks 1 to 3, local, global, tables beyond any offset, one position.
SHAPES = [
    ((7,), (3,)),
    ((9,), (17,)),
    ((1, 1), (23, 23)),
    ((5, 9), (9, 17)),
    ((9, 5), (3, 7)),
    ((6, 10), (23, 5)),
    ((3, 4, 5), (5, 7, 3)),
]


def assert_exact(call):
    expected, actual = (
        outputs_and_gradients(lambda c, kernel=kernel: lambda_apply(*c.args, **c.kwargs, kernel=kernel), call)
        for kernel in ("reference", "portable")
    )
    assert_same(actual, expected)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("u", [1, 3])
@pytest.mark.parametrize(("grid", "extents"), SHAPES)
def test_exact(grid, extents, u, causal):
    call = grid_call(grid, extents, u=u)
    call.causal = causal
    assert_exact(call)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "call",
    [
        lambda: grid_call((5, 3), (3, 5), u=2),
        lambda: dense_call(6, 6, u=2),
        lambda: edge_call(6, 6, 11, u=2),
        lambda: random_call(6, u=2),
    ],
    ids=["grid", "dense", "edges", "content"],
)
def test_exact_masked(call, causal):
    call = call()
    call.mask = torch.rand(2, call.value.shape[2]) < 0.6
    call.mask[:, 0] = True
    call.causal = causal
    assert_exact(call)


def test_without_the_content_term():
    call = grid_call((5, 3), (3, 5))
    query, _, value, positions = call.args
    actual, expected = (lambda_apply(query, None, value, positions, kernel=name) for name in ("portable", "reference"))
    torch.testing.assert_close(actual, expected)


def test_an_example_with_nothing_visible_gives_zeros():
    call = grid_call((4, 3), (3, 3))
    mask = torch.zeros(2, 12, dtype=torch.bool)
    assert not lambda_apply(*call.args, mask=mask, kernel="portable").any()


def test_second_derivatives():
    call = grid_call((3, 2), (3, 3), b=1, h=2, k=2, v=2).requiring_grad()
    assert torch.autograd.gradgradcheck(lambda *_: lambda_apply(*call.args, kernel="portable"), call.leaves())


def test_one_traced_graph_of_plain_operations_serves_every_size():
    class Op(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Parameter(torch.randn(2, 4, 5, 3))

        def forward(self, query, key, value, image):
            return lambda_apply(query, key, value, GridPositions(self.table, image.shape[1:]), kernel="portable")

    def inputs(b, grid):
        call = grid_call(grid, (5, 3), b=b, u=2, dtype=torch.float32)
        return call.query, call.key, call.value, torch.empty(b, *grid)

    op, dynamic = Op(), torch.export.Dim.DYNAMIC
    n = {0: dynamic, 2: dynamic}
    program = torch.export.export(op, inputs(2, (4, 6)), dynamic_shapes=(n, n, n, {0: dynamic, 1: dynamic, 2: dynamic}))
    assert not [node for node in program.graph.nodes if "lambdanets" in str(node.target)]
    for b, grid in ((1, (3, 3)), (3, (8, 5)), (2, (1, 9))):
        given = inputs(b, grid)
        torch.testing.assert_close(program.module()(*given), op(*given))
