"""A query sees its scope and nothing else: numbers that are not finite, and very large ones, in every kernel."""

import dataclasses
import math

import pytest
import torch

from helpers import EVERYWHERE, PRESENT, dense_call, edge_call, grid_call, kernel_cases, refuses, small_blocks
from lambdanets import GridPositions, lambda_apply
from lambdanets.kernels.grid import planner, spread
from lambdanets.kernels.grid.compiled import binding
from lambdanets.kernels.grid.contract import GridProblem
from lambdanets.kernels.grid.planner import GRID_KERNELS

PLAIN = ["reference", "portable"]
# A sequence, an image, a volume, a global context.
SHAPES = [((11,), (5,)), ((5, 6), (3, 5)), ((3, 4, 3), (3, 1, 3)), ((4, 5), (7, 9))]
CASES = pytest.mark.parametrize(
    ("kernel", "grid", "extents"),
    [*kernel_cases(PRESENT, SHAPES), *((kernel, *shape) for kernel in (None, *PLAIN) for shape in SHAPES)],
)
SPREADING = [name for name in PRESENT if GRID_KERNELS[name].spreads_errors]
# More channels than a vector has elements, so that transforms of two channels at once have both.
CHANNELS = 40
BAD = pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])


def sizes_for(kernel):
    """The compiled kernels compute in float32, many channels side by side."""
    return {} if kernel in (*EVERYWHERE, *PLAIN, None) else {"dtype": torch.float32, "v": CHANNELS}


def sees(grid, extents, causal):
    """(n, m), True where query n sees position m; from the definition of the table."""
    table = GridPositions(torch.ones(1, 1, *extents), grid)
    seen = table.dense()[:, :, 0, 0] > 0
    return seen & torch.ones_like(seen).tril() if causal else seen


@BAD
@pytest.mark.parametrize("causal", [False, True])
@CASES
def test_what_is_not_finite_is_seen_within_its_scope(kernel, grid, extents, causal, bad):
    call = grid_call(grid, extents, u=2, **sizes_for(kernel))
    query, _, value, positions = call.args
    bound = 1e-10 if query.dtype == torch.float64 else 3e-5  # of sums of up to 160 products
    place = math.prod(grid) // 2
    expected = lambda_apply(query, None, value, positions, causal=causal, kernel="reference")
    value[1, 0, place, 2] = bad
    tensors = [t.requires_grad_() for t in (query, value, positions.table)]
    out = lambda_apply(query, None, value, positions, causal=causal, kernel=kernel)
    is_seen = torch.zeros_like(out, dtype=torch.bool)
    is_seen[1, :, :, 2] = sees(grid, extents, causal)[:, place]
    assert torch.equal(out.isnan(), is_seen)
    torch.testing.assert_close(out[~is_seen], expected[~is_seen], atol=bound, rtol=bound)
    # And so are the gradients of the outputs that do not see it.
    grads = torch.autograd.grad(out[~is_seen].square().sum(), tensors)
    assert all(grad.isfinite().all() for grad in grads)


def with_offset(grid, extents, offset, causal):
    """(n, m), True where query n has position m at an entry of the table."""
    table = torch.zeros(1, 1, *extents)
    table[(0, 0, *offset)] = 1
    has = GridPositions(table, grid).dense()[:, :, 0, 0] > 0
    return has & torch.ones_like(has).tril() if causal else has


