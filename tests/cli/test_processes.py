"""Trainings of several processes, as a launcher starts them."""

import json
import os
import subprocess
import sys

import pytest

from lambdanets.files import read_csv
from lambdanets.training import evaluate_run

PROGRAM = """
import os, signal
from lambdanets.training.engine.loop import Trainer
from lambdanets_cli.app import main

step = Trainer._step

def killed_in_the_third_step(self, update, *batch):
    first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if update == 3 and first and os.environ["RANK"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, update, *batch)

Trainer._step = killed_in_the_third_step
main()
"""


def launched(folder, *words):
    """What a launcher of processes prints, which must end well."""
    done = subprocess.run(
        [sys.executable, "-m", *map(str, words)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_torchrun_restarts_go_on(colours, tmp_path):
    """Two processes are one training, without any setting of accelerate's, on a machine without a GPU.

    One of them dies; torchrun starts both again, and they go on with the run, though its name was made from the time.
    They share the weights, which one process reads at the end.
    """
    (tmp_path / "program.py").write_text(PROGRAM)
    launch = ["torch.distributed.run", "--standalone", "--max-restarts", 3, "--nproc-per-node", 2, "program.py"]
    words = ["--shard", "--image-size", 8, "--workers", 0, "--epochs", 2, "--batch-size", 8, "--checkpoint-every", 2]
    printed = launched(tmp_path, *launch, "train", "--data", colours, *words)
    (run,) = (tmp_path / "runs").iterdir()
    result = json.loads((run / "result.json").read_text())
    assert (result["status"], result["processes"], result["epochs"]) == ("finished", 2, 2)
    assert "Goes on in epoch 1, after 2 of 4 steps" in printed
    for line in ("epoch 1/2", "epoch 2/2", "Test accuracy"):
        assert printed.count(line) == 1
    assert len(read_csv(run / "metrics.csv")) == 2
    # Every test image is counted once, though four are not a multiple of what the two processes take, and the scores
    # are those of the weights in the file, but for the order of sums in float32.
    assert result["test"]["images"] == 4
    assert evaluate_run(run).scores.to_dict() == pytest.approx(result["test"], rel=1e-4)


def test_accelerate_launches_one_training(colours, tmp_path):
    launch = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", 2, "--main_process_port", 0]
    words = ["--image-size", 8, "--workers", 0, "--epochs", 1, "--batch-size", 8, "--output", tmp_path / "run"]
    launched(tmp_path, *launch, "-m", "lambdanets", "train", "--data", colours, *words)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["status"], result["processes"]) == ("finished", 2)
