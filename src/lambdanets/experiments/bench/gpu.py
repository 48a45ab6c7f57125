"""The benchmark on a GPU: our layer beside lucidrains' and timm's, the op alone beside PyTorch's attention.

Like is compared with like: layers with layers, projections included; the op with attention, both without. Half
precision throughout (bfloat16 by default), forward and forward + backward, times by CUDA events.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lambdanets import provenance
from lambdanets.experiments.bench.bench import Row, time_columns
from lambdanets.experiments.bench.cases import Case
from lambdanets.experiments.bench.contenders import OP, Attention, Op, contenders, peers_for
from lambdanets.experiments.bench.measure import PASSES, check_results, passes, saved_bytes
from lambdanets.experiments.bench.timing import Call, Clock, Timing, Turns
from lambdanets.positions import pairs_in_reach

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

ATTENTION = "op:attention", "op:flex, relative"

COLUMNS = (
    *("case", "contender", "pass", "median_ms", "low_ms", "high_ms", "ratio_median", "ratio_low", "ratio_high"),
    *("turns", "noisy", "floor_ms", "share_of_floor", "saved_bytes", "peak_bytes", "note"),
)


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
    """Return what a result has to name: card, precision, versions, date."""
    major, minor = torch.cuda.get_device_capability()
    return {
        "card": torch.cuda.get_device_name(),
        "capability": f"{major}.{minor}",
        "precision": str(dtype).removeprefix("torch."),
        **provenance.environment("torch"),
        "cuda": torch.version.cuda or "",
        **provenance.environment("triton", "timm", "lambdanets", "commit", "date"),
    }


@dataclass(frozen=True)
class Rates:
    """Measured rates of a card: multiply-adds and bytes a second."""

    multiply_adds: float
    bytes: float


def rates(dtype: torch.dtype, clock: Clock, device: str = "cuda", size: int = 8192) -> Rates:
    """Measure a large matrix product and a large copy.

    Args:
        dtype: of the product.
        clock: returns the seconds of one call.
        device: where.
        size: of the square matrices.
    """
    a, b = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    seconds = []
    for call in (lambda: a @ b, lambda: a.clone()):
        turns = Turns([call], clock)
        turns.take(0.3, 2)
        seconds.append(turns.timings()[0].seconds.low)
    return Rates(size**3 / seconds[0], 2 * a.numel() * a.element_size() / seconds[1])


def floor_seconds(case: Case, machine: Rates, backward: bool, element_size: int = 2) -> float:
    """Return the least time of the op: its operations in the cheaper order or its tensors once, the longer one."""
    n, v = case.positions, case.dim // case.num_heads
    h, k, u = case.num_heads, case.dim_key, case.intra_depth
    pairs = pairs_in_reach(case.grid, case.extents, [extent // 2 for extent in case.extents])
    query_first = h * (k + v) * pairs * u
    lambda_first = k * v * (pairs * u + n * h)
    operations = case.batch * min(query_first, lambda_first)
    tensors = case.batch * n * (h * k + u * (k + v) + h * v) * element_size
    factor = 3 if backward else 1
    return factor * max(operations / machine.multiply_adds, tensors / machine.bytes)


class _RelativeAttention(nn.Module):
    """FlexAttention with a learnt bias for each head and offset."""

    def __init__(self, case: Case):
        super().__init__()
        height, width = case.grid if len(case.grid) == 2 else (1, case.grid[0])
        self.bias = nn.Parameter(torch.randn(case.num_heads, 2 * height - 1, 2 * width - 1))
        self.attend = _with_bias(self.bias)

    def forward(self, qkv: Tensor) -> Tensor:
        """(3, b, h, n, v) -> (b, h, n, v)."""
        return self.attend(*qkv)


def _with_bias(bias: Tensor) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    height, width = bias.shape[1] // 2 + 1, bias.shape[2] // 2 + 1

    def add_bias(score: Tensor, b: Tensor, h: Tensor, n: Tensor, m: Tensor) -> Tensor:
        return score + bias[h, m // width - n // width + height - 1, m % width - n % width + width - 1]

    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda query, key, value: compiled(query, key, value, score_mod=add_bias)


@dataclass
class _Entry:
    """The name of a contender and how it is made; there may be no room for it."""

    name: str
    make: Callable[[], tuple[nn.Module, Tensor]]


def group(case: Case, device: str, dtype: torch.dtype, flex: bool = True) -> Iterator[_Entry]:
    """Yield the contenders of a case: layers first, then the op and attention.

    Args:
        case: the shape.
        device: where they live.
        dtype: of parameters and inputs.
        flex: FlexAttention takes part; it must be compiled.
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
    for name in peers_for(case):
        yield _Entry(f"layer:{name}", layer(name))
    qkv = 3, case.batch, case.num_heads, case.positions, case.dim // case.num_heads
    yield _Entry(OP, alone(lambda: Op(case), case.batch, case.positions, case.projected))
    yield _Entry(ATTENTION[0], alone(Attention, *qkv))
    if flex:
        yield _Entry(ATTENTION[1], alone(lambda: _RelativeAttention(case), *qkv))


