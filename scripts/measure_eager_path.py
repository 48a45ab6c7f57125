"""Measure the time that direct calls in eager mode save, into results/eager_path.csv.

Run it as ``python scripts/measure_eager_path.py``.

Each variant takes turns with the shipped code; a row holds the median of the paired ratios, variant over
shipped, and its bootstrap interval. A path has to save 5 % at the smallest case.

- ``terms apart``: no function that computes both terms on a grid at once.
- ``library op``: every op is called through PyTorch's dispatcher, the terms apart.
- ``function without rules``: another autograd function for calls that need no rules for vmap and jvp.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import torch

from lambdanets import GridPositions, LambdaLayer, lambda_apply
from lambdanets.experiments.bench.timing import bootstrap_median
from lambdanets.files import write_csv
from lambdanets.kernels.autograd import derivatives, library
from lambdanets.kernels.autograd.library import Op
from lambdanets.kernels.terms import grid as terms
from lambdanets.provenance import environment

# Calls of a turn, of which the fastest counts: other processes interrupt some.
CALLS = 7
# (batch, size, channels)
CASES = [(1, 7, 64), (1, 14, 64), (8, 7, 512), (8, 14, 256)]


class WithoutRules(torch.autograd.Function):
    """An op without rules for vmap, jvp and further derivatives, from (op, *tensors, *statics)."""

    @staticmethod
    def forward(ctx: Any, op: Op, *args: Any) -> torch.Tensor:  # type: ignore[override]
        """Compute and save the inputs."""
        ctx.save_for_backward(*args[: op.count])
        ctx.op, ctx.statics = op, args[op.count :]
        return op.compute(*args)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        """Gradients of the arguments."""
        grads = ctx.op.compute_gradients(grad, *ctx.saved_tensors, *ctx.statics)
        return (None, *ctx.op.at_arguments(grads, len(ctx.statics)))


@contextmanager
def variant(name: str) -> Iterator[None]:
    """The package with one path changed."""
    if name == "terms apart":
        with patch.object(terms, "is_eager", lambda args: False):
            yield
    elif name == "library op":
        with (
            patch.object(terms, "is_eager", lambda args: False),
            patch.object(library, "is_observed", lambda args: True),
            patch.object(derivatives, "_needs_library_op", lambda args: True),
        ):
            yield
    elif name == "function without rules":
        with patch.object(library, "Forward", WithoutRules):
            yield
    else:
        yield


def calls(batch: int, size: int, channels: int) -> dict[tuple[str, str], Callable[[], object]]:
    """(what, pass) -> one call."""
    heads, depth, n = 4, 16, size * size
    query, key, value = (
        torch.randn(batch, c, d, n).transpose(2, 3).requires_grad_()
        for c, d in ((heads, depth), (1, depth), (1, channels // heads))
    )
    table = torch.randn(1, depth, 2 * size - 1, 2 * size - 1, requires_grad=True)
    positions, grad = GridPositions(table, (size, size)), torch.randn(batch, heads, n, channels // heads)
    layer = LambdaLayer(channels, size=(size, size))
    x = torch.randn(batch, channels, size, size, requires_grad=True)
    ones = torch.ones_like(x)

    def op(key: torch.Tensor | None) -> dict[str, Callable[[], object]]:
        leaves = [t for t in (query, key, value, table) if t is not None]

        def forward() -> object:
            with torch.inference_mode():
                return lambda_apply(query, key, value, positions)

        return {
            "forward": forward,
            "forward+backward": lambda: torch.autograd.grad(lambda_apply(query, key, value, positions), leaves, grad),
        }

    def layer_forward() -> object:
        with torch.inference_mode():
            return layer.eval()(x)

    def layer_both() -> object:
        return torch.autograd.grad(layer.train()(x), [x, *layer.parameters()], ones)

    found = {"op": op(key), "op, position term alone": op(None)}
    found["layer"] = {"forward": layer_forward, "forward+backward": layer_both}
    return {(what, direction): call for what, each in found.items() for direction, call in each.items()}


def paired_ratio(call: Callable[[], object], name: str, rounds: int) -> tuple[float, float, float, float]:
    """Microseconds of the shipped code, median ratio of the variant to it, and the 95 % interval of the median."""
    random, ratios, shipped = Random(0), [], []

    def seconds(which: str) -> float:
        taken = []
        with variant(which):
            for _ in range(CALLS):
                start = time.perf_counter()
                call()
                taken.append(time.perf_counter() - start)
        return min(taken)

    for turn in range(rounds + 5):
        order = ["shipped", name] if random.random() < 0.5 else [name, "shipped"]
        taken = {which: seconds(which) for which in order}
        if turn >= 5:  # the first calls fill caches
            shipped.append(taken["shipped"])
            ratios.append(taken[name] / taken["shipped"])
    ratio = bootstrap_median(ratios)
    return statistics.median(shipped) * 1e6, ratio.median, ratio.low, ratio.high


def main() -> None:
    """Measure every variant on every case and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=100, help="turns for each row")
    parser.add_argument("--output", type=Path, default=Path("results/eager_path.csv"))
    args = parser.parse_args()
    torch.manual_seed(0)
    rows, where = [], environment()
    for batch, size, channels in CASES:
        for (what, direction), call in calls(batch, size, channels).items():
            alone = what == "op, position term alone"
            for name in ["library op", "function without rules"] if alone else ["terms apart", "library op"]:
                if name == "function without rules" and direction == "forward":
                    continue
                shipped, ratio, low, high = paired_ratio(call, name, args.rounds if batch == 1 else args.rounds // 2)
                rows.append(
                    {
                        "case": f"{size}x{size}-d{channels}-b{batch}",
                        "what": what,
                        "pass": direction,
                        "variant": name,
                        "shipped_us": f"{shipped:.0f}",
                        "ratio": f"{ratio:.3f}",
                        "low": f"{low:.3f}",
                        "high": f"{high:.3f}",
                        **where,
                    }
                )
                print(*list(rows[-1].values())[:8], flush=True)
    write_csv(args.output, rows)


if __name__ == "__main__":
    main()
