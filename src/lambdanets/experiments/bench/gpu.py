"""The benchmark on a GPU: our layer beside lucidrains' and timm's, the op alone beside PyTorch's attention.

Like is compared with like: layers with layers, projections included; the op with attention, both without. Half
precision throughout (bfloat16 by default), forward and forward + backward, times by CUDA events.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lambdanets.experiments.bench.bench import Row
from lambdanets.experiments.bench.cases import Case
from lambdanets.experiments.bench.contenders import contenders
from lambdanets.experiments.bench.measure import passes, saved_bytes
from lambdanets.functional import lambda_apply
from lambdanets.positions import GridPositions
from lambdanets.provenance import package_version, source_commit

__all__ = [
    "GPU_CASES",
    "Rates",
    "environment",
    "floor_seconds",
    "group",
    "measure_case",
    "rates",
    "require_cuda",
    "run",
]

BATCH = 128

GPU_CASES: tuple[Case, ...] = tuple(
    Case(BATCH, (size, size), dim, scope)
    for scope in (None, 23)
    for size, dims in ((14, (64, 256, 512)), (28, (64, 128, 256, 512)), (56, (64, 128, 256)))
    for dim in dims
)

PASSES = ("forward", "forward+backward")
COLUMNS = (
    *("case", "contender", "pass", "median_ms", "q1_ms", "q3_ms", "floor_ms", "share_of_floor"),
    *("saved_bytes", "peak_bytes", "note"),
)

Timer = Callable[[Callable[[], object]], tuple[float, float, float]]


def require_cuda() -> None:
    """Raise unless there is a GPU to measure on.

    Raises:
        ValueError: saying what PyTorch finds instead.
    """
    if not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        raise ValueError(
            f"--device cuda needs a CUDA device, and PyTorch {torch.__version__} ({built}) finds none; "
            "leave --device away to measure on the CPU"
        )


def environment(dtype: torch.dtype) -> Row:
    """What a result has to name: card, versions, precision."""
    major, minor = torch.cuda.get_device_capability()
    return {
        "card": torch.cuda.get_device_name(),
        "capability": f"{major}.{minor}",
        "precision": str(dtype).removeprefix("torch."),
        "torch": package_version("torch"),
        "cuda": torch.version.cuda or "",
        "triton": package_version("triton"),
        "timm": package_version("timm"),
        "lambdanets": package_version("lambdanets"),
        "commit": source_commit(),
    }


@dataclass(frozen=True)
class Rates:
    """What a card reaches on this day: multiply-adds and bytes a second."""

    multiply_adds: float
    bytes: float


def rates(dtype: torch.dtype, timer: Timer, device: str = "cuda", size: int = 8192) -> Rates:
    """Measure a large matrix product and a large copy.

    Args:
        dtype: of the product.
        timer: seconds of a call: quartile, median, quartile.
        device: where.
        size: of the square matrices.
    """
    a, b = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    product = timer(lambda: a @ b)[0]
    copy = timer(lambda: a.clone())[0]
    return Rates(size**3 / product, 2 * a.numel() * a.element_size() / copy)


def floor_seconds(case: Case, machine: Rates, backward: bool, element_size: int = 2) -> float:
    """The least time of the op: its operations in the cheaper order, or its tensors once, whichever takes longer."""
    n, v = case.positions, case.dim // case.num_heads
    h, k, u = case.num_heads, case.dim_key, case.intra_depth
    context = math.prod(size if case.scope is None else min(size, case.scope) for size in case.grid)
    query_first = h * (k + v) * context * u
    lambda_first = k * v * (context * u + h)
    operations = case.batch * n * min(query_first, lambda_first)
    tensors = case.batch * n * (h * k + u * (k + v) + h * v) * element_size
    factor = 3 if backward else 1
    return factor * max(operations / machine.multiply_adds, tensors / machine.bytes)


class _Op(nn.Module):
    """The op alone, on (q, k, v) packed along the last axis; its table is a parameter."""

    def __init__(self, case: Case, kernel: str | None = None):
        super().__init__()
        extents = [2 * size - 1 if case.scope is None else case.scope for size in case.grid]
        context = math.prod(min(size, extent) for size, extent in zip(case.grid, extents, strict=True))
        std = (case.dim_key * case.intra_depth * context) ** -0.5
        self.table = nn.Parameter(torch.randn(case.intra_depth, case.dim_key, *extents) * std)
        self.grid, self.kernel = case.grid, kernel
        self.heads, self.depth, self.dim_key = case.num_heads, case.intra_depth, case.dim_key

    def forward(self, packed: Tensor) -> Tensor:
        """(b, n, h k + u k + u v) -> (b, h, n, v), as a projection with channels last hands it over."""
        h, u, k = self.heads, self.depth, self.dim_key
        query, key, value = packed.split([h * k, u * k, packed.shape[2] - (h + u) * k], dim=2)
        query, key, value = (
            t.unflatten(2, (count, -1)).transpose(1, 2) for t, count in ((query, h), (key, u), (value, u))
        )
        return lambda_apply(query, key, value, GridPositions(self.table, self.grid), kernel=self.kernel)


class _Attention(nn.Module):
    """PyTorch's attention, with ``relative`` FlexAttention and a bias for each head and offset."""

    def __init__(self, case: Case, relative: bool = False):
        super().__init__()
        self.attend: Callable[..., Any] = F.scaled_dot_product_attention
        if relative:
            self.attend = _relative_attention(case)

    def forward(self, qkv: Tensor) -> Tensor:
        """(3, b, h, n, v) -> (b, h, n, v)."""
        return self.attend(*qkv)


