"""The compiled library: where it is, why it is absent, and calls of its kernels.

Its functions are plain C over raw pointers, sizes and strides: the library knows neither Python nor PyTorch, so one
build serves every version of both. Its threads are PyTorch's own, through ``torch_parallel_for``, which PyTorch exports
in C.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lambdanets.kernels.autograd.memory import Workspace, empty_in_order
from lambdanets.kernels.grid.contract import GridProblem

__all__ = [
    "LEVEL_VARIABLE",
    "LIBRARY_VARIABLE",
    "Library",
    "absence",
    "backward",
    "check",
    "forward",
    "lanes",
    "library",
]

# Environment variables: an instruction set, and another file of the library (a build with sanitizers, say).
LEVEL_VARIABLE, LIBRARY_VARIABLE = "LAMBDANETS_SIMD", "LAMBDANETS_LIBRARY"
# Kernels by their number in the library.
QUERY_FIRST, SPECTRAL = 0, 1
# Multiply-adds from which another thread is worth its start.
SLOT_MULTIPLY_ADDS = 1 << 18
# Floats of scratch memory above which a call is cut into fewer parts, each of which has sums of its own.
SCRATCH_FLOATS = 1 << 27

_VERSION = 1
_REMEDY = (
    "for the compiled ones, install GCC 12 or Clang 15 or newer and then, in the source folder of lambdanets, run "
    "pip install --force-reinstall --no-deps ."
)


class _Tensor(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("stride", ctypes.c_int64 * 4))


_SIZES = (
    *("batch", "heads", "dim_key", "dim_value", "intra_depth"),
    *("rows", "columns", "extent_rows", "extent_columns", "origin_row", "origin_column"),
)
_TENSORS = (
    *("query", "value", "table", "content", "out"),
    *("grad_query", "grad_value", "grad_table", "grad_content"),
)


class _Problem(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int64) for name in _SIZES)


class _Call(ctypes.Structure):
    _fields_ = (
        ("problem", _Problem),
        *((name, _Tensor) for name in _TENSORS),
        ("scratch", ctypes.c_void_p),
        ("slots", ctypes.c_int64),
    )


_INT, _BOOL = ctypes.c_int64, ctypes.c_bool
_FUNCTIONS = (
    ("lambdanets_version", _INT),
    ("lambdanets_num_levels", _INT),
    ("lambdanets_level_name", ctypes.c_char_p, _INT),
    ("lambdanets_level_runs", _BOOL, _INT),
    ("lambdanets_use_threads", None, ctypes.c_void_p),
    ("lambdanets_scratch", _INT, _INT, _INT, ctypes.POINTER(_Problem), _INT, _BOOL, _BOOL),
    ("lambdanets_forward", None, _INT, _INT, ctypes.POINTER(_Call)),
    ("lambdanets_backward", None, _INT, _INT, ctypes.POINTER(_Call)),
)


@dataclass(frozen=True)
class Library:
    """The loaded library at one instruction set.

    Args:
        handle: of the shared library.
        levels: instruction sets that this machine can run, by name, with their number in the library; best first.
        name: the one to use.
    """

    handle: ctypes.CDLL
    levels: tuple[tuple[str, int], ...]
    name: str

    @functools.cached_property
    def level(self) -> int:
        """Number of the instruction set to use."""
        return dict(self.levels)[self.name]


def library() -> Library | None:
    """The library, or None where it is absent."""
    found = _load()
    return found if isinstance(found, Library) else None


def absence() -> str | None:
    """The reason why the compiled kernels are absent and how to get them, or None where they are present."""
    found = _load()
    return found if isinstance(found, str) else None


def lanes() -> int:
    """Elements of a vector register at the instruction set to use; 8 where the library is absent."""
    found = library()
    return 8 if found is None else {"avx512": 16, "avx2": 8}.get(found.name, 4)


def _find() -> str | None:
    """The library's file: the variable's, or that of this package, which has two folders in an editable install."""
    named = os.environ.get(LIBRARY_VARIABLE)
    if named:
        return named
    spec = importlib.util.find_spec(f"{__package__}.lambdanets_compiled")
    return None if spec is None else spec.origin


@functools.cache
def _load() -> Library | str:
    """The library, or the reason why it is absent."""
    path = _find()
    if path is None:
        return f"no compiler built it when lambdanets was installed; {_REMEDY}"
    try:
        handle = ctypes.CDLL(path)
        for name, result, *arguments in _FUNCTIONS:
            function = getattr(handle, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        return f"{path} cannot be loaded ({error}); {_REMEDY}"
    if handle.lambdanets_version() != _VERSION:
        return f"{path} is of another version of lambdanets; {_REMEDY}"
    levels = tuple(
        (handle.lambdanets_level_name(level).decode(), level)
        for level in range(handle.lambdanets_num_levels())
        if handle.lambdanets_level_runs(level)
    )
    threads = _parallel_for()
    if threads is not None:
        handle.lambdanets_use_threads(threads)
    return Library(handle, levels, _wanted_level([name for name, _ in levels]))


def _wanted_level(names: list[str]) -> str:
    wanted = os.environ.get(LEVEL_VARIABLE) or names[0]
    if wanted not in names:
        raise ValueError(f"{LEVEL_VARIABLE} must be one of {', '.join(names)} on this machine, got {wanted!r}")
    return wanted


def _parallel_for() -> int | None:
    """Address of PyTorch's parallel loop, or None where its CPU library does not export it (before 2.10)."""
    prefix, suffix = {"win32": ("", ".dll"), "darwin": ("lib", ".dylib")}.get(sys.platform, ("lib", ".so"))
    path = Path(torch.__file__).parent / "lib" / f"{prefix}torch_cpu{suffix}"
    try:
        return ctypes.cast(ctypes.CDLL(str(path)).torch_parallel_for, ctypes.c_void_p).value
    except (OSError, AttributeError):
        return None