@BAD
@pytest.mark.parametrize(("causal", "end"), [(False, 0), (False, -1), (True, 0)])
@CASES
@pytest.mark.parametrize("has_key", [False, True])
def test_an_entry_that_is_not_finite_is_seen_by_queries_of_its_offset(kernel, grid, extents, has_key, causal, end, bad):
    """The first and the last entry of the table."""
    call = grid_call(grid, extents, u=2, **sizes_for(kernel))
    query, key, value, positions = call.args
    key = key if has_key else None
    bound = 1e-10 if query.dtype == torch.float64 else 3e-5
    offset = (end,) * len(grid)
    expected = lambda_apply(query, key, value, positions, causal=causal, kernel="reference")
    positions.table[(1, 2, *offset)] = bad
    tensors = [t.requires_grad_() for t in (query, positions.table)]
    out = lambda_apply(query, key, value, positions, causal=causal, kernel=kernel)
    is_seen = torch.zeros_like(out, dtype=torch.bool)
    is_seen[:, :, with_offset(grid, extents, offset, causal).any(1)] = True
    assert 0 < is_seen.sum() < is_seen.numel()
    assert torch.equal(~out.isfinite(), is_seen)
    torch.testing.assert_close(out[~is_seen], expected[~is_seen], atol=bound, rtol=bound)
    query_grad, table_grad = torch.autograd.grad(out[~is_seen].square().sum(), tensors)
    assert query_grad[:, :, ~is_seen[0, 0, :, 0]].isfinite().all()
    assert table_grad.isfinite().all()


@pytest.mark.parametrize("has_key", [False, True])
def test_an_entry_that_is_not_finite_in_a_sequence_that_is_folded(has_key):
    """Into an image whose last row is not full."""
    with small_blocks("grid.query_first", ONE_ROW_ELEMENTS=0):
        test_an_entry_that_is_not_finite_is_seen_by_queries_of_its_offset(
            "query_first", (11,), (5,), has_key, causal=False, end=-1, bad=math.inf
        )


@pytest.mark.parametrize("kernel", [*PRESENT, *PLAIN, None])
def test_an_entry_that_no_query_sees_may_be_anything(kernel):
    call = grid_call((5, 6), (9, 13), **sizes_for(kernel))
    if not refuses(kernel, (5, 6), (9, 13)):
        call.positions.table[:, :, 0, 0] = float("nan")
        assert lambda_apply(*call.args, kernel=kernel).isfinite().all()


@BAD
@pytest.mark.parametrize("kernel", [None, *PLAIN])
@pytest.mark.parametrize("causal", [False, True])
def test_edges_see_their_own_context(kernel, causal, bad):
    call = edge_call(9, 9, 20)
    call.positions.index[:, :2] = torch.tensor([[2, 6], [4, 4]])
    call.value[0, 0, 4, 1] = bad
    out = lambda_apply(call.query, None, call.value, call.positions, causal=causal, kernel=kernel)
    expected = torch.zeros_like(out, dtype=torch.bool)
    for n, m in call.positions.index.T.tolist():
        if m == 4 and (n >= m or not causal):
            expected[0, :, n, 1] = True
    assert expected.any()
    assert torch.equal(out.isnan(), expected)


@BAD
@pytest.mark.parametrize("kernel", [None, *PLAIN])
@pytest.mark.parametrize("causal", [False, True])
def test_a_zero_in_a_dense_embedding_is_seen(kernel, causal, bad):
    call = dense_call(9, 9)
    call.positions.embedding[:, 4] = 0
    call.value[0, 0, 4, 1] = bad
    out = lambda_apply(call.query, None, call.value, call.positions, causal=causal, kernel=kernel)
    expected = torch.zeros_like(out, dtype=torch.bool)
    expected[0, :, 4 if causal else 0 :, 1] = True
    assert torch.equal(out.isnan(), expected)


@BAD
@pytest.mark.parametrize("kernel", [*PRESENT, *PLAIN, None])
def test_a_content_term_sees_all(kernel, bad):
    call = grid_call((5, 6), (3, 5), **sizes_for(kernel))
    call.value[1, 0, 7, 2] = bad
    out = lambda_apply(*call.args, kernel=kernel)
    expected = torch.zeros_like(out, dtype=torch.bool)
    expected[1, :, :, 2] = True
    assert torch.equal(~out.isfinite(), expected)


