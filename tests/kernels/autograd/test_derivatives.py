"""Derivatives beyond the first in reverse mode: second ones, forward mode, many at once; and tracing."""

import io
from dataclasses import replace

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from helpers import EVERYWHERE, dense_call, edge_call, grid_call, random_call
from lambdanets import DensePositions, EdgePositions, GridPositions, LambdaLayer, lambda_apply
from lambdanets.functional import lambda_apply_by_graph

CPU_KERNELS = EVERYWHERE
CALLS = {
    "grid": lambda: grid_call((3, 4), (3, 3), u=2, b=1, h=2, k=2, v=2),
    "sequence": lambda: grid_call((5,), (9,), b=2, h=1, k=2, v=3),
    "dense": lambda: dense_call(3, 4, u=2, b=1, h=2, k=2, v=2),
    "edges": lambda: edge_call(3, 4, 5, u=2, b=1, h=2, k=2, v=2),
}


def op_and_leaves(call, kernel=None, key=True):
    """The op as a function of its tensors alone."""
    leaves = call.requiring_grad().leaves()

    def op(query, key_, value, table):
        name = "table" if hasattr(call.positions, "table") else "embedding"
        positions = replace(call.positions, **{name: table})
        return lambda_apply(query, key_ if key else None, value, positions, kernel=kernel)

    return op, leaves


@pytest.mark.parametrize("kind", CALLS)
def test_first_and_second_derivatives(kind):
    op, leaves = op_and_leaves(CALLS[kind]())
    assert gradcheck(op, leaves, check_batched_grad=True, check_forward_ad=True)
    assert gradgradcheck(op, leaves)


@pytest.mark.parametrize("kernel", CPU_KERNELS)
def test_second_derivatives_of_every_kernel(kernel):
    op, leaves = op_and_leaves(grid_call((4, 3), (3, 3), b=1, h=2, k=2, v=2), kernel, key=False)
    assert gradgradcheck(lambda query, value, table: op(query, None, value, table), [leaves[0], *leaves[2:]])


@pytest.mark.parametrize("kind", CALLS)
def test_hessian_of_torch_func(kind):
    call = CALLS[kind]()
    op, leaves = op_and_leaves(call)
    expected_op, _ = op_and_leaves(call, "reference")
    query, key, value, table = (leaf.detach() for leaf in leaves)

    def loss(function):
        return lambda q, v, t: function(q, key, v, t).square().sum()

    actual = torch.func.hessian(loss(op), argnums=(0, 1, 2))(query, value, table)
    expected = torch.func.hessian(loss(expected_op), argnums=(0, 1, 2))(query, value, table)
    torch.testing.assert_close(actual, expected, atol=1e-9, rtol=1e-9)


def causal_content():
    query, key, value = (t.requires_grad_() for t in random_call(5, b=1).args[:3])
    return lambda_apply(query, key, value, causal=True), value


def test_causal_content_says_what_has_second_derivatives():
    out, value = causal_content()
    (grad,) = torch.autograd.grad(out.square().sum(), value, create_graph=True)
    with pytest.raises(NotImplementedError, match="kernel='reference'"):
        grad.sum().backward()


