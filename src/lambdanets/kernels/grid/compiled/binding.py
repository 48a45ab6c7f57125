"""The compiled library: where it is, why it is not there, and calls of it.

Plain C functions over raw pointers, sizes and strides: the library knows neither Python nor PyTorch, so one build serves
every version of both. Its threads are PyTorch's own, through ``torch_parallel_for``, which PyTorch exports in C.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lambdanets.kernels.autograd.memory import empty_in_order
from lambdanets.kernels.grid.problem import GridProblem

__all__ = ["LEVEL_VARIABLE", "LIBRARY_VARIABLE", "Library", "absence", "library"]

# Environment variables: an instruction set, and another file of the library (a build with sanitizers, say).
LEVEL_VARIABLE, LIBRARY_VARIABLE = "LAMBDANETS_SIMD", "LAMBDANETS_LIBRARY"
_VERSION = 1
_HOW = (
    "install a C++ compiler (GCC 12 or Clang 15, or newer) and install lambdanets again from source: "
    "pip install --force-reinstall --no-deps --no-binary lambdanets lambdanets"
)


class _Tensor(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("stride", ctypes.c_int64 * 4))


class _Problem(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_int64)
        for name in (
            "batch",
            "heads",
            "dim_key",
            "dim_value",
            "intra_depth",
            "rows",
            "columns",
            "extent_rows",
            "extent_columns",
            "origin_row",
            "origin_column",
        )
    )


_TENSORS = (
    "query",
    "value",
    "table",
    "content",
    "out",
    "grad_query",
    "grad_value",
    "grad_table",
    "grad_content",
)


class _Call(ctypes.Structure):
    _fields_ = (
        ("problem", _Problem),
        *((name, _Tensor) for name in _TENSORS),
        ("scratch", ctypes.c_void_p),
        ("slots", ctypes.c_int64),
    )


@dataclass(frozen=True)
class Library:
    """The loaded library at one instruction set.

    Args:
        handle: what ctypes loaded.
        level: index of the instruction set.
        name: of the instruction set.
    """

    handle: ctypes.CDLL
    level: int
    name: str


def _find() -> str | None:
    """The library's file: named by a variable, or in this package, which has two folders in an editable install."""
    named = os.environ.get(LIBRARY_VARIABLE)
    if named:
        return named
    spec = importlib.util.find_spec(f"{__package__}.lambdanets_compiled")
    return None if spec is None else spec.origin


@functools.cache
def _load() -> Library | str:
    """The library, or why there is none."""
    path = _find()
    if path is None:
        return f"the compiled kernels were not built when lambdanets was installed; {_HOW}"
    try:
        handle = ctypes.CDLL(path)
    except OSError as error:
        return f"the compiled kernels cannot be loaded ({error}); {_HOW}"
    for name, result, *arguments in _FUNCTIONS:
        function = getattr(handle, name)
        function.restype, function.argtypes = result, arguments
    if handle.lambdanets_version() != _VERSION:
        return f"the compiled kernels are of another version of lambdanets; {_HOW}"
    names = [handle.lambdanets_level_name(level).decode() for level in range(handle.lambdanets_num_levels())]
    able = [name for level, name in enumerate(names) if handle.lambdanets_level_runs(level)]
    wanted = os.environ.get(LEVEL_VARIABLE) or able[0]
    if wanted not in able:
        raise ValueError(f"{LEVEL_VARIABLE} must be one of {', '.join(able)} on this machine, got {wanted!r}")
    threads = _torch_parallel_for()
    if threads:
        handle.lambdanets_use_threads(threads)
    return Library(handle, names.index(wanted), wanted)


_FUNCTIONS = (
    ("lambdanets_version", ctypes.c_int64),
    ("lambdanets_num_levels", ctypes.c_int64),
    ("lambdanets_level_name", ctypes.c_char_p, ctypes.c_int64),
    ("lambdanets_level_runs", ctypes.c_bool, ctypes.c_int64),
    ("lambdanets_use_threads", None, ctypes.c_void_p),
    (
        "lambdanets_scratch",
        ctypes.c_int64,
        *[ctypes.c_int64] * 2,
        ctypes.POINTER(_Problem),
        ctypes.c_int64,
        *[ctypes.c_bool] * 2,
    ),
    ("lambdanets_forward", None, ctypes.c_int64, ctypes.c_int64, ctypes.POINTER(_Call)),
    ("lambdanets_backward", None, ctypes.c_int64, ctypes.c_int64, ctypes.POINTER(_Call)),
)