@BAD
@pytest.mark.parametrize("extents", [(7, 7), (31, 39)])
@pytest.mark.parametrize("cheapest", SPREADING, indirect=True)
def test_the_planner_keeps_what_is_not_finite_from_other_channels(cheapest, extents, bad):
    call = grid_call((16, 20), extents, dtype=torch.float32, v=CHANNELS)
    call.value[1, 0, 7, 2] = bad
    out = lambda_apply(*call.args)
    expected = torch.zeros_like(out, dtype=torch.bool)
    expected[1, :, :, 2] = True
    assert torch.equal(~out.isfinite(), expected)


def test_in_a_compiled_call():
    call = grid_call((5, 6), (3, 5))
    call.value[1, 0, 7, 2] = float("inf")

    def apply(query, value):
        return lambda_apply(query, None, value, call.positions)

    actual = torch.compile(apply, fullgraph=True, backend="aot_eager")(call.query, call.value)
    torch.testing.assert_close(actual, apply(call.query, call.value), equal_nan=True)
    assert 0 < actual.isnan().sum() < actual.numel()


@pytest.fixture
def cheapest(request, monkeypatch):
    """A kernel that spreads errors over the grid is the cheapest; yields the kernels that were chosen."""
    estimate, chosen = planner.seconds, []

    def seconds(kernel, problem, backward):
        return 0.0 if kernel.name == request.param else estimate(kernel, problem, backward)

    monkeypatch.setattr(planner, "seconds", seconds)
    planner._cheapest.cache_clear()
    choose = planner.choose
    monkeypatch.setattr(planner, "choose", lambda *a, **k: chosen.append(choose(*a, **k)) or chosen[-1])
    yield chosen
    monkeypatch.undo()
    planner._cheapest.cache_clear()


# (grid, extents, causal)
LOCAL = [
    ((96,), (9,), False),
    ((96,), (191,), True),
    ((16, 20), (7, 7), False),
    ((9, 10), (17, 19), True),
    ((6, 8, 7), (3, 5, 3), False),
    ((1, 96), (1, 191), True),
    ((4, 40), (1, 23), True),
]


def far_apart(grid, extents, causal, kernel, u=2):
    """Largest changes, in what does not see it, by one value of 1e6 and by one output gradient of 1e6."""
    call = grid_call(grid, extents, u=u, dtype=torch.float32)
    query, _, value, positions = call.args
    place = math.prod(grid) // 2
    table = sees(grid, extents, causal)
    grad = torch.randn(*query.shape[:3], value.shape[3])
    results = []
    for size in (None, 1e6):
        some_value, some_grad = value.clone(), grad.clone()
        if size is not None:
            some_value[0, 0, place, 1], some_grad[0, 1, place, 1] = size, size
        out = lambda_apply(query, None, some_value, positions, causal=causal, kernel=kernel)
        leaf = value.clone().requires_grad_()
        unchanged = lambda_apply(query, None, leaf, positions, causal=causal, kernel=kernel)
        (value_grad,) = torch.autograd.grad(unchanged, leaf, some_grad)
        results.append((out[:, :, ~table[:, place]], value_grad[:, :, ~table[place]]))
    return [(a - b).abs().max().item() for a, b in zip(*results, strict=True)]


@pytest.mark.parametrize(
    ("cheapest", "grid", "extents", "causal"),
    [(*case, causal) for *shape, causal in LOCAL for case in kernel_cases(SPREADING, [shape])],
    indirect=["cheapest"],
)
def test_a_large_value_does_not_show_outside_of_its_scope(cheapest, grid, extents, causal):
    assert max(far_apart(grid, extents, causal, None)) < 1e-4
    assert {kernel.spreads_errors for kernel in cheapest} == {True, False}


@pytest.mark.parametrize(
    ("kernel", "grid", "extents", "causal"),
    [
        (*case, causal)
        for *shape, causal in LOCAL
        for case in kernel_cases([n for n in PRESENT if not GRID_KERNELS[n].spreads_errors], [shape])
        if not (causal and case[0] == "banded")
    ],
)
def test_nor_in_a_kernel_by_name(kernel, grid, extents, causal):
    assert max(far_apart(grid, extents, causal, kernel)) == 0


