"""Weights that come with the package, under names of timm's registry such as ``lambda_resnet_tiny.digits``.

Each is the folder of the training that made them, in ``weights/``: ``config.json`` with the recipe, the seed and the
input transform, ``best.safetensors``, ``result.json``, a test image in ``samples/`` where the data's licence allows it,
and a model card, ``README.md``, with the command.
``scripts/ship_weights.py`` makes such a folder of a run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lambdanets.names import unknown_name

__all__ = ["DEFAULT", "check_tag", "shipped_arguments", "shipped_cfgs", "shipped_folder", "shipped_names"]

FOLDER = Path(__file__).parent / "weights"
# What a model's name alone loads, and `lambdanets explain` shows.
DEFAULT = "lambda_resnet_tiny.digits"


def shipped_names() -> list[str]:
    """Names of the weights, as ``MODEL.DATA``; the default ones first."""
    names = (file.parent.name for file in FOLDER.glob("*/config.json"))
    return sorted(names, key=lambda name: (name != DEFAULT, name))


def shipped_folder(name: str) -> Path | None:
    """The folder of the weights with this name, or None if there are none."""
    return FOLDER / name if name in shipped_names() else None


def check_tag(name: str) -> None:
    """Raise a ValueError with the nearest names if timm knows the model ``MODEL.TAG``, but no weights of that tag."""
    import timm

    model = name.partition(".")[0]
    known = list(timm.models.get_arch_pretrained_cfgs(model))
    if model != name and known and name not in known:
        raise unknown_name("weights", name, known, f"The model's name alone is {model!r}.")


def shipped_cfgs(model: str) -> dict[str, dict[str, Any]]:
    """Entries for timm's registry of the weights for a model: by name, the fields of its ``PretrainedCfg``."""
    return {name: _cfg(FOLDER / name) for name in shipped_names() if name.split(".")[0] == model}


def shipped_arguments(model: str, tag: str) -> dict[str, Any]:
    """The arguments of the model that weights with this tag were trained with; none for other tags."""
    folder = shipped_folder(f"{model}.{tag}")
    return {} if folder is None else _config(folder)["model"]["kwargs"]


def _config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def _cfg(folder: Path) -> dict[str, Any]:
    config = _config(folder)
    given = config["input"]
    return {
        "file": str(folder / "best.safetensors"),
        "num_classes": len(config["class_names"]),
        "label_names": tuple(config["class_names"]),
        "input_size": (given["channels"], given["image_size"], given["image_size"]),
        "mean": tuple(given["mean"]),
        "std": tuple(given["std"]),
        "interpolation": given["interpolation"],
        "crop_pct": given["crop_pct"],
    }
