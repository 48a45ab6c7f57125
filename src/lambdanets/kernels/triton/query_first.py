"""Query first on a GPU: S = q·E and y = S·V for one tile after the other, S never in memory.

Offsets along a row are few, so P = q·R over all offsets of two tiles is a matrix product, and S is P with each row
shifted by its place. No softmax stands between, so there is no running maximum and nothing to rescale; backward makes
S again and keeps nothing. ``docs/gpu.md`` derives tiles, bytes and operations.

Inputs may have any strides. Where the depth does not lie together (channels in front of the positions), tensors that
are read again and again are copied once: loads of single 16-bit numbers would take longer than everything else.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from lambdanets.kernels.problem import GridProblem, Work
from lambdanets.kernels.triton.tiling import Config, Tiling, candidates, tile

__all__ = ["backward", "check", "forward", "work"]

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Within an example elements are counted in 32 bits.
ADDRESSES = 1 << 31
# Programs of the table gradient at least, where there are examples enough: two for each of 132 processors.
PROGRAMS = 264


def _unavailable(device: str) -> str | None:
    """Why no Triton kernel can run on a device, or None."""
    if device != "cuda":
        return f"it runs on CUDA devices, and these tensors are on {device}"
    if importlib.util.find_spec("triton") is None:
        return "it needs triton, which is not installed; pip install triton"
    return None


def check(problem: GridProblem) -> str | None:
    """Why this kernel cannot run on ``problem``, or None."""
    reason = _unavailable(problem.device)
    if reason is not None:
        return reason
    if len(problem.grid) > 2:
        return f"it is for grids of rank 1 and 2, this one has rank {len(problem.grid)}"
    if problem.dtype not in DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        return f"it computes in {names}, and these tensors are {str(problem.dtype).removeprefix('torch.')}"
    widths = (
        problem.heads * problem.dim_key,
        problem.heads * problem.dim_value,
        problem.intra_depth * problem.dim_value,
    )
    count = problem.num_positions * max(widths)
    if count >= ADDRESSES:
        return f"an example has tensors of {count:,} elements, and it counts up to {ADDRESSES:,} within one"
    return None


def work(problem: GridProblem, backward: bool) -> Work:
    """Multiply-adds of whole tiles, elements that are shifted, and launches."""
    tiling = tile(problem, candidates(problem)[0].block)
    across = tiling.windows if tiling.relative else tiling.tiles_x
    reach = min(tiling.extents[0], tiling.height) * across * tiling.block
    rows = problem.batch * tiling.tiles_x * tiling.block * tiling.height
    scores = rows * max(problem.heads, tiling.heads_per_program) * reach * problem.intra_depth
    depth = 2 * tiling.key_depth + tiling.value_depth
    return Work(scores * depth * (3 if backward else 1), scores * (5 if backward else 1), 12 if backward else 3)


def forward(query: Tensor, value: Tensor, table: Tensor, problem: GridProblem) -> Tensor:
    """Position term, (b, h, n, v).

    Args:
        query: (b, h, n, k).
        value: (b, u, n, v).
        table: (u, k, *extents), the reachable offsets.
        problem: the shape of the call.
    """
    with _current(query):
        return _output(_addressable(query), _depth_last(value), _offsets_first(table), problem)


def _output(query: Tensor, value: Tensor, offsets: Tensor, problem: GridProblem) -> Tensor:
    from lambdanets.kernels.triton.kernels import output_kernel

    out = _laid_out_like(query, problem.dim_value)

    def launch(config: Config) -> None:
        tiling = tile(problem, config.block)
        heads, depths = _chunks(problem, tiling)
        _run(
            output_kernel,
            problem.batch * heads * depths * tiling.tiles,
            (query, value, offsets, out),
            (*query.stride(), *value.stride(), *out.stride()),
            (*_sizes(problem, tiling), tiling.context_start, tiling.tiles_x, tiling.tiles, heads, depths),
            tiling,
            config,
        )

    _tuned("output", problem, launch)
    return out


def backward(
    grad: Tensor, query: Tensor, value: Tensor, table: Tensor, problem: GridProblem
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, value and table.

    Args:
        grad: (b, h, n, v), gradient of the output.
        query: as in :func:`forward`, and so are the rest.
        value: ...
        table: ...
        problem: ...
    """
    with _current(query):
        g, q, v = (_depth_last(tensor.to(query.dtype)) for tensor in (grad, query, value))
        offsets = _offsets_first(table)
        return (
            _query_gradient(g, v, offsets, query, problem),
            _value_gradient(g, q, offsets, value, problem),
            _table_gradient(g, q, v, problem).reshape(table.shape),
        )


def _query_gradient(grad: Tensor, value: Tensor, offsets: Tensor, like: Tensor, problem: GridProblem) -> Tensor:
    from lambdanets.kernels.triton.kernels import query_gradient_kernel

    out = _laid_out_like(like, problem.dim_key)

    def launch(config: Config) -> None:
        tiling = tile(problem, config.block)
        heads, depths = _chunks(problem, tiling)
        _run(
            query_gradient_kernel,
            problem.batch * heads * tiling.tiles,
            (grad, value, offsets, out),
            (*grad.stride(), *value.stride(), *out.stride()),
            (*_sizes(problem, tiling), tiling.context_start, tiling.tiles_x, tiling.tiles, heads, depths),
            tiling,
            config,
        )

    _tuned("query", problem, launch)
    return out


