import pytest

from lambdanets.training.engine.devices import make_accelerator
from lambdanets.training.recipes import get_recipe


def test_one_process_where_several_were_asked_for_is_refused(monkeypatch):
    """What ``accelerate launch --num_processes 2`` sets without GPUs."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    with pytest.raises(ValueError, match=r"starts one alone on a CPU; .*torchrun --nproc-per-node N.*--multi_gpu"):
        make_accelerator(get_recipe("digits"))