@pytest.mark.parametrize(
    ("cheapest", "grid", "extents", "causal"),
    [
        (*case, causal)
        for *shape, causal in [*LOCAL, ((16, 20), (31, 39), False), ((96,), (191,), False)]
        for case in kernel_cases(SPREADING, [shape])
    ],
    indirect=["cheapest"],
)
def test_a_large_entry_does_not_show_in_queries_without_its_offset(cheapest, grid, extents, causal):
    call = grid_call(grid, extents, u=2, dtype=torch.float32)
    query, _, value, positions = call.args
    has = with_offset(grid, extents, (0,) * len(grid), causal)
    grad = torch.randn(*query.shape[:3], value.shape[3])
    results = []
    for size in (None, 1e6):
        table = positions.table.clone()
        if size is not None:
            table[(1, 2, *(0,) * len(grid))] = size
        leaf = value.clone().requires_grad_()
        out = lambda_apply(query, None, leaf, GridPositions(table, grid), causal=causal)
        (value_grad,) = torch.autograd.grad(out, leaf, grad)
        results.append((out.detach()[:, :, ~has.any(1)], value_grad[:, :, ~has.any(0)]))
    changes = [(a - b).abs().max().item() for a, b in zip(*results, strict=True)]
    assert max(changes) < 1e-3  # two kernels' errors of sums of 2000 products
    assert {kernel.spreads_errors for kernel in cheapest} == {True, False}