def _value_gradient(grad: Tensor, query: Tensor, offsets: Tensor, like: Tensor, problem: GridProblem) -> Tensor:
    from lambdanets.kernels.triton.kernels import value_gradient_kernel

    out = _laid_out_like(like, problem.dim_value)

    def launch(config: Config) -> None:
        tiling = tile(problem, config.block)
        heads, depths = _chunks(problem, tiling)
        tiles = tiling.tiles_x * tiling.height
        _run(
            value_gradient_kernel,
            problem.batch * problem.intra_depth * depths * tiles,
            (grad, query, offsets, out),
            (*grad.stride(), *query.stride(), *out.stride()),
            (*_sizes(problem, tiling), tiling.query_start, tiling.tiles_x, tiles, heads, depths),
            tiling,
            config,
        )

    _tuned("value", problem, launch)
    return out


def _table_gradient(grad: Tensor, query: Tensor, value: Tensor, problem: GridProblem) -> Tensor:
    """(u, k, rows, columns) in float32, whose sum over examples has one order."""
    from lambdanets.kernels.triton.kernels import table_gradient_kernel

    parts: list[Tensor] = []

    def launch(config: Config) -> None:
        tiling = tile(problem, config.block)
        heads, depths = _chunks(problem, tiling)
        each = problem.intra_depth * tiling.extents[0] * tiling.windows
        splits = max(1, min(problem.batch, -(-PROGRAMS // each)))
        shape = (splits, problem.intra_depth, tiling.extents[0], tiling.windows, tiling.key_depth, 2 * config.block)
        partial = torch.empty(shape, dtype=torch.float32, device=grad.device)
        start = (tiling.context_start, tiling.first_window, tiling.windows, splits)
        _run(
            table_gradient_kernel,
            splits * each,
            (grad, query, value, partial),
            (*grad.stride(), *query.stride(), *value.stride(), problem.batch),
            (*_sizes(problem, tiling), *start, heads, depths),
            tiling,
            config,
        )
        parts[:] = [_joined(partial.sum(0), tiling, problem.dim_key)]

    _tuned("table", problem, launch)
    return parts[0]


def _joined(windows: Tensor, tiling: Tiling, dim_key: int) -> Tensor:
    """(u, rows, windows, k, 2B) -> (u, k, rows, columns): neighbouring windows share half of their columns."""
    u, rows, count, _, _ = windows.shape
    halves = windows[:, :, :, :dim_key].permute(0, 3, 1, 2, 4).unflatten(4, (2, tiling.block))
    line = windows.new_zeros(u, dim_key, rows, count + 1, tiling.block)
    line[:, :, :, :count] += halves[..., 0, :]
    line[:, :, :, 1:] += halves[..., 1, :]
    first = tiling.context_start + (tiling.first_window - 1) * tiling.block + 1 + tiling.origin[1]
    return line.flatten(3)[..., -first : tiling.extents[1] - first]


def _current(tensor: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def _laid_out_like(like: Tensor, depth: int) -> Tensor:
    """A new (b, c, n, depth) with its axes in memory as those of ``like``, so that nobody has to transpose it."""
    b, c, n, _ = like.shape
    like = _addressable(like)
    if like.stride(3) != 1:
        return like.new_empty(b, c, depth, n).transpose(2, 3)
    if like.stride(1) < like.stride(2):
        return like.new_empty(b, n, c, depth).transpose(1, 2)
    return like.new_empty(b, c, n, depth)


def _depth_last(tensor: Tensor) -> Tensor:
    return _addressable(tensor if tensor.stride(3) == 1 else tensor.contiguous())


def _addressable(tensor: Tensor) -> Tensor:
    """A copy where an example's elements lie too far apart to be counted in 32 bits, as in a view with n in front."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape[1:], tensor.stride()[1:], strict=True))
    return tensor if last < ADDRESSES else tensor.contiguous()


def _offsets_first(table: Tensor) -> Tensor:
    """(u, k, *extents) -> (u, *extents, k), contiguous: an offset's numbers lie together. Some tens of kilobytes."""
    return table.movedim(1, -1).contiguous()


def _chunks(problem: GridProblem, tiling: Tiling) -> tuple[int, int]:
    """Programs that share the heads, and parts of the value depth."""
    return -(-problem.heads // tiling.heads_per_program), -(-problem.dim_value // tiling.value_depth)


def _sizes(problem: GridProblem, tiling: Tiling) -> tuple[int, ...]:
    """Arguments from ``heads`` to ``OX``, which all kernels have."""
    return (
        problem.heads,
        problem.intra_depth,
        problem.dim_key,
        problem.dim_value,
        tiling.height,
        tiling.width,
        *tiling.extents,
        *tiling.origin,
    )


def _precision(dtype: torch.dtype) -> str:
    """TF32 only where PyTorch's own setting allows it for matrix products."""
    allowed = torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if dtype == torch.float32 and allowed else "ieee"


def _run(
    kernel: Any,
    programs: int,
    tensors: tuple[Tensor, ...],
    strides: tuple[int, ...],
    sizes: tuple[int, ...],
    tiling: Tiling,
    config: Config,
) -> None:
    from lambdanets.kernels.triton.tuning import interpreted

    kernel[(programs,)](
        *tensors,
        *strides,
        *sizes,
        **tiling.constants(),
        UPCAST=interpreted(kernel),
        PRECISION=_precision(tensors[0].dtype),
        num_warps=config.warps,
        num_stages=config.stages,
    )


def _tuned(name: str, problem: GridProblem, launch: Callable[[Config], None]) -> None:
    from lambdanets.kernels.triton.tuning import run_best

    run_best(name, problem, candidates(problem), launch)
