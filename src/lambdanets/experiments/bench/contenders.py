"""Modules that are measured side by side: our layer, each of its kernels, and others for the same shape."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lambdanets.experiments.bench.cases import Case
from lambdanets.functional import lambda_apply
from lambdanets.kernels.grid.contract import GridInputs, GridProblem
from lambdanets.kernels.grid.planner import choose, explain
from lambdanets.layers import LambdaLayer
from lambdanets.positions import GridPositions

__all__ = ["OP", "Attention", "Contender", "Op", "contenders", "grid_inputs", "grid_problem", "peers_for"]

OP = "op:lambdanets"


@dataclass
class Contender:
    """A module and the input that it takes.

    Args:
        name: in the result files.
        module: maps ``x`` to an output.
        x: its input.
        checked: the output must equal our layer's.
        note: a remark for the result file.
    """

    name: str
    module: nn.Module
    x: Tensor
    checked: bool
    note: str = ""


class Attention(nn.Module):
    """``F.scaled_dot_product_attention`` alone: no projections, so less work than a layer has."""

    def forward(self, qkv: Tensor) -> Tensor:
        """(3, b, h, n, d / h) -> (b, h, n, d / h)."""
        return F.scaled_dot_product_attention(*qkv)


class Op(nn.Module):
    """The op alone, on (q, k, v) packed along the last axis; its table is a parameter."""

    def __init__(self, case: Case, kernel: str | None = None):
        super().__init__()
        context = math.prod(min(size, extent) for size, extent in zip(case.grid, case.extents, strict=True))
        std = (case.dim_key * case.intra_depth * context) ** -0.5
        self.table = nn.Parameter(torch.randn(case.intra_depth, case.dim_key, *case.extents) * std)
        self.grid, self.kernel = case.grid, kernel
        self.heads, self.depth, self.dim_key = case.num_heads, case.intra_depth, case.dim_key

    def forward(self, packed: Tensor) -> Tensor:
        """(b, n, h k + u k + u v) -> (b, h, n, v), as a projection hands it over."""
        h, u, k = self.heads, self.depth, self.dim_key
        query, key, value = packed.split([h * k, u * k, packed.shape[2] - (h + u) * k], dim=2)
        query, key, value = (
            t.unflatten(2, (count, -1)).transpose(1, 2) for t, count in ((query, h), (key, u), (value, u))
        )
        return lambda_apply(query, key, value, GridPositions(self.table, self.grid), kernel=self.kernel)


class _Reshaped(nn.Module):
    """Wrapper that gives a module for images a sequence as an image of one row."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """(b, d, n) -> (b, d, n)."""
        return self.module(x.unsqueeze(2)).squeeze(2)


def _ours(case: Case, kernel: str | None = None) -> LambdaLayer:
    return LambdaLayer(
        case.dim,
        num_heads=case.num_heads,
        dim_key=case.dim_key,
        intra_depth=case.intra_depth,
        scope=case.scope,
        size=case.grid if case.scope is None else None,
        ndim=len(case.grid),
        kernel=kernel,
    )


@torch.no_grad()
def _lucidrains(case: Case, ours: LambdaLayer) -> nn.Module:
    from lambda_networks import LambdaLayer as Layer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.meshgrid without an indexing argument
        layer = Layer(
            case.dim,
            dim_k=case.dim_key,
            n=case.grid[0] if case.scope is None else None,
            r=case.scope,
            heads=case.num_heads,
            dim_u=case.intra_depth,
        )
    widths = [case.num_heads * case.dim_key, case.intra_depth * case.dim_key, -1]
    widths[2] = ours.qkv.weight.shape[0] - sum(widths[:2])
    parts = ours.qkv.weight.split(widths)
    for conv, weight in zip((layer.to_q, layer.to_k, layer.to_v), parts, strict=True):
        conv.weight.copy_(weight)
    if case.scope is None:
        layer.rel_pos_emb.copy_(ours.positions.permute(2, 3, 1, 0))
    else:
        layer.pos_conv.weight.copy_(ours.positions.transpose(0, 1)[:, :, None])
        layer.pos_conv.bias.zero_()
    return layer


@torch.no_grad()
def _timm(case: Case, ours: LambdaLayer) -> nn.Module:
    from timm.layers.lambda_layer import LambdaLayer as Layer

    grid = case.grid if len(case.grid) == 2 else (1, *case.grid)
    make: Callable[..., Any] = Layer  # its annotations allow neither "no scope" nor the parts to be there
    layer = make(
        case.dim, feat_size=grid, num_heads=case.num_heads, dim_head=case.dim_key, r=case.scope, qkv_bias=False
    )
    layer.qkv.weight.copy_(ours.qkv.weight.reshape(layer.qkv.weight.shape))
    if case.scope is None:
        layer.pos_emb.copy_(ours.positions[0].movedim(0, -1).reshape(layer.pos_emb.shape))
    else:
        layer.conv_lambda.weight.copy_(ours.positions.transpose(0, 1)[..., None])
        layer.conv_lambda.bias.zero_()
    return layer if len(case.grid) == 2 else _Reshaped(layer)


# A peer whose n x n tables would pass this is left out: it would need more memory than most machines have.
LARGEST_TABLE_BYTES = 3 << 30


def _peer_fits(case: Case) -> bool:
    """True if the three n x n x k x u tables that a peer's global layer makes in a training step have room."""
    return case.scope is not None or 3 * case.positions**2 * case.dim_key * case.intra_depth * 4 <= LARGEST_TABLE_BYTES