def check(problem: GridProblem) -> str | None:
    """The reason why no compiled kernel can run on a problem, or None."""
    if len(problem.grid) > 2:
        return f"it is for sequences and images, and this grid has rank {len(problem.grid)}"
    if problem.device != "cpu":
        return f"it is for CPUs, and this call is on {problem.device}"
    if problem.dtype == torch.float64:  # half precision reaches it as float32
        return "it computes in float32, and this call is in float64"
    return absence()


@functools.lru_cache(maxsize=1024)
def _plan(
    found: Library, kernel: int, problem: GridProblem, threads: int, has_content: bool, backward: bool
) -> tuple[_Problem, int, int]:
    """The problem in C, the number of slots to cut it into, and the floats of scratch memory that it needs."""
    grid, extents, origin = (
        (before,) * (2 - len(sizes)) + sizes
        for before, sizes in ((1, problem.grid), (1, problem.extents), (0, problem.origin))
    )
    sizes = (problem.batch, problem.heads, problem.dim_key, problem.dim_value, problem.intra_depth)
    given = _Problem(*sizes, *grid, *extents, *origin)
    seen = problem.intra_depth * min(extents[0], grid[0]) * min(extents[1], grid[1])
    products = problem.batch * problem.heads * problem.num_positions * seen * (problem.dim_key + problem.dim_value)
    slots = max(1, min(threads, products // SLOT_MULTIPLY_ADDS))
    while True:
        count = found.handle.lambdanets_scratch(found.level, kernel, ctypes.byref(given), slots, has_content, backward)
        if slots == 1 or count <= SCRATCH_FLOATS:
            return given, slots, count
        slots //= 2


def _call(
    kernel: int,
    problem: GridProblem,
    workspace: Workspace,
    backward: bool,
    tensors: tuple[Any, ...],
) -> None:
    """Call a kernel with the tensors of ``_TENSORS``, those behind the given ones being null."""
    found = _load()
    if not isinstance(found, Library):
        raise RuntimeError(found)
    content, out = tensors[3:5]
    given, slots, count = _plan(found, kernel, problem, torch.get_num_threads(), content is not None, backward)
    call = _Call(given)
    for name, tensor in zip(_TENSORS, tensors, strict=False):
        if tensor is not None:
            if name.endswith("table") and tensor.ndim == 3:
                tensor = tensor.unsqueeze(2)
            setattr(call, name, _Tensor(tensor.data_ptr(), (_INT * 4)(*tensor.stride())))
    scratch = workspace.scratch(out, count)  # held until the call ends
    call.scratch, call.slots = scratch.data_ptr(), slots
    function = found.handle.lambdanets_backward if backward else found.handle.lambdanets_forward
    function(found.level, kernel, call)


def forward(
    kernel: int,
    query: Tensor,
    value: Tensor,
    table: Tensor,
    problem: GridProblem,
    workspace: Workspace,
    content: Tensor | None = None,
) -> Tensor:
    """Forward pass of a kernel by its number; the other arguments are those of ``contract.Forward``."""
    out = empty_in_order(query, problem.dim_value)
    _call(kernel, problem, workspace, False, (query, value, table, content, out))
    return out


def backward(
    kernel: int,
    grad: Tensor,
    query: Tensor,
    value: Tensor,
    table: Tensor,
    problem: GridProblem,
    workspace: Workspace,
    content: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Backward pass of a kernel by its number; the other arguments are those of ``contract.Backward``."""
    grads = (
        empty_in_order(query, problem.dim_key),
        empty_in_order(value, problem.dim_value),
        table.new_empty(table.shape),
        None if content is None else content.new_empty(content.shape),
    )
    _call(kernel, problem, workspace, True, (query, value, table, content, grad, *grads))
    return grads
