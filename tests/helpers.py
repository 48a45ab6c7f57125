"""Random calls of the op, and what models need for their outputs to be worth comparing."""

import importlib
import importlib.util
import math
import sys
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lambdanets import DensePositions, EdgePositions, GridPositions
from lambdanets.kernels.grid.compiled.binding import absence
from lambdanets.kernels.grid.planner import GRID_KERNELS

# Kernels for every machine and every precision, float64 with them.
EVERYWHERE = [name for name, kernel in GRID_KERNELS.items() if kernel.device is None]
# Kernels for CPUs, those that this installation lacks included; and those that it has.
FOR_CPUS = [name for name, kernel in GRID_KERNELS.items() if kernel.device in (None, "cpu")]
FOR_CUDA = [name for name, kernel in GRID_KERNELS.items() if kernel.device == "cuda"]
PRESENT = [name for name in FOR_CPUS if name in EVERYWHERE or absence() is None]


@dataclass
class Call:
    """Arguments of one call of ``lambda_apply``."""

    query: Tensor
    key: Tensor
    value: Tensor
    positions: object = None
    mask: Tensor | None = None
    causal: bool = False

    @property
    def args(self):
        return self.query, self.key, self.value, self.positions

    @property
    def kwargs(self):
        return {"mask": self.mask, "causal": self.causal}

    def leaves(self):
        """The tensors that gradients are asked of."""
        positions = () if self.positions is None else (positions_tensor(self.positions),)
        return (self.query, self.key, self.value, *positions)

    def requiring_grad(self):
        """The same call with fresh leaves."""
        fresh = [leaf.detach().clone().requires_grad_() for leaf in self.leaves()]
        positions = self.positions
        if positions is not None:
            name = "table" if isinstance(positions, GridPositions) else "embedding"
            positions = replace(positions, **{name: fresh[3]})
        return replace(self, query=fresh[0], key=fresh[1], value=fresh[2], positions=positions)