def test_many_gradients_of_causal_content_at_once():
    out, value = causal_content()
    cotangents = torch.randn(3, *out.shape, dtype=out.dtype)
    (batched,) = torch.autograd.grad(out, value, cotangents, is_grads_batched=True, retain_graph=True)
    single = [torch.autograd.grad(out, value, cotangent, retain_graph=True)[0] for cotangent in cotangents]
    torch.testing.assert_close(batched, torch.stack(single), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("kernel", [*CPU_KERNELS, None])
@pytest.mark.parametrize("requires_grad", [True, False])
def test_outputs_may_be_written_in_place(kernel, requires_grad):
    call = grid_call((4, 5), (3, 3))
    query = call.query.requires_grad_(requires_grad)
    out = lambda_apply(query, None, call.value, call.positions, kernel=kernel)
    expected = out.detach().clone().relu()
    torch.testing.assert_close(out.relu_().detach(), expected)
    if requires_grad:
        out.sum().backward()


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("context", [{"scope": 7}, {"size": 12}])
def test_a_traced_layer_serves_other_batches_and_can_be_saved(context):
    layer = LambdaLayer(16, dim_key=4, dtype=torch.float64, **context).eval()
    x = torch.randn(1, 16, 12, 12, dtype=torch.float64)
    traced = torch.jit.trace(layer, x)
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    loaded = torch.jit.load(file)
    for batch in (1, 3):
        x = torch.randn(batch, 16, 12, 12, dtype=torch.float64)
        torch.testing.assert_close(loaded(x), layer(x))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_named_kernel_cannot_be_traced():
    layer = LambdaLayer(16, dim_key=4, scope=3, kernel="banded").eval()
    with pytest.raises(ValueError, match=r"kernel='banded' cannot be traced"):
        torch.jit.trace(layer, torch.randn(1, 16, 6, 6))


POSITIONS = {
    "content": None,
    "grid": lambda: GridPositions(torch.randn(1, 4, 3, 5), (3, 4)),
    "dense": lambda: DensePositions(torch.randn(12, 12, 4, 1)),
    "edges": lambda: EdgePositions(torch.randint(12, (2, 20)), torch.randn(20, 4, 1)),
}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", POSITIONS)
def test_vmap_over_no_samples(name, causal):
    positions = POSITIONS[name]() if POSITIONS[name] else None
    query, key, value = (t[None][:0] for t in random_call(12, b=2, u=1, dtype=torch.float32).args[:3])

    def op(query, key, value):
        return lambda_apply(query, key, value, positions, causal=causal)

    assert torch.func.vmap(op)(query, key, value).shape == (0, 2, 3, 12, 5)
    others = (torch.zeros(t.shape[1:]) for t in (key, value))
    last = torch.func.vmap(op, in_dims=(4, None, None))(torch.zeros(2, 3, 12, 4, 0), *others)
    assert last.shape == (0, 2, 3, 12, 5)
    grads = torch.func.vmap(torch.func.grad(lambda *args: op(*args).sum(), argnums=(0, 1, 2)))(query, key, value)
    assert [grad.shape for grad in grads] == [query.shape, key.shape, value.shape]


@pytest.mark.parametrize("bad", [False, True])
@pytest.mark.parametrize("kernel", [None, "portable"])
def test_vmap_over_no_indices(kernel, bad):
    """Of graphs and of edges, with a value that is not finite too."""
    query, key, value = (torch.randn(2, 3, 7, depth) for depth in (4, 4, 5))
    if bad:
        value[0, 0, 2, 1] = float("nan")
    none = torch.zeros(0, 7, dtype=torch.long)
    out = torch.func.vmap(lambda batch: lambda_apply_by_graph(query, key, value, batch, 2))(none)
    assert out.shape == (0, 2, 3, 7, 5)
    embedding = torch.randn(6, 4, 3)

    def by_edges(index):
        return lambda_apply(query, None, value, EdgePositions(index, embedding), kernel=kernel)

    assert torch.func.vmap(by_edges)(torch.zeros(0, 2, 6, dtype=torch.long)).shape == (0, 2, 3, 7, 5)


def test_vmap_over_no_shared_tensors():
    call = random_call(12, b=2, dtype=torch.float32)

    def on_grid(table):
        return lambda_apply(*call.args[:3], GridPositions(table, (3, 4)))

    def dense(embedding):
        return lambda_apply(*call.args[:3], DensePositions(embedding))

    for op, numbers in ((on_grid, torch.randn(0, 1, 4, 3, 5)), (dense, torch.randn(0, 12, 12, 4, 1))):
        assert torch.func.vmap(op)(numbers).shape == (0, 2, 3, 12, 5)
        grads = torch.func.vmap(torch.func.grad(lambda numbers, op=op: op(numbers).sum()))(numbers)
        assert grads.shape == numbers.shape


@pytest.mark.parametrize("has_key", [False, True])
@pytest.mark.parametrize("name", [name for name in POSITIONS if name != "content"])
def test_many_tangents_at_once(name, has_key):
    positions = POSITIONS[name]()
    query, key, value = random_call(12, b=1, h=2, v=3, dtype=torch.float32).args[:3]
    ops = (
        (lambda query: lambda_apply(query, key if has_key else None, value, positions), query),
        (lambda value: lambda_apply(query, key if has_key else None, value, positions), value),
    )
    for op, x in ops:
        forward = torch.autograd.functional.jacobian(op, x, vectorize=True, strategy="forward-mode")
        torch.testing.assert_close(forward, torch.autograd.functional.jacobian(op, x), atol=1e-5, rtol=1e-5)
