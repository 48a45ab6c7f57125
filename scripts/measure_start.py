"""Measure the variance that a lambda layer's output starts with: writes results/start.csv.

    python scripts/measure_start.py

Inputs of unit variance, independent from position to position and channel to channel; 512 channels on maps up to 7x7,
256 up to 14x14, 128 above, as in a ResNet-50; k 16, h 4, batch-norm in training. A row holds the mean over seeds of the
variance of the whole layer's output, and of its position term and its content term alone.
"""

from __future__ import annotations

from pathlib import Path

import torch

from lambdanets import GridPositions, LambdaLayer, lambda_apply
from lambdanets.files import write_csv
from lambdanets.provenance import environment

SIZES = (1, 2, 3, 4, 5, 7, 10, 14, 28)
SEEDS = 32
BATCH = 8


def channels(size: int) -> int:
    """Channels of the 3x3 convolutions of a ResNet-50 that see maps of about this size."""
    return 512 if size <= 7 else 256 if size <= 14 else 128


@torch.no_grad()
def variances(size: int, intra_depth: int, scope: int | None, seed: int) -> torch.Tensor:
    """Variance of the output, of the position term and of the content term."""
    torch.manual_seed(seed)
    dim = channels(size)
    context = {"size": size} if scope is None else {"scope": scope}
    layer = LambdaLayer(dim, intra_depth=intra_depth, **context)
    query, key, value = layer.project(torch.randn(BATCH, dim, size, size))
    positions = GridPositions(layer.positions, (size, size))
    position = lambda_apply(query, None, value, positions)
    content = lambda_apply(query, key, value)
    return torch.stack([(position + content).var(), position.var(), content.var()])


def main() -> None:
    """Measure every size and write the table."""
    rows = []
    for scope in (None, 7):
        for intra_depth in (1, 4):
            for size in SIZES:
                each = [variances(size, intra_depth, scope, seed) for seed in range(SEEDS)]
                output, position, content = torch.stack(each).mean(0).tolist()
                rows.append(
                    {
                        "size": f"{size}x{size}",
                        "context": "global" if scope is None else f"scope {scope}",
                        "u": intra_depth,
                        "channels": channels(size),
                        "output": f"{output:.2f}",
                        "position_term": f"{position:.2f}",
                        "content_term": f"{content:.2f}",
                        "seeds": SEEDS,
                        "batch": BATCH,
                        "dtype": "float32",
                        **environment("torch", "machine", "commit"),
                    }
                )
    write_csv(Path(__file__).parents[1] / "results/start.csv", rows)


if __name__ == "__main__":
    main()