def _torch_parallel_for() -> int | None:
    """Address of PyTorch's loop over its threads, or None where its CPU library does not export it."""
    prefix, suffix = {"win32": ("", ".dll"), "darwin": ("lib", ".dylib")}.get(sys.platform, ("lib", ".so"))
    path = Path(torch.__file__).parent / "lib" / f"{prefix}torch_cpu{suffix}"
    try:
        return ctypes.cast(ctypes.CDLL(str(path)).torch_parallel_for, ctypes.c_void_p).value
    except (OSError, AttributeError):
        return None


def library() -> Library | None:
    """The library at the instruction set to use, or None where it is absent."""
    found = _load()
    return found if isinstance(found, Library) else None


def absence() -> str | None:
    """Why the compiled kernels are absent and how to get them, or None where they are there."""
    found = _load()
    return found if isinstance(found, str) else None


# Multiply-adds from which another thread is worth its start.
SLOT_MULTIPLY_ADDS = 1 << 18


@functools.lru_cache(maxsize=1024)
def _plan(kernel: int, problem: GridProblem, threads: int, has_content: bool, backward: bool) -> tuple[_Problem, int, int]:
    """The problem in C, the slots to cut it into, and the floats of scratch memory that it needs."""
    found = library()
    if found is None:
        raise RuntimeError(absence())
    grid, extents, origin = (
        (before,) * (2 - len(sizes)) + sizes
        for before, sizes in ((1, problem.grid), (1, problem.extents), (0, problem.origin))
    )
    sizes = (problem.batch, problem.heads, problem.dim_key, problem.dim_value, problem.intra_depth)
    given = _Problem(*sizes, *grid, *extents, *origin)
    seen = problem.intra_depth * min(extents[0], grid[0]) * min(extents[1], grid[1])
    products = problem.batch * problem.heads * problem.num_positions * seen * (problem.dim_key + problem.dim_value)
    slots = max(1, min(threads, products // SLOT_MULTIPLY_ADDS))
    count = found.handle.lambdanets_scratch(found.level, kernel, ctypes.byref(given), slots, has_content, backward)
    return given, slots, count


def _fill(place: _Tensor, tensor: Tensor) -> None:
    place.data = tensor.data_ptr()
    place.stride[: tensor.ndim] = tensor.stride()


def _call(
    kernel: int, problem: GridProblem, tensors: dict[str, Tensor | None], has_content: bool, backward: bool
) -> None:
    found = _load()
    given, slots, count = _plan(kernel, problem, torch.get_num_threads(), has_content, backward)
    scratch = torch.empty(count)
    call = _Call(problem=given, scratch=scratch.data_ptr(), slots=slots)
    for name, tensor in tensors.items():
        if tensor is not None:
            _fill(getattr(call, name), tensor)
    function = found.handle.lambdanets_backward if backward else found.handle.lambdanets_forward
    function(found.level, kernel, ctypes.byref(call))


def forward(
    kernel: int, query: Tensor, value: Tensor, table: Tensor, problem: GridProblem, content: Tensor | None
) -> Tensor:
    out = empty_in_order(query, problem.dim_value)
    tensors = {"query": query, "value": value, "table": _of_rank_two(table), "content": content, "out": out}
    _call(kernel, problem, tensors, content is not None, backward=False)
    return out


def backward(
    kernel: int,
    grad: Tensor,
    query: Tensor,
    value: Tensor,
    table: Tensor,
    problem: GridProblem,
    content: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    grad_query, grad_value = empty_in_order(query, problem.dim_key), empty_in_order(value, problem.dim_value)
    grad_table = table.new_empty(table.shape)
    grad_content = None if content is None else content.new_empty(content.shape)
    tensors = {
        "query": query,
        "value": value,
        "table": _of_rank_two(table),
        "content": content,
        "out": grad,
        "grad_query": grad_query,
        "grad_value": grad_value,
        "grad_table": _of_rank_two(grad_table),
        "grad_content": grad_content,
    }
    _call(kernel, problem, tensors, content is not None, backward=True)
    return grad_query, grad_value, grad_table, grad_content


def _of_rank_two(table: Tensor) -> Tensor:
    return table if table.ndim == 4 else table.unsqueeze(2)
