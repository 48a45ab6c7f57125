"""Half precision: which dtypes it is, and where it becomes float32."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["HALF", "to_query_dtype", "widened"]

HALF = (torch.float16, torch.bfloat16)


def widened(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Tensors of half precision as float32, others as they are."""
    return tuple(t.float() if t.dtype in HALF else t for t in tensors)


def to_query_dtype(embedding: Tensor, dtype: torch.dtype) -> Tensor:
    """An embedding in the dtype of the queries; in half precision for float32, which its op widens by itself."""
    return embedding if embedding.dtype in HALF and dtype == torch.float32 else embedding.to(dtype)
