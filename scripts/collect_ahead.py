"""Compile the Triton kernels without a GPU, and list the results: registers, spills, shared memory, instructions.

Triton brings its compilers along, so this runs on any Linux machine. Without arguments it compiles for an H100 what
docs/gpu.md shows, into results/ahead.csv; with arguments it prints one shape:

    python scripts/collect_ahead.py
    python scripts/collect_ahead.py --arch 80 --dtype bfloat16 --grid 14 14 --depth 64 --every

It tells what a program needs and issues, not how long that takes.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lambdanets.files import write_csv
from lambdanets.kernels.grid.contract import GridProblem
from lambdanets.kernels.grid.triton import lambda_first, lambda_kernels, query_kernels
from lambdanets.kernels.grid.triton.query_first import candidates, tile
from lambdanets.kernels.grid.triton.tiling import Config
from lambdanets.provenance import environment

KERNELS = {
    name.removesuffix("_kernel"): getattr(module, name)
    for module in (query_kernels, lambda_kernels)
    for name in module.__all__
}

_POINTERS = ("Q", "V", "T", "Y", "G")
_TRITON = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_INSTRUCTION = re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?(\S.*?);")
_LABEL = re.compile(r"\s*\.(L_x?_?\d+):")


def _is_lambda_first(name: str) -> bool:
    return name.startswith("lambda_")


def _is_of_context(name: str) -> bool:
    return name in ("lambda_value_gradient", "lambda_table_gradient")


def configurations(name: str, problem: GridProblem) -> tuple[Config, ...]:
    """Configurations to try for a kernel, the most promising first."""
    if _is_lambda_first(name):
        return lambda_first.candidates(problem, for_gradient=_is_of_context(name))
    return candidates(problem)


def _constants(name: str, problem: GridProblem, config: Config) -> dict[str, Any]:
    if not _is_lambda_first(name):
        return tile(problem, config.block).constants()
    tiling = lambda_first.tile(problem, config.block)
    width = {"BX": tiling.bands(*problem.as_image()[1])[2]} if name == "lambda_table_gradient" else {}
    return {**tiling.constants(), **width}


def _scores(name: str, problem: GridProblem, config: Config) -> int:
    """Elements of S that a step of a kernel stands for."""
    if _is_lambda_first(name):
        tiling = lambda_first.tile(problem, config.block)
        return tiling.positions * tiling.block * tiling.examples * problem.heads
    return 2 * tile(problem, config.block).heads * config.block**2


def compiled(name: str, problem: GridProblem, config: Config, arch: int = 90, precision: str = "ieee") -> Any:
    """A kernel compiled for a problem whose tensors have their depth last.

    Args:
        name: from ``KERNELS``.
        problem: its sizes.
        config: tile, warps and stages.
        arch: compute capability without its dot: 90 for an H100, 80 for an A100.
        precision: of float32 products, "ieee" or "tf32".
    """
    kernel = KERNELS[name]
    constants = {**_constants(name, problem, config), "UPCAST": False, "PRECISION": precision}
    signature, hints = {}, {}
    for place, argument in enumerate(kernel.arg_names):
        is_stride = len(argument) == 3 and argument.startswith("s")
        if is_stride and argument[-1] in "dk":
            constants[argument] = 1
        if argument in constants:
            signature[argument] = "constexpr"
            continue
        result_in_float32 = argument == "Y" and name.endswith("table_gradient")
        pointer = "*fp32" if result_in_float32 else f"*{_TRITON[problem.dtype]}"
        signature[argument] = pointer if argument in _POINTERS else "i32"
        if argument in _POINTERS or argument in "KD" or is_stride:
            hints[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=hints)
    options = {"num_warps": config.warps, "num_stages": config.stages}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def report(name: str, problem: GridProblem, config: Config, arch: int = 90, precision: str = "ieee") -> dict[str, Any]:
    """Resources of one kernel, as :func:`compiled` makes it.

    Returns:
        ``shared`` and ``stack`` (what does not fit into registers) in bytes, ``registers`` of a thread, instructions
        of a warp in the inner loop (``loop``), among them ``matrix`` products and ``shuffles``, and ``clocks`` that
        issuing them takes for one element of S on one processor of four schedulers. A loop over heads within, which
        makes the gradient of λp, is counted once.
    """
    result = compiled(name, problem, config, arch, precision)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "kernel.cubin")
        Path(path).write_bytes(result.asm["cubin"])
        usage = _run("cuobjdump", "-res-usage", path)
        loop = _inner_loop(_run("nvdisasm", "-c", path))
    registers, stack = (int(re.search(rf"{word}:(\d+)", usage)[1]) for word in ("REG", "STACK"))  # type: ignore[index]
    kinds = Counter(instruction.split()[0].split(".")[0] for instruction in loop)
    return {
        "kernel": name,
        "block": config.block,
        "warps": config.warps,
        "stages": config.stages,
        "shared": result.metadata.shared,
        "registers": registers,
        "stack": stack,
        "loop": len(loop),
        "matrix": kinds["HGMMA"] + kinds["HMMA"],
        "shuffles": kinds["SHFL"],
        "clocks": round(len(loop) * config.warps / 4 / _scores(name, problem, config), 3),
    }


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([str(_TOOLS / tool), *arguments], capture_output=True, text=True, check=True).stdout


def _inner_loop(listing: str) -> list[str]:
    """Instructions of the loop with the most matrix products; the shorter one if one holds the other."""
    instructions: list[str] = []
    labels: dict[str, int] = {}
    loops: list[list[str]] = []
    for line in listing.splitlines():
        label, found = _LABEL.match(line), _INSTRUCTION.match(line)
        if label is not None:
            labels[label[1]] = len(instructions)
        elif found is not None:
            instructions.append(found[1])
            target = re.search(r"BRA.*\.(L_x?_?\d+)", found[1])
            if target is not None and target[1] in labels:
                loops.append(instructions[labels[target[1]] :])
    return max(loops, key=lambda loop: (sum("MMA" in each for each in loop), -len(loop)), default=[])


def reports(
    dtype: torch.dtype = torch.bfloat16,
    grid: Sequence[int] = (28, 28),
    depth: int = 64,
    heads: int = 4,
    arch: int = 90,
    precision: str = "ieee",
    every: bool = False,
) -> list[dict[str, Any]]:
    """Reports of all kernels for one shape, each in the configuration that is tried first or in every one."""
    extents, origin = [2 * size - 1 for size in grid], [size - 1 for size in grid]
    problem = GridProblem.of(128, heads, 16, depth, 1, grid, extents, origin, dtype, "cuda")
    return [
        report(name, problem, config, arch, precision)
        for name in KERNELS
        for config in configurations(name, problem)[: None if every else 1]
    ]


def print_one_shape() -> None:
    """Print a table for the shape that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--arch", type=int, default=90, help="compute capability: 90 for an H100, 80 for an A100")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--grid", type=int, nargs="+", default=[28, 28], help="one or two sizes")
    parser.add_argument("--depth", type=int, default=64, help="of the values, v")
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--tf32", action="store_true", help="float32 products as TF32")
    parser.add_argument("--every", action="store_true", help="every configuration, not the first alone")
    given = parser.parse_args()
    precision = "tf32" if given.tf32 else "ieee"
    dtype = getattr(torch, given.dtype)
    rows = reports(dtype, given.grid, given.depth, given.heads, given.arch, precision, given.every)
    print(f"| {' | '.join(rows[0])} |\n|{' --- |' * len(rows[0])}")
    for row in rows:
        print(f"| {' | '.join(map(str, row.values()))} |")


def collect() -> None:
    """Write results/ahead.csv."""
    versions = environment("triton", "torch", "commit")
    rows = [
        {"depth": str(depth), **{key: str(value) for key, value in row.items()}, **versions}
        for depth in (64, 16)
        for row in reports(depth=depth, every=True)
    ]
    write_csv(Path(__file__).parents[1] / "results" / "ahead.csv", rows)


if __name__ == "__main__":
    print_one_shape() if len(sys.argv) > 1 else collect()
