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
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lambdanets.kernels.autograd.layout import empty_in_order
from lambdanets.kernels.autograd.memory import Workspace
from lambdanets.kernels.grid.contract import Gradients, GridInputs, GridProblem

__all__ = [
    "LEVEL_VARIABLE",
    "LIBRARY_VARIABLE",
    "Library",
    "absence",
    "backward",
    "check",
    "differ_in_size",
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
# Numbers whose sizes are compared from which another thread is worth its start.
SLOT_SIZES = 1 << 16

_VERSION = 2
_REMEDY = (
    "for the compiled ones, install GCC 12 or Clang 15 or newer and then, in the source folder of lambdanets, run "
    "pip install --force-reinstall --no-deps ."
)


# ``Problem`` of abi.h; ``KernelCall``: a problem, a pointer and four strides of each of nine tensors, scratch, slots;
# ``SizesCall`` of sizes.h: a problem, three tensors, scratch, slots, a block, whether channels mix, a ratio.
_PROBLEM, _CALL, _SIZES = struct.Struct("11q"), struct.Struct("11q 45q 2q"), struct.Struct("11q 15q 5q d")
_NULL = (0, 0, 0, 0, 0)
_INT, _BOOL = ctypes.c_int64, ctypes.c_bool
_FUNCTIONS = (
    ("lambdanets_version", _INT),
    ("lambdanets_num_levels", _INT),
    ("lambdanets_level_name", ctypes.c_char_p, _INT),
    ("lambdanets_level_runs", _BOOL, _INT),
    ("lambdanets_use_threads", None, ctypes.c_void_p),
    ("lambdanets_scratch", _INT, _INT, _INT, ctypes.c_char_p, _INT, _BOOL, _BOOL),
    ("lambdanets_forward", None, _INT, _INT, ctypes.c_char_p),
    ("lambdanets_backward", None, _INT, _INT, ctypes.c_char_p),
    ("lambdanets_sizes_scratch", _INT, _INT, ctypes.c_char_p, _INT, _BOOL),
    ("lambdanets_sizes_differ", _BOOL, _INT, ctypes.c_char_p),
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
    """The library, or the reason why it is absent.

    Raises:
        ValueError: if one of the environment variables asks for what there is not.
    """
    path = _find()
    if path is None:
        return f"no compiler built it when lambdanets was installed; {_REMEDY}"
    try:
        handle = ctypes.CDLL(path)
        for name, result, *arguments in _FUNCTIONS:
            function = getattr(handle, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        return _absent(f"{path} cannot be loaded ({error})")
    if handle.lambdanets_version() != _VERSION:
        return _absent(f"{path} is of another version of lambdanets")
    levels = tuple(
        (handle.lambdanets_level_name(level).decode(), level)
        for level in range(handle.lambdanets_num_levels())
        if handle.lambdanets_level_runs(level)
    )
    threads = _parallel_for()
    if threads is not None:
        handle.lambdanets_use_threads(threads)
    return Library(handle, levels, _wanted_level([name for name, _ in levels]))


def _absent(reason: str) -> str:
    """The reason with its remedy; an error where the user named the file."""
    named = os.environ.get(LIBRARY_VARIABLE)
    if named:
        raise ValueError(
            f"{LIBRARY_VARIABLE} must be the file of this version's compiled kernels, got {named!r}: {reason}; unset "
            "it, or build the file with CMake from src/lambdanets/kernels/grid/compiled/cpp"
        )
    return f"{reason}; {_REMEDY}"


def _wanted_level(names: list[str]) -> str:
    wanted = os.environ.get(LEVEL_VARIABLE) or names[0]
    if wanted not in names:
        raise ValueError(f"{LEVEL_VARIABLE} must be one of {', '.join(names)} on this machine, got {wanted!r}")
    return wanted


def _parallel_for() -> int | None:
    """Address of PyTorch's parallel loop, or None where its CPU library does not export it."""
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
def _problem_numbers(problem: GridProblem) -> tuple[int, ...]:
    """The numbers of ``Problem``."""
    grid, extents, origin = problem.as_image()
    sizes = (problem.batch, problem.heads, problem.dim_key, problem.dim_value, problem.intra_depth)
    return (*sizes, *grid, *extents, *origin)


@functools.lru_cache(maxsize=1024)
def _plan(
    found: Library, kernel: int, problem: GridProblem, threads: int, has_content: bool, backward: bool
) -> tuple[tuple[int, ...], int, int]:
    """The sizes of ``Problem``, the number of slots to cut it into, and the floats of scratch memory that it needs."""
    given = _problem_numbers(problem)
    *_, rows, columns, extent_rows, extent_columns, _, _ = given
    seen = problem.intra_depth * min(extent_rows, rows) * min(extent_columns, columns)
    products = problem.batch * problem.heads * problem.num_positions * seen * (problem.dim_key + problem.dim_value)
    slots = max(1, min(threads, products // SLOT_MULTIPLY_ADDS))
    while True:
        count = found.handle.lambdanets_scratch(
            found.level, kernel, _PROBLEM.pack(*given), slots, has_content, backward
        )
        if slots == 1 or count <= SCRATCH_FLOATS:
            return given, slots, count
        slots //= 2


def _call(
    kernel: int,
    inputs: GridInputs,
    workspace: Workspace,
    backward: bool,
    out: Tensor,
    grads: Sequence[Tensor | None] = (None,) * 4,
) -> None:
    """Call a kernel; ``out`` is the output's gradient and ``grads`` are written if ``backward``."""
    found = _load()
    if not isinstance(found, Library):
        raise RuntimeError(found)
    has_content = inputs.content is not None
    given, slots, count = _plan(found, kernel, inputs.problem, torch.get_num_threads(), has_content, backward)
    scratch = workspace.scratch(out, count)  # held until the call ends
    call = _CALL.pack(
        *given,
        *_numbers(inputs.query),
        *_numbers(inputs.value),
        *_table_numbers(inputs.table),
        *_numbers(inputs.content),
        *_numbers(out),
        *_numbers(grads[0]),
        *_numbers(grads[1]),
        *_table_numbers(grads[2]),
        *_numbers(grads[3]),
        scratch.data_ptr(),
        slots,
    )
    function = found.handle.lambdanets_backward if backward else found.handle.lambdanets_forward
    function(found.level, kernel, call)


def _numbers(tensor: Tensor | None) -> tuple[int, ...]:
    """Pointer and four strides."""
    if tensor is None:
        return _NULL
    strides = tensor.stride()
    return (tensor.data_ptr(), *strides) if len(strides) == 4 else (tensor.data_ptr(), *strides, 0)


def _table_numbers(table: Tensor | None) -> tuple[int, ...]:
    """Pointer and four strides of a table; a sequence's table has one row."""
    if table is None or table.ndim == 4:
        return _numbers(table)
    by_depth, by_key, by_place = table.stride()
    return table.data_ptr(), by_depth, by_key, 0, by_place


def forward(kernel: int, inputs: GridInputs, workspace: Workspace) -> Tensor:
    """Forward pass of a kernel by its number; the other arguments are those of ``contract.ForwardPass``."""
    out = empty_in_order(inputs.query, inputs.problem.dim_value)
    _call(kernel, inputs, workspace, False, out)
    return out


def backward(kernel: int, grad: Tensor, inputs: GridInputs, workspace: Workspace) -> Gradients:
    """Backward pass of a kernel by its number; the other arguments are those of ``contract.BackwardPass``."""
    table, content = inputs.table, inputs.content
    grads = (
        empty_in_order(inputs.query, inputs.problem.dim_key),
        empty_in_order(inputs.value, inputs.problem.dim_value),
        table.new_empty(table.shape),
        None if content is None else content.new_empty(content.shape),
    )
    _call(kernel, inputs, workspace, True, grad, grads)
    return grads


def differ_in_size(
    problem: GridProblem,
    query: Tensor,
    value: Tensor,
    grad: Tensor | None,
    block: Sequence[int],
    channels: bool,
    ratio: float,
) -> bool:
    """True if values, or what a value's gradient sums, differ in size by more than a ratio; ``spread.py`` says how.

    Also true if one is not finite.

    Args:
        problem: that :func:`check` has nothing against; the tensors are in float32.
        query: (b, h, n, k).
        value: (b, u, n, v).
        grad: (b, h, n, v), gradient of the output; None in the forward pass.
        block: positions of a block along each axis.
        channels: True if a block is compared with the largest size of all channels.
        ratio: the largest size over that of a block.
    """
    found = _load()
    if not isinstance(found, Library):
        raise RuntimeError(found)
    numbers = value.numel() + (0 if grad is None else grad.numel() + query.numel())
    slots = max(1, min(torch.get_num_threads(), numbers // SLOT_SIZES))
    scratch = value.new_empty(_sizes_scratch(found, problem, slots, grad is not None))  # held until the call ends
    call = _SIZES.pack(
        *_problem_numbers(problem),
        *_numbers(query),
        *_numbers(value),
        *_numbers(grad),
        scratch.data_ptr(),
        slots,
        *(1,) * (2 - len(block)),
        *block,
        channels,
        ratio,
    )
    return found.handle.lambdanets_sizes_differ(found.level, call)


@functools.lru_cache(maxsize=1024)
def _sizes_scratch(found: Library, problem: GridProblem, slots: int, backward: bool) -> int:
    """Floats of scratch memory that a look at sizes needs."""
    of_problem = _PROBLEM.pack(*_problem_numbers(problem))
    return found.handle.lambdanets_sizes_scratch(found.level, of_problem, slots, backward)