@pytest.mark.parametrize("cheapest", SPREADING, indirect=True)
@pytest.mark.parametrize("which", ["query", "value", "grad"])
@pytest.mark.parametrize(("grid", "extents"), [((16, 20), (31, 39)), ((96,), (191,))])
def test_a_large_number_does_not_show_in_offsets_that_its_position_has_not(cheapest, grid, extents, which):
    """In a global context too, where all outputs and all gradients of values see every position."""
    query, _, value, positions = grid_call(grid, extents, dtype=torch.float32).args
    tensors = {"query": query, "value": value, "grad": torch.randn(*query.shape[:3], value.shape[3])}
    gradients = []
    for size in (None, 1e6):
        given = {name: tensor.clone() for name, tensor in tensors.items()}
        if size is not None:
            given[which][0, 0, 0, 1] = size
        table = positions.table.clone().requires_grad_()
        out = lambda_apply(given["query"], None, given["value"], GridPositions(table, grid))
        gradients.append(torch.autograd.grad(out, table, given["grad"])[0])
    # The first query has no position before it; the first value is in front of no query.
    unseen = tuple(slice(0, size // 2) if which != "value" else slice(size, None) for size in grid)
    a, b = (gradient[(..., *unseen)] for gradient in gradients)
    assert (a - b).abs().max() < 1e-3 * a.abs().max()
    assert {kernel.spreads_errors for kernel in cheapest} == {True, False}


@pytest.mark.parametrize("grid", [(16, 20), (96,)])
@pytest.mark.parametrize("kernel", SPREADING)
def test_a_kernel_by_name_is_obeyed_and_errors_follow_the_largest_value(kernel, grid):
    value_error, grad_error = far_apart(grid, (7,) * len(grid), False, kernel)
    assert 1e-4 < max(value_error, grad_error) < 1e6 * 2e-5


@pytest.mark.parametrize(("grid", "extents"), [((16, 20), (31, 39)), ((16, 20), (7, 7)), ((96,), (191,))])
@pytest.mark.parametrize("cheapest", SPREADING, indirect=True)
@pytest.mark.parametrize("has_key", [False, True])
def test_a_large_channel_does_not_show_in_the_others(cheapest, grid, extents, has_key):
    query, key, value, positions = grid_call(grid, extents, u=2, dtype=torch.float32, v=CHANNELS).args
    grad = torch.randn(*query.shape[:3], CHANNELS)
    results = []
    for large_value, large_grad in ((1, 1), (1e6, 1), (1, 1e6)):
        some_value, some_grad = value.clone(), grad.clone()
        some_value[..., 0] *= large_value
        some_grad[..., 0] *= large_grad
        some_value.requires_grad_()
        out = lambda_apply(query, key if has_key else None, some_value, positions)
        (value_grad,) = torch.autograd.grad(out, some_value, some_grad)
        results.append((out.detach()[..., 1:], value_grad[..., 1:]))
    for changed in results[1:]:
        torch.testing.assert_close(changed, results[0], rtol=1e-4, atol=1e-4)
    # A kernel that keeps channels apart takes them all.
    first = cheapest[0]
    assert first.spreads_errors
    if not first.mixes_channels:
        assert {kernel.name for kernel in cheapest} == {first.name}


@pytest.mark.parametrize("cheapest", SPREADING, indirect=True)
def test_values_of_one_size_leave_the_choice_alone(cheapest):
    call = grid_call((16, 20), (7, 7), dtype=torch.float32).requiring_grad()
    lambda_apply(*call.args).square().sum().backward()
    assert [kernel.spreads_errors for kernel in cheapest] == [True, True]


@pytest.fixture(params=["compiled", "by operations"])
def differ(request, monkeypatch):
    """differ_in_size of tensors on a grid, in the compiled library or in PyTorch's operations."""
    if request.param == "by operations":
        monkeypatch.setattr(binding, "check", lambda problem: "left out")
    elif binding.library() is None:
        pytest.skip(f"without compiled kernels: {binding.absence()}")

    def look(grid, extents, query, value, grad=None, channels=False, table=None):
        origin = [extent // 2 for extent in extents]
        one_sided = extents[0] % 2 == 0  # as problems are in causal order
        if one_sided:
            origin[0] = extents[0] - 1
        (b, h, _, k), (_, u, _, v) = query.shape, value.shape
        problem = GridProblem(b, h, k, v, u, grid, extents, tuple(origin), one_sided=one_sided)
        table = torch.ones(u, k, *extents) if table is None else table
        return spread.differ_in_size(problem, query, value, table, grad, channels=channels)

    return look


GRID, LOCAL, WHOLE = (12, 12), (5, 5), (23, 23)


def test_what_counts_as_one_size(differ):
    query, value = torch.ones(2, 3, 144, 4), torch.ones(2, 1, 144, 5)
    assert not differ(GRID, LOCAL, query, value)
    assert not differ(GRID, LOCAL, query, value * 1e30)
    assert not differ(GRID, LOCAL, query, torch.zeros_like(value))
    value[1, 0, 77, 3] = spread.RATIO
    assert not differ(GRID, LOCAL, query, value)
    value[1, 0, 77, 3] = -spread.RATIO * 1.01
    assert differ(GRID, LOCAL, query, value)
    assert not differ(GRID, WHOLE, query, value)
    assert differ(GRID, (12, 23), query, value)
    assert differ(GRID, LOCAL, query, torch.full_like(value, float("nan")))
    quiet = torch.ones_like(value).unflatten(2, GRID)
    quiet[0, 0, 6:9, 6:9, 2] = 0  # a block of three rows and columns
    assert differ(GRID, LOCAL, query, quiet.flatten(2, 3))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("size", "scope"), [(56, 9), (28, 9), (56, 23), (57, 23), (31, 15), (17, 31)])
def test_numbers_of_one_distribution_are_of_one_size(differ, size, scope, causal):
    """At the end of an axis too, where blocks that do not divide it leave a rest."""
    torch.manual_seed(0)
    extents = (scope // 2 + 1 if causal else scope, scope)
    query, value, grad = torch.randn(2, 4, size**2, 16), torch.randn(2, 2, size**2, 16), torch.randn(2, 4, size**2, 16)
    for channels in (False, True):
        assert not differ((size, size), extents, query, value, grad, channels=channels)


@pytest.mark.parametrize("extents", [WHOLE, LOCAL])
def test_what_counts_as_one_size_among_channels(differ, extents):
    query, value = torch.ones(2, 3, 144, 4), torch.ones(2, 1, 144, 5)
    assert not differ(GRID, extents, query, value, channels=True)
    value[1, ..., 3] = spread.RATIO
    assert not differ(GRID, extents, query, value, channels=True)
    value[1, ..., 3] = -spread.RATIO * 1.01
    assert differ(GRID, extents, query, value, channels=True)
    assert not differ(GRID, extents, query, value)
    value[0], value[1] = 1e9 * value[1], 1  # each example by itself
    assert differ(GRID, extents, query, value, channels=True)
    grad = torch.ones(2, 3, 144, 5)
    assert not differ(GRID, extents, query, torch.ones_like(value), grad, channels=True)
    grad[0, ..., 2] = 100
    assert differ(GRID, extents, query, torch.ones_like(value), grad, channels=True)
    for bad in (float("nan"), float("inf")):
        assert differ(GRID, extents, query, torch.full_like(value, bad), channels=True)
        for tensor in (query, grad):
            given = [query.clone(), torch.ones_like(value), torch.ones_like(grad)]
            given[0 if tensor is query else 2][1, 2, 143, 3] = bad
            assert differ(GRID, extents, *given, channels=True)


def test_every_query_of_a_global_context_sees_the_large_values(differ):
    quiet = torch.ones(2, 1, 144, 5)
    quiet[:, :, 5:] = 0
    assert not differ(GRID, WHOLE, torch.ones(2, 3, 144, 4), quiet, channels=True)


def test_on_a_gpu_no_value_is_read():
    value = torch.empty(2, 1, 144, 5, device="meta")
    problem = GridProblem(2, 1, 5, 5, 1, GRID, LOCAL, (2, 2), device="cuda")
    assert spread.differ_in_size(problem, value, value, value)
    everything = dataclasses.replace(problem, extents=WHOLE, origin=(11, 11))
    assert not spread.differ_in_size(everything, value, value, value)


@pytest.mark.parametrize("channels", [False, True])
def test_what_counts_as_one_size_in_a_table(differ, channels):
    query, value = torch.ones(2, 3, 144, 4), torch.ones(2, 1, 144, 5)
    for extents in (WHOLE, LOCAL, (12, 23)):

        def differs(table, extents=extents):
            return differ(GRID, extents, query, value, channels=channels, table=table)

        table = torch.ones(1, 4, *extents)
        assert not differs(table)
        assert not differs(0 * table)
        table[:, 3] = 0  # all keys are one sum
        table[0, 1, 0, 0] = -spread.RATIO
        assert not differs(table)
        table[0, 1, 0, 0] = -spread.RATIO * 1.01
        assert differs(table)
        table[:, :, 0, :] = -spread.RATIO * 1.01
        table[:, :, extents[0] // 2 if extents[0] % 2 else -1] = 99  # the row of offset 0, which every query sees
        assert not differs(table)
        for bad in (float("nan"), float("inf")):
            table[0, 1, 0, 2] = bad
            assert differs(table)


def test_the_largest_entry_that_each_query_sees():
    for grid, extents in [*SHAPES, ((3, 4), (1, 9)), ((6,), (3,)), ((1, 3), (1, 5))]:
        table = torch.randn(2, 3, *extents)
        dense = GridPositions(table.abs().amax((0, 1))[None, None], grid).dense()
        found = spread.largest_seen(table, grid, [extent // 2 for extent in extents])
        assert torch.equal(found.flatten(), dense.amax((1, 2, 3)))


def test_in_backward_a_global_context_is_compared_too(differ):
    query, value, grad = torch.ones(2, 3, 144, 4), torch.ones(2, 1, 144, 5), torch.ones(2, 3, 144, 5)
    assert not differ(GRID, WHOLE, query, value, grad)
    for tensor in (query, value, grad):
        tensor[1, 0, 70, 2] = spread.RATIO * 1.01
        assert differ(GRID, WHOLE, query, value, grad)
        tensor[1, 0, 70, 2] = 1
    value[1, 0, 70, 2] = spread.RATIO * 1.01
    assert not differ(GRID, WHOLE, query, value)