def _relative_attention(case: Case) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    height, width = case.grid if len(case.grid) == 2 else (1, case.grid[0])
    bias = torch.randn(case.num_heads, 2 * height - 1, 2 * width - 1, device="cuda")

    def add_bias(score: Tensor, b: Tensor, h: Tensor, n: Tensor, m: Tensor) -> Tensor:
        return score + bias[h, m // width - n // width + height - 1, m % width - n % width + width - 1]

    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda query, key, value: compiled(query, key, value, score_mod=add_bias)


@dataclass
class _Entry:
    """A contender, made when its turn comes: not all fit into memory together."""

    name: str
    make: Callable[[], tuple[nn.Module, Tensor]]


def group(case: Case, device: str, dtype: torch.dtype, flex: bool = True) -> Iterator[_Entry]:
    """Layers first, then the op and attention.

    Args:
        case: the shape.
        device: where they live.
        dtype: of parameters and inputs.
        flex: whether FlexAttention takes part; it must be compiled.
    """

    def layer(name: str) -> Callable[[], tuple[nn.Module, Tensor]]:
        def make() -> tuple[nn.Module, Tensor]:
            found = next(each for each in contenders(case, kernels=False) if each.name == name)
            # As models train on a GPU; queries and values then come with their depth last, as the kernels like them.
            layout = torch.channels_last if found.x.ndim == 4 else torch.contiguous_format
            return found.module.to(device, dtype), found.x.to(device, dtype).contiguous(memory_format=layout)

        return make

    def alone(module: Callable[[], nn.Module], *shape: int) -> Callable[[], tuple[nn.Module, Tensor]]:
        return lambda: (module().to(device, dtype), torch.randn(*shape, device=device, dtype=dtype))

    yield _Entry("layer:lambdanets", layer("lambdanets"))
    if len(case.grid) == 2:
        yield _Entry("layer:lucidrains", layer("lucidrains"))
    if case.intra_depth == 1:
        yield _Entry("layer:timm", layer("timm"))
    v, u, n = case.dim // case.num_heads, case.intra_depth, case.positions
    packed = case.num_heads * case.dim_key + u * (case.dim_key + v)
    qkv = 3, case.batch, case.num_heads, n, v
    yield _Entry("op:lambdanets", alone(lambda: _Op(case), case.batch, n, packed))
    yield _Entry("op:attention", alone(lambda: _Attention(case), *qkv))
    if flex:
        yield _Entry("op:flex, relative", alone(lambda: _Attention(case, relative=True), *qkv))


def measure_case(
    case: Case, machine: Rates, timer: Timer, *, device: str = "cuda", dtype: torch.dtype = torch.bfloat16, flex: bool
) -> list[Row]:
    """Time every contender of a case in both passes.

    Returns:
        A row for each: milliseconds, bytes kept beyond inputs and parameters, the most bytes in use, and the floor of
        the op. A contender that has no room is a row with a note.
    """
    rows: list[Row] = []
    for entry in group(case, device, dtype, flex):
        try:
            rows += _measure(case, entry, machine, timer, device)
        except torch.cuda.OutOfMemoryError:
            rows += [
                {**dict.fromkeys(COLUMNS, ""), **_names(case, entry, way), "note": "out of memory"} for way in PASSES
            ]
        if device == "cuda":
            torch.cuda.empty_cache()
    return rows


def _names(case: Case, entry: _Entry, way: str) -> Row:
    return {"case": case.name, "contender": entry.name, "pass": way}


def _measure(case: Case, entry: _Entry, machine: Rates, timer: Timer, device: str) -> list[Row]:
    module, x = entry.make()
    rows = []
    kept = saved_bytes(module, x)
    for way, call in passes(module, x).items():
        backward = way != "forward"
        call()  # what is tuned and compiled at the first call is not the call's memory
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        call()
        peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
        low, median, high = timer(call)
        floor = floor_seconds(case, machine, backward, x.element_size())
        rows.append(
            {
                **_names(case, entry, way),
                "median_ms": round(median * 1e3, 4),
                "q1_ms": round(low * 1e3, 4),
                "q3_ms": round(high * 1e3, 4),
                "floor_ms": round(floor * 1e3, 4),
                "share_of_floor": round(floor / median, 3) if entry.name == "op:lambdanets" else "",
                "saved_bytes": kept,
                "peak_bytes": peak,
                "note": "",
            }
        )
    return rows


def events(seconds: float) -> Timer:
    """Times a call by CUDA events, its caches cold, for about ``seconds``."""

    def time(call: Callable[[], object]) -> tuple[float, float, float]:
        from triton.testing import do_bench

        low, median, high = do_bench(call, warmup=50, rep=int(seconds * 1e3), quantiles=[0.25, 0.5, 0.75])
        return low * 1e-3, median * 1e-3, high * 1e-3

    return time


def run(
    cases: Sequence[Case] = GPU_CASES,
    *,
    seconds: float = 0.5,
    dtype: torch.dtype = torch.bfloat16,
    report: Callable[[Case, list[Row]], None] | None = None,
) -> list[Row]:
    """Measure cases one after the other on the current CUDA device.

    Args:
        cases: what to measure.
        seconds: about how long each contender is timed in each pass.
        dtype: of parameters and inputs.
        report: called with the rows of each case as it ends.

    Returns:
        The rows, each with the environment and the measured rates.

    Raises:
        ValueError: if there is no CUDA device.
    """
    require_cuda()
    timer = events(seconds)
    machine = rates(dtype, timer)
    where = environment(dtype)
    where |= {"tera_flops": round(2e-12 * machine.multiply_adds, 1), "terabytes": round(1e-12 * machine.bytes, 3)}
    rows: list[Row] = []
    for case in cases:
        measured = measure_case(case, machine, timer, dtype=dtype, flex=True)
        rows += [{**row, **where} for row in measured]
        if report is not None:
            report(case, rows[-len(measured) :])
    return rows
