"""Nested values in one safetensors file: all come back, and nothing that is read can run code."""

import math
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from lambdanets.training.engine.trees import load_tree, save_tree


def test_round_trip(tmp_path):
    shared = torch.arange(6.0).reshape(2, 3)
    tree = {
        "state": {0: {"step": torch.tensor(3.0), "exp_avg": shared.t()}, 17: {}},
        "param_groups": [{"lr": 0.1 + 0.2, "betas": (0.9, 0.999), "params": [0, 17], "fused": None, "nesterov": True}],
        "same": (shared, shared[0]),
        "words": ["", "ü\n", -(10**30)],
        "not finite": [math.inf, -math.inf],
        "types": [torch.zeros(0), torch.ones(2, dtype=torch.bool), torch.ones(1, dtype=torch.uint8)],
    }
    save_tree(tmp_path / "a.safetensors", tree)
    read = load_tree(tmp_path / "a.safetensors")

    def check(one, other):
        assert type(one) is type(other)
        if isinstance(one, torch.Tensor):
            assert one.dtype == other.dtype
            assert torch.equal(one, other)
        elif isinstance(one, dict):
            assert list(one) == list(other)
            for key in one:
                check(one[key], other[key])
        elif isinstance(one, (list, tuple)):
            assert len(one) == len(other)
            for pair in zip(one, other, strict=True):
                check(*pair)
        else:
            assert one == other

    check(tree, read)


def test_equal_trees_are_equal_files(tmp_path):
    files = [tmp_path / f"{index}.safetensors" for index in range(4)]
    for file in files:
        save_tree(file, {"a": [1, 2.5, torch.ones(3)], "b": torch.zeros(2)})
    assert len({file.read_bytes() for file in files}) == 1


@pytest.mark.parametrize("value", [object(), {1.5: 2}, {True: 1}, {"a": {1, 2}}, 1j])
def test_what_cannot_be_written(tmp_path, value):
    with pytest.raises(TypeError, match=r"cannot be written|only texts and integers"):
        save_tree(tmp_path / "a.safetensors", value)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("how", ["pickle", "torch", "structure", "no structure", "cut", "empty"])
def test_damaged_files_and_pickles_are_one_error(tmp_path, monkeypatch, how):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "a.safetensors"
    save_tree(file, {"a": torch.ones(3)})
    content = file.read_bytes()
    if how == "pickle":
        file.write_bytes(pickle.dumps(Bomb()))
    elif how == "torch":
        torch.save(Bomb(), file)
    elif how == "structure":
        save_file({}, file, metadata={"structure": '{"object": "os.mkdir"}'})
    elif how == "no structure":
        save_file({}, file)
    else:
        file.write_bytes(content[: len(content) // 2] if how == "cut" else b"")
    with pytest.raises(ValueError, match=r"a\.safetensors is damaged"):
        load_tree(file)
    assert not (tmp_path / "exploded").exists()


def test_keys_with_slashes_and_of_two_kinds_are_not_one(tmp_path):
    tree = {"a/b": torch.ones(1), "a": {"b": torch.zeros(1)}, "1": torch.ones(2), 1: torch.zeros(2)}
    save_tree(tmp_path / "a.safetensors", tree)
    read = load_tree(tmp_path / "a.safetensors")
    assert torch.equal(read["a/b"], tree["a/b"])
    assert torch.equal(read["a"]["b"], tree["a"]["b"])
    assert torch.equal(read["1"], tree["1"])
    assert torch.equal(read[1], tree[1])
