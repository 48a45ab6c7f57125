"""Half precision: sums accumulate in float32, so errors stay near those of PyTorch's own attention."""

import pytest
import torch
import torch.nn.functional as F

from lambdanets import GridPositions, lambda_apply
from lambdanets.kernels.planner import kernels_for

SIZE, HEADS, DIM_KEY, DIM_VALUE = 9, 4, 16, 32
N = SIZE**2


def errors(function, tensors, dtype):
    """Relative errors of the output and the gradients against float64, from the same rounded inputs."""
    rounded = [t.to(dtype).requires_grad_() for t in tensors]
    exact = [t.detach().double().requires_grad_() for t in rounded]
    out, expected = function(*rounded), function(*exact)
    grad = torch.randn(expected.shape, dtype=torch.float64).to(dtype)
    actual = [out, *torch.autograd.grad(out, rounded, grad)]
    exact = [expected, *torch.autograd.grad(expected, exact, grad.double())]
    return [(a.double() - e).norm().item() / e.norm().item() for a, e in zip(actual, exact, strict=True)]


def attention_errors(dtype):
    tensors = [torch.randn(2, HEADS, N, DIM_VALUE) for _ in range(3)]
    return errors(F.scaled_dot_product_attention, tensors, dtype)


def lambda_tensors(scope, u):
    return [
        torch.randn(2, HEADS, N, DIM_KEY) * DIM_KEY**-0.5,
        torch.randn(2, u, N, DIM_KEY),
        torch.randn(2, u, N, DIM_VALUE),
        torch.randn(u, DIM_KEY, scope, scope) * (u * min(scope**2, N)) ** -0.5,
    ]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("u", [1, 4])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("kernel", "scope"), [*((kernel, 5) for kernel in kernels_for("cpu")), (None, 2 * SIZE - 1)])
def test_errors_are_within_twice_those_of_attention(kernel, scope, causal, u, dtype):
    def op(query, key, value, table):
        return lambda_apply(query, key, value, GridPositions(table, (SIZE, SIZE)), causal=causal, kernel=kernel)

    limit = attention_errors(dtype)
    actual = errors(op, lambda_tensors(scope, u), dtype)
    assert actual[0] < 2 * limit[0]
    assert max(actual[1:]) < 2 * max(limit[1:])
