"""Nested values with tensors in them as one safetensors file: tensors as its tensors, all else as JSON in its metadata.

Such a file holds what optimizers and generators call their state. Reading it runs no code: it is numbers and text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

_STRUCTURE = "structure"


def save_tree(path: Path, tree: Any) -> None:
    """Write nested dictionaries, lists and tuples of tensors, numbers, texts, truth values and None.

    Args:
        path: the file.
        tree: what to write; the keys of dictionaries are texts or integers.

    Raises:
        TypeError: the tree holds something else.
    """
    tensors: dict[str, torch.Tensor] = {}
    structure = _split(tree, "", tensors)
    save_file(tensors, path, metadata={_STRUCTURE: json.dumps(structure)})


def check_tree(tree: Any) -> None:
    """Raise a TypeError if ``save_tree`` cannot write a tree."""
    _split(tree, "", {})


def load_tree(path: Path) -> Any:
    """Read what ``save_tree`` wrote, with its tensors on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged; the message names it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"the file {path} does not exist")
    try:
        with safe_open(path, "pt") as file:
            structure = json.loads((file.metadata() or {})[_STRUCTURE])
            names = file.keys()
            return _join(structure, {name: file.get_tensor(name) for name in names})
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _split(tree: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(tree, torch.Tensor):
        name = f"{len(tensors)}{name}"  # keys may have "/" in them, and "1" and 1 be two
        # Copies: safetensors refuses tensors that share memory.
        tensors[name] = tree.detach().to("cpu", copy=True).contiguous()
        return {"tensor": name}
    if isinstance(tree, Mapping):
        for key in tree:
            if isinstance(key, bool) or not isinstance(key, (str, int)):
                raise TypeError(f"{name or 'the tree'} has the key {key!r}; only texts and integers can be written")
        return {"dict": [[key, _split(value, f"{name}/{key}", tensors)] for key, value in tree.items()]}
    if isinstance(tree, (list, tuple)):
        items = [_split(value, f"{name}/{index}", tensors) for index, value in enumerate(tree)]
        return {"tuple": items} if isinstance(tree, tuple) else items
    if isinstance(tree, float) and not math.isfinite(tree):
        return {"float": str(tree)}
    if tree is None or type(tree) in (bool, int, float, str):
        return tree
    raise TypeError(f"{name or 'the tree'} is a {type(tree).__name__}, which cannot be written")


def _join(structure: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(structure, list):
        return [_join(item, tensors) for item in structure]
    if not isinstance(structure, dict):
        return structure
    ((kind, content),) = structure.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "float":
        return float(content)
    if kind == "tuple":
        return tuple(_join(item, tensors) for item in content)
    if kind == "dict":
        return {key: _join(value, tensors) for key, value in content}
    raise ValueError(f"it holds a {kind!r}, which is unknown")
