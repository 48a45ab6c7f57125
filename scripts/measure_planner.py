"""Compare the planner's choice with the fastest kernel, by instruction set: writes results/planner.csv.

    python scripts/measure_planner.py                    # some minutes for each instruction set

Every kernel takes turns on every shape of the calibration, at each instruction set that the machine can run: that of
the compiled kernels, of PyTorch's own loops and of its convolutions. The planner has the constants that come with the
package, which are of one of them. A row holds a shape and direction: the kernel that the planner chooses, the fastest
one, and the ratio of their median times. The choice hangs on the shape and the width of vectors, so it is the same in
every run; what the planner does with values of very different sizes is left out here.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from lambdanets.experiments.bench.calibrate import CALIBRATION_CASES, time_kernels
from lambdanets.experiments.bench.contenders import grid_problem
from lambdanets.files import write_table
from lambdanets.kernels.grid.compiled import binding
from lambdanets.kernels.grid.costs import cache_file
from lambdanets.kernels.grid.planner import choose
from lambdanets.provenance import environment

SECONDS, MOST = 1.0, 5.0
COLUMNS = ("instruction_set", "case", "direction", "chosen", "fastest", "chosen_ms", "fastest_ms", "ratio")
# The names that PyTorch and oneDNN have for the instruction sets of the compiled kernels.
OTHERS = {"avx512": ("avx512", "AVX512_CORE"), "avx2": ("avx2", "AVX2"), "portable": ("default", "SSE41")}


def measure() -> None:
    """Print the rows of this process's instruction set as CSV."""
    level, where, writer = os.environ[binding.LEVEL_VARIABLE], environment(), csv.writer(sys.stdout)
    for case in CALIBRATION_CASES:
        times: dict[str, dict[str, float]] = defaultdict(dict)
        for time in time_kernels(case, SECONDS, MOST):
            times[time.direction][time.kernel] = time.seconds
        for direction, seconds in times.items():
            chosen = choose(grid_problem(case), direction == "backward").name
            fastest = min(seconds, key=lambda name: seconds[name])
            pair = seconds.get(chosen, float("inf")), seconds[fastest]
            row = [f"{1e3 * value:.4f}" for value in pair] + [f"{pair[0] / pair[1]:.3f}"]
            heads = f"{case.name}-h{case.num_heads}-k{case.dim_key}"
            writer.writerow([level, heads, direction, chosen, fastest, *row, *where.values()])
        sys.stdout.flush()


def main() -> None:
    """Measure each instruction set in a process of its own and write the table."""
    found = binding.library()
    if found is None:
        sys.exit(f"the compiled kernels are absent: {binding.absence()}")
    if cache_file().exists():
        sys.exit(f"the planner would take this machine's own constants; move {cache_file()} away first")
    rows: list[list[str]] = []
    for level, _ in found.levels:
        loops, convolutions = OTHERS[level]
        variables = {
            binding.LEVEL_VARIABLE: level,
            "ATEN_CPU_CAPABILITY": loops,
            "ONEDNN_MAX_CPU_ISA": convolutions,
        }
        command = [sys.executable, __file__, "--here"]
        done = subprocess.run(command, env={**os.environ, **variables}, stdout=subprocess.PIPE, text=True, check=True)
        own = list(csv.reader(done.stdout.splitlines()))
        rows += own
        ratios = [float(row[COLUMNS.index("ratio")]) for row in own]
        print(f"{level}: {sum(ratio <= 1.1 for ratio in ratios)} of {len(ratios)} choices within 1.1 of the fastest")
    write_table(Path(__file__).parents[1] / "results" / "planner.csv", [*COLUMNS, *environment()], rows)


if __name__ == "__main__":
    measure() if "--here" in sys.argv[1:] else main()
