"""What cells need, against what processes take; what control groups leave of the memory."""

import subprocess
import sys

import psutil
import pytest
import torch

from lambdanets.experiments.compare import measured
from lambdanets.experiments.compare.measured import PROCESS_BYTES, available_memory, step_bytes, turns_bytes

SHAPE = {"image_size": 8, "channels": 1, "classes": 10}
ARGUMENTS = {"layers": [1, 1, 1, 1], "stages": "CCCC", "stem_stride": 1, "img_size": 8}
ROW = {"model": "lambda_resnet_tiny", "model_kwargs": ARGUMENTS}

TRAINING = """
import re, sys
from pathlib import Path
from lambdanets.console import make_console
from lambdanets.experiments.compare.measured import step_bytes
from lambdanets.experiments.compare.study import Options, Place, inspect
from lambdanets.experiments.studies import get_study

study = get_study("layers")
(cell, *_) = (c for c in study.cells(Options(quick=True, data=inspect("digits"), epochs=1)) if c.after)
config = {**cell.config, "lr": 1e-3}
study.run(config, Place(Path(sys.argv[1]), "digits", make_console(stderr=True)))
peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
print(peak, study.needs(config).memory)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak of a process is read from /proc")
@pytest.mark.skipif(torch.accelerator.is_available(), reason="the estimate is of a training on CPUs")
def test_a_training_takes_no_more_than_its_estimate(tmp_path):
    done = subprocess.run([sys.executable, "-c", TRAINING, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    peak, estimate = map(int, done.stdout.split())
    assert 0.5 * estimate < peak < estimate


def test_models_that_take_turns_have_all_weights_and_one_step():
    larger = {"model": "lambda_resnet_tiny", "model_kwargs": {**ARGUMENTS, "layers": [2, 2, 2, 2]}}
    one, other, both = (turns_bytes(rows, SHAPE, 64) for rows in ({"a": ROW}, {"b": larger}, {"a": ROW, "b": larger}))
    assert PROCESS_BYTES < one < other < both < one + other - PROCESS_BYTES
    # A training has the optimizer's two moments besides.
    weights = both - other
    assert step_bytes(*ROW.values(), SHAPE, 64) == one + 2 * weights


def groups(tmp_path, lines, **folders):
    """A list of groups, and a mount with the files of some."""
    (tmp_path / "cgroup").write_text(lines)
    for folder, files in folders.items():
        (tmp_path / "mount" / folder).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (tmp_path / "mount" / folder / name).write_text(text)
    return measured._left_in_groups(tmp_path / "cgroup", tmp_path / "mount")


def second(most, used, files):
    stat = f"anon {used - 2 * files}\nactive_file {files}\ninactive_file {files}\n"
    return {"memory.max": f"{most}\n", "memory.current": f"{used}\n", "memory.stat": stat}


def first(most, used, files):
    stat = f"cache 7\ninactive_file 1\ntotal_active_file {files}\ntotal_inactive_file {files}\n"
    return {"memory.limit_in_bytes": f"{most}\n", "memory.usage_in_bytes": f"{used}\n", "memory.stat": stat}


@pytest.mark.parametrize(
    ("lines", "folders", "left"),
    [
        ("0::/job/step\n", {"job/step": second(1000, 500, 100)}, 700),
        # The nearest group has no limit, that above it has one.
        ("0::/job/step\n", {"job/step": second("max", 500, 100), "job": second(2000, 1900, 0)}, 100),
        # In a container with a path of outside, or in its own namespace.
        ("0::/docker/1234\n", {".": second(1000, 300, 0)}, 700),
        ("0::/\n", {".": second(1000, 300, 0)}, 700),
        ("3:cpu:/a\n2:memory:/job\n1:name=systemd:/x\n0::/\n", {"memory/job": first(1000, 400, 50)}, 700),
        ("2:memory:/docker/1234\n0::/\n", {"memory": first(1000, 1400, 50)}, 0),
        ("0::/job\n", {}, sys.maxsize),
        ("0::/job\n", {"job": second("max", 5, 0)}, sys.maxsize),
    ],
)
def test_control_groups_limit_the_memory(tmp_path, lines, folders, left):
    assert groups(tmp_path, lines, **folders) == left


def test_the_memory_is_what_both_leave(tmp_path, monkeypatch):
    assert measured._left_in_groups(tmp_path / "none", tmp_path) == sys.maxsize
    monkeypatch.setattr(measured, "_left_in_groups", lambda *paths: 5)
    assert available_memory() == 5
    monkeypatch.setattr(measured, "_left_in_groups", lambda *paths: sys.maxsize)
    assert 0 < available_memory() <= psutil.virtual_memory().total
