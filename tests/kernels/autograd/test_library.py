"""The library op in PyTorch's machinery: opcheck, compile, export, vmap, autocast, what it keeps."""

from dataclasses import replace

import pytest
import torch
from torch.autograd import gradgradcheck
from torch.library import opcheck

from helpers import EVERYWHERE, ORDERS, PRESENT, assert_same, context_call, grid_call
from lambdanets import GridPositions, LambdaLayer, lambda_apply
from lambdanets.kernels.terms.grid import GRID_OP


def op_args(kernel="", requires_grad=True):
    call = grid_call((4, 5), (3, 3), u=2)
    tensors = [t.requires_grad_(requires_grad) for t in (call.query, call.value, call.positions.table)]
    return (*tensors, [4, 5], [1, 1], kernel)


@pytest.mark.parametrize("kernel", ["", *EVERYWHERE])
def test_opcheck(kernel):
    opcheck(GRID_OP.forward_op, op_args(kernel))
    grad = torch.randn(2, 3, 20, 5, dtype=torch.float64)
    opcheck(GRID_OP.backward_op, (grad, *op_args(kernel, requires_grad=False)))


def test_second_derivatives_of_the_op_itself():
    """As a dispatch mode or a graph calls it, by its registered derivatives."""
    call = grid_call((2, 3), (3, 3), b=1, h=2, k=2, v=2)
    tensors = [t.requires_grad_() for t in (call.query, call.value, call.positions.table)]
    assert gradgradcheck(lambda *tensors: GRID_OP.forward_op(*tensors, [2, 3], [1, 1], ""), tensors)


def test_compiles_without_graph_breaks_for_any_size():
    layer = LambdaLayer(8, scope=3, dim_key=4, dtype=torch.float64).eval()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in ((2, 8, 6, 5), (3, 8, 7, 9)):
        x = torch.randn(size, dtype=torch.float64)
        torch.testing.assert_close(compiled(x), layer(x))


def test_compiled_gradients_are_the_eager_ones():
    layer = LambdaLayer(8, scope=3, dim_key=4, dtype=torch.float64)
    x = torch.randn(2, 8, 6, 5, dtype=torch.float64)
    expected = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    actual = torch.autograd.grad(compiled(x).square().sum(), list(layer.parameters()))
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-10)


def test_exports_with_dynamic_batch_height_and_width():
    layer = LambdaLayer(8, scope=3, dim_key=4, dtype=torch.float64).eval()
    dim = torch.export.Dim
    shapes = {"x": {0: dim("batch", max=64), 2: dim("height", max=64), 3: dim("width", max=64)}}
    program = torch.export.export(layer, (torch.randn(2, 8, 6, 5, dtype=torch.float64),), dynamic_shapes=shapes)
    x = torch.randn(3, 8, 9, 4, dtype=torch.float64)
    torch.testing.assert_close(program.module()(x), layer(x))


def test_vmap_over_tables():
    call = grid_call((4, 3), (3, 5))
    tables = torch.randn(3, *call.positions.table.shape, dtype=torch.float64)
    actual = torch.func.vmap(lambda table: lambda_apply(*call.args[:3], GridPositions(table, (4, 3))))(tables)
    for table, out in zip(tables, actual, strict=True):
        torch.testing.assert_close(out, lambda_apply(*call.args[:3], GridPositions(table, (4, 3))))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    layer = LambdaLayer(8, scope=3, dim_key=4)
    x = torch.randn(2, 8, 6, 5)
    expected = layer(x)
    with torch.autocast("cpu", dtype=dtype):
        out = layer(x)
    assert out.dtype == dtype
    out.float().square().sum().backward()
    assert layer.positions.grad.dtype == torch.float32
    torch.testing.assert_close(out.float(), expected, atol=0.1, rtol=0.1)


@pytest.mark.smoke
@pytest.mark.parametrize("kernel", EVERYWHERE)
def test_keeps_nothing_but_its_inputs(kernel):
    args = op_args(kernel)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        GRID_OP(*args)
    inputs = {t.untyped_storage().data_ptr() for t in args[:3]}
    assert {t.untyped_storage().data_ptr() for t in kept} <= inputs


def negated(tensor):
    """The same numbers in memory that holds their negatives, as the imaginary part of a conjugate."""
    view = torch.complex(torch.zeros_like(tensor), -tensor).conj().imag
    assert view.is_neg()
    return view


@pytest.mark.parametrize(
    ("name", "causal", "kernel", "has_key"),
    [
        *((name, causal, None, True) for name, causal in ORDERS),
        *(("image, local", False, kernel, has_key) for kernel in PRESENT for has_key in (True, False)),
    ],
)
def test_tensors_whose_sign_is_a_note(name, causal, kernel, has_key):
    call = context_call(name, causal, masked=False, u=2)
    leaves = [leaf.float() for leaf in call.leaves()]
    results = []
    for change in (lambda t: t, negated):
        given = [change(leaf).detach().requires_grad_() for leaf in leaves]
        positions = call.positions
        if positions is not None:
            field = "table" if hasattr(positions, "table") else "embedding"
            positions = replace(positions, **{field: given[3]})
        key = given[1] if has_key else None
        out = lambda_apply(given[0], key, given[2], positions, causal=causal, kernel=kernel)
        grads = torch.autograd.grad(out, given, change(torch.ones_like(out)), allow_unused=True)
        with torch.no_grad():
            results.append(
                [out, lambda_apply(given[0], key, given[2], positions, causal=causal, kernel=kernel), *grads]
            )
    # Sums of up to 720 products around 1 (the table's gradient), in float32 and perhaps in another order.
    assert_same(*results, atol=720 * torch.finfo(torch.float32).eps, rtol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kernel", [None, *EVERYWHERE, "portable", "reference"])
def test_empty_batch(kernel, causal):
    call = grid_call((3, 3), (3, 3), b=0).requiring_grad()
    out = lambda_apply(*call.args, causal=causal, kernel=kernel)
    assert out.shape == (0, 3, 9, 5)
    out.sum().backward()
    assert torch.equal(call.positions.table.grad, torch.zeros_like(call.positions.table))