def measure_case(
    case: Case,
    machine: Rates,
    clock: Clock,
    *,
    seconds: float,
    max_seconds: float,
    device: str = "cuda",
    dtype: torch.dtype = torch.bfloat16,
    flex: bool,
) -> list[Row]:
    """Time every contender of a case in both passes: layers take turns with layers, the op with attention.

    Args:
        case: the shape.
        machine: the rates of this card, for the floor.
        clock: returns the seconds of one call.
        seconds: least time for the turns of each pass.
        max_seconds: most time for them.
        device: where contenders live.
        dtype: of parameters and inputs.
        flex: FlexAttention takes part; it must be compiled.

    Returns:
        A row for each: milliseconds, the ratio to ours, bytes kept beyond inputs and parameters, the most bytes
        that a call allocates at once, and the floor of the op. A contender that has no room is a row with a note.

    Raises:
        RuntimeError: if the layers do not compute the same, tried with two examples in float32 on the CPU.
    """
    check_results(list(contenders(replace(case, batch=2), kernels=False)))
    rows: list[Row] = []
    entries = list(group(case, device, dtype, flex))
    for kind in ("layer:", "op:"):
        ready = []
        for entry in entries:
            if entry.name.startswith(kind):
                try:
                    ready.append(_prepare(entry, device))
                except torch.cuda.OutOfMemoryError:
                    for way in PASSES:
                        rows.append({**dict.fromkeys(COLUMNS, ""), **_names(case, entry.name, way)})
                        rows[-1]["note"] = "out of memory"
        for way in PASSES if ready else ():
            turns = Turns([each.calls[way] for each in ready], clock)
            turns.take(seconds, max_seconds)
            pairs = zip(ready, turns.timings(), strict=True)
            measured = [_row(case, each, way, machine, timing) for each, timing in pairs]
            if ready[0].name != f"{kind}lambdanets":  # ours had no room: nothing to compare with
                measured = [row | dict.fromkeys(("ratio_median", "ratio_low", "ratio_high"), "") for row in measured]
            rows += measured
        del ready
        if device == "cuda":
            torch.cuda.empty_cache()
    # All cases compile one function, FlexAttention, for which PyTorch keeps 8 shapes and then compiles no more.
    torch.compiler.reset()
    return rows


@dataclass
class _Ready:
    """A contender that has been called once in each pass, and its memory."""

    name: str
    calls: Mapping[str, Call]
    kept: int
    peaks: Mapping[str, int]
    element_size: int


def _prepare(entry: _Entry, device: str) -> _Ready:
    module, x = entry.make()
    kept, calls, peaks = saved_bytes(module, x), passes(module, x), {}
    for way, call in calls.items():
        call()  # tuning and compilation at the first call are not the call's memory
        peaks[way] = _peak(call) if device == "cuda" else 0
    return _Ready(entry.name, calls, kept, peaks, x.element_size())


def _peak(call: Call) -> int:
    """The most bytes that a call has allocated at once, beyond what it finds: other contenders live beside it."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return torch.cuda.max_memory_allocated() - before


def _names(case: Case, name: str, way: str) -> Row:
    return {"case": case.name, "contender": name, "pass": way}


def _row(case: Case, ready: _Ready, way: str, machine: Rates, timing: Timing) -> Row:
    floor = floor_seconds(case, machine, way != "forward", ready.element_size)
    return {
        **_names(case, ready.name, way),
        **time_columns(timing),
        "floor_ms": round(floor * 1e3, 4),
        "share_of_floor": round(floor / timing.seconds.median, 3) if ready.name == OP else "",
        "saved_bytes": ready.kept,
        "peak_bytes": ready.peaks[way],
        # Attention has no scope here, so that beside a local context it does more.
        "note": "over the whole map" if case.scope is not None and ready.name in ATTENTION else "",
    }


def events(runs: int = 5) -> Clock:
    """Return a clock by CUDA events: the median of some runs of a call, each with a cold L2 cache."""
    flushed = torch.empty(256 << 20, dtype=torch.int8, device="cuda")  # more than any L2 cache holds

    def clock(call: Call) -> float:
        pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(runs)]
        for start, end in pairs:
            flushed.zero_()
            start.record()
            call()
            end.record()
        torch.cuda.synchronize()
        return 1e-3 * statistics.median(start.elapsed_time(end) for start, end in pairs)

    return clock


def run(
    cases: Sequence[Case] = GPU_CASES,
    *,
    seconds: float = 1.0,
    max_seconds: float = 10.0,
    dtype: torch.dtype = torch.bfloat16,
    report: Callable[[Case, list[Row]], None] | None = None,
) -> list[Row]:
    """Measure cases one after the other on the current CUDA device.

    Args:
        cases: what to measure.
        seconds: least time for the turns of a case and pass, among layers and among ops.
        max_seconds: most time for them.
        dtype: of parameters and inputs.
        report: called with the rows of each case as it ends.

    Returns:
        The rows, each with the environment and the measured rates.

    Raises:
        ValueError: if there is no CUDA device.
    """
    require_cuda()
    clock = events()
    machine = rates(dtype, clock)
    where = environment(dtype)
    where |= {"tera_flops": round(2e-12 * machine.multiply_adds, 1), "terabytes": round(1e-12 * machine.bytes, 3)}
    rows: list[Row] = []
    for case in cases:
        measured = measure_case(case, machine, clock, seconds=seconds, max_seconds=max_seconds, dtype=dtype, flex=True)
        rows += [{**row, **where} for row in measured]
        if report is not None:
            report(case, rows[-len(measured) :])
    return rows
