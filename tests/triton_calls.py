"""Calls of the Triton kernels against the reference."""

from dataclasses import replace

import torch

from helpers import grid_call
from lambdanets import GridPositions, lambda_apply

# A sum of a few hundred products in float32, in relation to the norm of the whole; 2e-7 is what they come to.
# Half precision: S and the output are rounded once each. The interpreter rounds to bfloat16 by cutting off, so twice.
LIMITS = {torch.float32: 1e-6, torch.float16: 2**-10, torch.bfloat16: 1.5 * 2**-7}


def apply(call, kernel):
    return lambda_apply(call.query, None, call.value, call.positions, **call.kwargs, kernel=kernel)


def assert_exact(kernel, call, device, limit=None):
    """Output and gradients against the reference in float64, from the same inputs."""
    limit = limit or LIMITS[call.query.dtype]
    exact = grid_call((1,), (1,))
    exact.query, exact.key, exact.value = (t.double() for t in call.args[:3])
    exact.positions = GridPositions(call.positions.table.double(), call.positions.grid)
    exact.mask, exact.causal = call.mask, call.causal
    grad = torch.randn(*call.query.shape[:3], call.value.shape[3]).to(call.query.dtype)
    positions = GridPositions(call.positions.table.to(device), call.positions.grid)
    moved = replace(call, query=call.query.to(device), value=call.value.to(device), positions=positions)
    moved = moved.requiring_grad()
    tensors = [moved.query, moved.value, moved.positions.table]
    out = apply(moved, kernel)
    actual = [out, *torch.autograd.grad(out, tensors, grad.to(device))]
    exact = exact.requiring_grad()
    expected_out = apply(exact, "reference")
    leaves = [exact.query, exact.value, exact.positions.table]
    expected = [expected_out, *torch.autograd.grad(expected_out, leaves, grad.double())]
    for name, a, e in zip(("output", "query", "value", "table"), actual, expected, strict=True):
        error = (a.detach().cpu().double() - e.detach()).norm() / e.detach().norm().clamp_min(1e-30)
        assert error < limit, f"{name}: relative error {error:.1e}"
