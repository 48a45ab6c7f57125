"""The kernels compiled for GPUs that are not here: the interpreter takes much that the compiler refuses."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.needs_triton

SCRIPT = Path(__file__).parents[4] / "scripts" / "collect_ahead.py"
# Shared memory of a program, in bytes, by compute capability.
SHARED = {"80": 163 * 1024, "90": 227 * 1024}


@pytest.mark.parametrize(
    ("arch", "arguments"),
    [("90", ["--grid", "28", "28"]), ("80", ["--grid", "14", "14", "--heads", "8"]), ("90", ["--dtype", "float32"])],
)
def test_compiles_within_the_devices_limits(arch, arguments):
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, SCRIPT, "--arch", arch, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    header, _, *lines = (line.strip("| ").split(" | ") for line in done.stdout.splitlines())
    rows = [dict(zip(header, line, strict=True)) for line in lines]
    names = ["output", "query_gradient", "value_gradient", "table_gradient"]
    assert {row["kernel"] for row in rows} == {*names, *(f"lambda_{name}" for name in names)}
    assert all(int(row["shared"]) <= SHARED[arch] for row in rows)
    if "float32" not in arguments:
        assert all(int(row["matrix"]) > 0 for row in rows)


def test_one_shape_compiles_for_all():
    """But for what loads depend on: strides and depths."""
    code = (
        "from collect_ahead import KERNELS\n"
        "for kernel in KERNELS.values():\n"
        "    for p in kernel.params:\n"
        "        if not (p.is_constexpr or p.do_not_specialize): print(p.name)"
    )
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, cwd=SCRIPT.parent, capture_output=True, text=True, check=True)
    specialized = set(done.stdout.split())
    assert {"Q", "V", "T", "Y", "G", "K", "D", "sqb", "svd"} <= specialized
    assert all(name in "QVTYGKD" or (len(name) == 3 and name[0] == "s") for name in specialized), specialized