def load_script(name):
    """The module of ``scripts/NAME.py``, which is in no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "scripts" / f"{name}.py")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)  # where dataclasses look for their module
    spec.loader.exec_module(module)
    return module


def positions_tensor(positions):
    return positions.table if isinstance(positions, GridPositions) else positions.embedding


def random_call(n, m=None, *, b=2, h=3, k=4, v=5, u=1, positions=None, dtype=torch.float64):
    """Random query, key and value for n queries and m context positions."""
    m = n if m is None else m
    return Call(
        torch.randn(b, h, n, k, dtype=dtype),
        torch.randn(b, u, m, k, dtype=dtype),
        torch.randn(b, u, m, v, dtype=dtype),
        positions,
    )


def grid_call(grid, extents, *, k=4, u=1, dtype=torch.float64, **sizes):
    """A random call with a table of the given extents on a grid."""
    positions = GridPositions(torch.randn(u, k, *extents, dtype=dtype), grid)
    return random_call(math.prod(grid), k=k, u=u, positions=positions, dtype=dtype, **sizes)


def dense_call(n, m, *, k=4, u=1, dtype=torch.float64, **sizes):
    positions = DensePositions(torch.randn(n, m, k, u, dtype=dtype))
    return random_call(n, m, k=k, u=u, positions=positions, dtype=dtype, **sizes)


def edge_call(n, m, edges, *, k=4, u=1, dtype=torch.float64, **sizes):
    index = torch.stack([torch.randint(n, (edges,)), torch.randint(m, (edges,))])
    positions = EdgePositions(index, torch.randn(edges, k, u, dtype=dtype))
    return random_call(n, m, k=k, u=u, positions=positions, dtype=dtype, **sizes)


# Every kind of context, each for a given u; those whose queries are their context have a causal order too.
CONTEXTS = {
    "content": lambda u: random_call(9, u=u),
    "content, cross": lambda u: random_call(5, 9, u=u),
    "sequence, global": lambda u: grid_call((21,), (41,), u=u),
    "sequence, local": lambda u: grid_call((21,), (5,), u=u),
    "image, global": lambda u: grid_call((4, 5), (7, 9), u=u),
    "image, local": lambda u: grid_call((4, 5), (3, 5), u=u),
    "volume, global": lambda u: grid_call((2, 3, 3), (3, 5, 5), u=u),
    "volume, local": lambda u: grid_call((2, 3, 4), (3, 1, 3), u=u),
    "dense": lambda u: dense_call(7, 7, u=u),
    "dense, cross": lambda u: dense_call(5, 9, u=u),
    "edges": lambda u: edge_call(7, 7, 20, u=u),
    "edges, cross": lambda u: edge_call(5, 9, 31, u=u),
}
ORDERS = [(name, causal) for name in CONTEXTS for causal in (False, True) if not (causal and name.endswith("cross"))]


def context_call(name, causal, masked, u):
    """A call of one of the contexts; masked at random, and causal queries see nothing at first."""
    call = CONTEXTS[name](u)
    call.causal = causal
    if masked:
        b, _, m = call.value.shape[:3]
        call.mask = torch.rand(b, m) < 0.6
        call.mask[:, :2] = False
        call.mask[:, 2] = True
    return call


# A kernel whose sizes of blocks stand in a second file.
PLANS = {"grid.row_spectral": "grid.row_spectral_plan"}


def modules_of(name):
    """The modules of ``lambdanets.kernels`` that make one kernel."""
    names = [name, PLANS[name]] if name in PLANS else [name]
    return [importlib.import_module(f"lambdanets.kernels.{name}") for name in names]


@contextmanager
def small_blocks(name, **sizes):
    """A kernel of ``lambdanets.kernels`` with other sizes of blocks, and nothing cached from before or for later.

    Raises:
        AttributeError: if the kernel has no such constant.
    """
    modules = modules_of(name)
    cached = [value for module in modules for value in vars(module).values() if hasattr(value, "cache_clear")]
    with pytest.MonkeyPatch.context() as patch:
        for constant, size in sizes.items():
            module = next((module for module in modules if hasattr(module, constant)), modules[0])
            patch.setattr(module, constant, size)
        for function in cached:
            function.cache_clear()
        try:
            yield
        finally:
            for function in cached:
                function.cache_clear()


def refuses(kernel, grid, extents):
    """True if a kernel is expected not to run on a table of these extents: what the kernels' checks must say."""
    if kernel == "banded":
        sees_all = all(extent // 2 >= size - 1 for size, extent in zip(grid, extents, strict=True))
        return sees_all and math.prod(grid) > 1
    return kernel in ("row_spectral", "query_first_compiled", "spectral_compiled") and len(grid) == 3


def kernel_cases(kernels, shapes):
    """Each kernel with each (grid, extents) that it takes."""
    return [(kernel, *shape) for kernel in kernels for shape in shapes if not refuses(kernel, *shape[:2])]


def outputs_and_gradients(apply, call, seed=1):
    """Output of ``apply(call)`` and the gradients of all inputs under a random output gradient."""
    call = call.requiring_grad()
    out = apply(call)
    grad = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(seed))
    grads = torch.autograd.grad(out, call.leaves(), grad, allow_unused=True, materialize_grads=True)
    return [out.detach(), *grads]


def assert_same(actual, expected, atol=1e-10, rtol=1e-10):
    """Outputs and gradients agree, tensor by tensor."""
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, atol=atol, rtol=rtol)


def random_norms(model, generator=None):
    """Random batch-norms: the last one of a fresh block has the weight 0, under which no lambda layer counts."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, std=0.2, generator=generator)
            nn.init.normal_(module.running_mean, std=0.2, generator=generator)
            nn.init.uniform_(module.running_var, 0.5, 1.5, generator=generator)
    return model


def assert_same_weights(model, expected):
    """Every parameter and buffer, bit for bit."""
    torch.testing.assert_close(model.state_dict(), expected.state_dict(), atol=0, rtol=0)
