"""Each op of this package in PyTorch's own operations, against the op."""

import pytest
import torch

from lambdanets.kernels.decompositions import decompositions

DOUBLE = torch.float64


def numbers(*shape):
    return torch.randn(shape, dtype=DOUBLE)


def call(name):
    """Arguments of one call: b 2, h 3, k 4, v 5."""
    if name == "dense_term":
        return numbers(2, 3, 6, 4), numbers(2, 2, 7, 5), numbers(6, 7, 4, 2)
    if name == "edges_term":
        index = torch.stack([torch.randint(6, (20,)), torch.randint(7, (20,))])
        return numbers(2, 3, 6, 4), numbers(2, 2, 7, 5), index, numbers(20, 4, 2)
    if name == "causal_content_term":
        return numbers(2, 3, 20, 4), 5 * numbers(2, 2, 20, 4), numbers(2, 2, 20, 5)
    if name == "segment_content_term":
        return numbers(2, 3, 9, 4), numbers(2, 2, 9, 4), numbers(2, 2, 9, 5), torch.randint(4, (9,)), 5
    extents, grid, origin = {
        "grid_term": ((3, 5), (4, 3), (1, 2)),
        "grid_term, 1-D, past alone": ((4,), (9,), (3,)),
        "grid_term, 3-D, beyond reach": ((3, 9, 3), (2, 2, 1), (1, 4, 1)),
    }[name]
    n = torch.Size(grid).numel()
    return numbers(2, 3, n, 4), numbers(2, 2, n, 5), numbers(2, 4, *extents), grid, origin, ""


CALLS = [
    *("dense_term", "edges_term", "causal_content_term", "segment_content_term"),
    *("grid_term", "grid_term, 1-D, past alone", "grid_term, 3-D, beyond reach"),
]


@pytest.mark.parametrize("name", CALLS)
def test_gives_what_the_op_gives(name):
    op = getattr(torch.ops.lambdanets, name.split(",")[0]).default
    decomposed = decompositions()[op]
    args = call(name)
    expected = op(*args)
    actual = decomposed(*args)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    assert actual.is_contiguous()  # what follows in a program may view it
    half = [arg.half() if isinstance(arg, torch.Tensor) and arg.dtype == DOUBLE else arg for arg in args]
    torch.testing.assert_close(decomposed(*half), op(*half))


def test_every_op_has_one():
    ops = {name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("lambdanets::")}
    forward = {name for name in ops if not name.endswith("_backward")}
    assert forward == {op._schema.name.split("::")[1] for op in decompositions()}
    assert forward == {name.split(",")[0] for name in CALLS}


def test_offsets_beyond_reach_change_nothing_and_get_no_gradient():
    """The op with a whole table, as exported programs pass it, and with the part that the grid reaches."""
    query, value, table, grid, origin, kernel = call("grid_term, 3-D, beyond reach")
    part = table[:, :, :, 3:6, 1:2].clone().requires_grad_()
    table.requires_grad_()
    op = torch.ops.lambdanets.grid_term
    whole, cut = op(query, value, table, grid, origin, kernel), op(query, value, part, grid, (1, 1, 0), kernel)
    torch.testing.assert_close(whole, cut, rtol=1e-10, atol=1e-10)
    whole.square().sum().backward()
    cut.square().sum().backward()
    expected = torch.zeros_like(table)
    expected[:, :, :, 3:6, 1:2] = part.grad
    torch.testing.assert_close(table.grad, expected, rtol=1e-10, atol=1e-10)
