"""The memory that a training needs."""

from __future__ import annotations

import sys

import torch

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


def peak_memory(device: torch.device) -> float:
    """The most memory that this process has had so far, in GiB: of the GPU, or its own on a CPU; 0 if not known.

    Processes that read images are not counted.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if resource is None:
        return 0.0
    # In KiB, but on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
