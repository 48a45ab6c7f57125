"""Common to the tiles of the Triton kernels: one way to run a kernel, and sizes that tensor cores multiply."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LEAST_BLOCK", "LEAST_DEPTH", "Config", "power_of_2"]

# Tensor cores multiply depths of 16; the places of a tile are one of them.
LEAST_DEPTH = LEAST_BLOCK = 16


@dataclass(frozen=True)
class Config:
    """One way to run a kernel.

    Args:
        block: a power of 2, 16 or more. In query first, places of a row in a tile; in lambda first, positions of the
            context in a step, of one row after the other.
        warps: warps of a program.
        stages: loads in flight, in Triton's software pipeline.
    """

    block: int
    warps: int
    stages: int


def power_of_2(least: int) -> int:
    """The smallest power of 2 that is at least ``least``."""
    return 1 << max(0, least - 1).bit_length()
