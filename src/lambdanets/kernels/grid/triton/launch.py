"""Common to the launches of the Triton kernels: conditions, memory layouts, the launch itself."""

from __future__ import annotations

import importlib.util
import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from lambdanets.kernels.grid.contract import GridProblem
from lambdanets.kernels.grid.triton.tiling import Config

__all__ = [
    "ADDRESSES",
    "addressable",
    "check_call",
    "current",
    "depth_last",
    "example_elements",
    "offsets_first",
    "run",
    "splits",
    "unavailable",
]

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Within what a program addresses at once elements are counted in 32 bits.
ADDRESSES = 1 << 31
# Programs of a table gradient at least, where there are examples enough: two for each of 132 processors.
PROGRAMS = 264


def unavailable(device: str) -> str | None:
    """Return the reason why no Triton kernel can run on a device, or None."""
    if device != "cuda":
        return f"it runs on CUDA devices, and these tensors are on {device}"
    if importlib.util.find_spec("triton") is None:
        return "it needs triton, which is not installed; pip install triton"
    return None


def check_call(problem: GridProblem) -> str | None:
    """Return the reason why no Triton kernel can run on ``problem``, or None."""
    reason = unavailable(problem.device)
    if reason is not None:
        return reason
    if len(problem.grid) > 2:
        return f"it is for grids of rank 1 and 2, this one has rank {len(problem.grid)}"
    if problem.dtype not in DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        return f"it computes in {names}, and these tensors are {str(problem.dtype).removeprefix('torch.')}"
    count, table = example_elements(problem), math.prod(problem.extents) * problem.dim_key * problem.intra_depth
    if count >= ADDRESSES:
        return f"an example has tensors of {count:,} elements, and it counts up to {ADDRESSES:,} within one"
    if table >= ADDRESSES:
        return f"the table of positions has {table:,} elements, and it counts up to {ADDRESSES:,}"
    return None


def example_elements(problem: GridProblem) -> int:
    """Elements of one example's largest tensor."""
    widths = (
        problem.heads * problem.dim_key,
        problem.heads * problem.dim_value,
        problem.intra_depth * problem.dim_value,
    )
    return problem.num_positions * max(widths)


def current(tensor: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def depth_last(tensor: Tensor, examples: int = 1) -> Tensor:
    """The tensor (b, c, n, depth), :func:`addressable` and with the depth side by side."""
    return addressable(tensor if tensor.stride(3) == 1 else tensor.contiguous(), examples)


def addressable(tensor: Tensor, examples: int = 1) -> Tensor:
    """A copy where the elements of ``examples`` neighbours lie too far apart to be counted in 32 bits."""
    sizes = (examples, *tensor.shape[1:])
    last = sum((size - 1) * stride for size, stride in zip(sizes, tensor.stride(), strict=True))
    return tensor if last < ADDRESSES else tensor.contiguous()


def offsets_first(table: Tensor) -> Tensor:
    """(u, k, *extents) -> (u, *extents, k), contiguous: an offset's numbers lie together. Some tens of kilobytes."""
    return table.movedim(1, -1).contiguous()


def splits(parts: int, each: int) -> int:
    """Number of splits of a sum: such that all programs together are at least ``PROGRAMS``, and at most ``parts``.

    Args:
        parts: of the sum; a split has some of them.
        each: programs of one split.
    """
    return max(1, min(parts, -(-PROGRAMS // each)))


def _precision(dtype: torch.dtype) -> str:
    """TF32 only where PyTorch's own setting allows it for matrix products."""
    allowed = torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if dtype == torch.float32 and allowed else "ieee"


def run(
    kernel: Any,
    programs: int,
    tensors: tuple[Tensor, ...],
    strides: tuple[int, ...],
    sizes: tuple[int, ...],
    constants: dict[str, Any],
    config: Config,
) -> None:
    """Launch a kernel.

    Args:
        kernel: one of ``query_kernels.py`` or ``lambda_kernels.py``.
        programs: how many.
        tensors: its first arguments.
        strides: those after them.
        sizes: the rest but the constants.
        constants: of the tiling, known when it is compiled.
        config: warps and stages.
    """
    from lambdanets.kernels.grid.triton.tuning import interpreted

    kernel[(programs,)](
        *tensors,
        *strides,
        *sizes,
        **constants,
        UPCAST=interpreted(kernel),
        PRECISION=_precision(tensors[0].dtype),
        num_warps=config.warps,
        num_stages=config.stages,
    )
