"""Gradients of one example in every mode: PyTorch's batch-norms misread some strides of it."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lambdanets import LambdaLayer


def of_eager(layer, x):
    return torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))


def of_compiled(backend):
    def grads(layer, x):
        torch._dynamo.reset()
        compiled = torch.compile(layer, backend=backend, fullgraph=True)
        return torch.autograd.grad(compiled(x).square().sum(), list(layer.parameters()))

    return grads


def loss_of(layer, x):
    return lambda parameters: torch.func.functional_call(layer, parameters, (x,)).square().sum()


def of_func(layer, x):
    return tuple(torch.func.grad(loss_of(layer, x))(dict(layer.named_parameters())).values())


def of_vmap(layer, x):
    def each(parameters, example):
        return loss_of(layer, example[None])(parameters)

    grads = torch.func.vmap(torch.func.grad(each), in_dims=(None, 0))(dict(layer.named_parameters()), x)
    return tuple(grad[0] for grad in grads.values())


def of_watched(layer, x):
    with FlopCounterMode(display=False):
        return of_eager(layer, x)


@pytest.mark.parametrize(
    "way",
    [of_eager, of_compiled("eager"), of_compiled("aot_eager"), of_func, of_vmap, of_watched],
    ids=["eager", "compile-eager", "compile-aot_eager", "func", "vmap", "watched"],
)
@pytest.mark.parametrize(
    "options", [{"size": (6, 5)}, {"scope": 3, "num_heads": 1}, {"scope": 3, "ndim": 3, "intra_depth": 2}], ids=str
)
def test_gradients_are_those_of_the_equations(way, options):
    grid = (6, 5) if options.get("ndim", 2) == 2 else (3, 4, 2)
    layer = LambdaLayer(8, dim_key=4, **options).double().eval()
    x = torch.randn(1, 8, *grid, dtype=torch.float64)
    actual = way(layer, x)
    # The same example twice: PyTorch reads two examples rightly, and their gradients add up.
    for name, grad, expected in zip(
        dict(layer.named_parameters()), actual, of_eager(layer, torch.cat([x, x])), strict=True
    ):
        torch.testing.assert_close(
            grad, expected / 2, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_forward_mode():
    layer = LambdaLayer(8, dim_key=4, scope=3).double().eval()
    x, tangent = torch.randn(2, 1, 8, 5, 4, dtype=torch.float64)
    _, actual = torch.func.jvp(layer, (x,), (tangent,))
    step = 1e-6
    expected = (layer(x + step * tangent) - layer(x - step * tangent)) / (2 * step)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-7)