def peers_for(case: Case) -> list[str]:
    """Names of the other implementations that can compute a case and have room for it."""
    rank = len(case.grid)
    global_ = case.scope is None
    found = []
    if rank == 2 and (not global_ or len({*case.grid}) == 1):  # its global layers are for squares
        found.append("lucidrains")
    if case.intra_depth == 1 and (rank == 2 or (rank == 1 and global_)):  # its local layers are for images
        found.append("timm")
    return found if _peer_fits(case) else []


# So many times the estimate of the cheapest kernel.
HOPELESS = 4


def _hopeful(problem: GridProblem) -> list[str]:
    """Names of the kernels that can run and might be the fastest."""
    able = [verdict for verdict in explain(problem) if verdict.reason is None]
    forward = min(verdict.forward_seconds for verdict in able)
    backward = min(verdict.backward_seconds for verdict in able)
    return [
        verdict.name
        for verdict in able
        if min(verdict.forward_seconds / forward, verdict.backward_seconds / backward) <= HOPELESS
    ]


def contenders(case: Case, kernels: bool = True) -> Iterator[Contender]:
    """Yield the contenders for a case; those that cannot do it, or have no room for it, are left out.

    Args:
        case: the shape.
        kernels: our other kernels are contenders too, but for those that the planner takes to be ``HOPELESS`` times
            slower in both passes.
    """
    torch.manual_seed(0)
    ours = _ours(case)
    x = torch.randn(case.batch, case.dim, *case.grid)
    problem = grid_problem(case)
    yield Contender(
        "lambdanets",
        ours,
        x,
        True,
        f"{choose(problem, False).name} / {choose(problem, True).name}",
    )
    if kernels:
        for name in _hopeful(problem):
            layer = _ours(case, name)
            layer.load_state_dict(ours.state_dict())
            yield Contender(f"lambdanets:{name}", layer, x, True)
    peers = peers_for(case)
    if "lucidrains" in peers:
        yield Contender("lucidrains", _lucidrains(case, ours), x, True)
    if "timm" in peers:
        yield Contender("timm", _timm(case, ours), x, True)
    packed = torch.randn(case.batch, case.projected, case.positions).transpose(1, 2)
    yield Contender(OP, Op(case), packed, False, "lambda_apply without projections and norms")
    if case.scope is None:  # over the whole map: beside a local context it would do another thing
        qkv = torch.randn(3, case.batch, case.num_heads, case.positions, case.dim // case.num_heads)
        yield Contender("attention", Attention(), qkv, False, "scaled_dot_product_attention without projections")
    conv: Callable[..., nn.Module] = nn.Conv2d if len(case.grid) == 2 else nn.Conv1d
    yield Contender("convolution", conv(case.dim, case.dim, 3, padding=1, bias=False), x, False, "3 wide, d to d")


def grid_inputs(case: Case) -> GridInputs:
    """Return random inputs of the position term of a case."""
    query = torch.randn(case.batch, case.num_heads, case.positions, case.dim_key)
    value = torch.randn(case.batch, case.intra_depth, case.positions, case.dim // case.num_heads)
    table = torch.randn(case.intra_depth, case.dim_key, *case.extents)
    return GridInputs.of(query, value, table, case.grid, [extent // 2 for extent in case.extents])


def grid_problem(case: Case) -> GridProblem:
    """Return the position term of a case, as the planner sees it."""
    with torch.device("meta"):
        return replace(grid_inputs(case).problem, device="cpu")
