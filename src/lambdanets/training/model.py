"""Making models and putting weights into them, with errors that say what does not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

import lambdanets.models  # noqa: F401  (registers the LambdaResNets)
from lambdanets.training.files import naming_failed_writes, replacing
from lambdanets.training.names import unknown_name


def check_model_name(name: str) -> None:
    """Raises a ValueError with the nearest names if timm's registry does not have the model."""
    if not timm.is_model(name) and not name.startswith(("hf-hub:", "hf_hub:", "local-dir:")):
        raise unknown_name("model", name, timm.list_models(), "timm.list_models() lists them all.")


def build_model(
    name: str,
    *,
    num_classes: int,
    in_chans: int,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    **kwargs: Any,
) -> nn.Module:
    """A model from timm's registry, with random weights from torch's generator.

    Args:
        name: the model's name.
        num_classes: outputs of the classifier.
        in_chans: channels of the input.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth.
        **kwargs: further arguments of the model.

    Raises:
        ValueError: there is no such model, or it does not take these arguments.
    """
    check_model_name(name)
    # Not every model takes the drop rates, so they are passed only where they are wanted.
    rates = {"drop_rate": drop_rate, "drop_path_rate": drop_path_rate}
    given = {key: value for key, value in rates.items() if value} | kwargs
    try:
        return timm.create_model(name, num_classes=num_classes, in_chans=in_chans, **given)
    except TypeError as error:
        raise ValueError(f"the model {name!r} cannot be made with {given!r}: {error}") from error


def save_weights(path: Path, weights: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]) -> None:
    """Writes weights as safetensors, all of them or nothing.

    Args:
        path: the file.
        weights: a ``state_dict``.
        metadata: facts to keep with the weights; stored as text.
    """
    # Copies: safetensors refuses tensors that share memory, as one position table for many layers does.
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in weights.items()}
    with replacing(path) as temporary, naming_failed_writes(path):
        save_file(tensors, temporary, metadata={key: str(value) for key, value in metadata.items()})


def load_weights(model: nn.Module, path: Path, class_names: Sequence[str]) -> None:
    """Reads weights into a model.

    Args:
        model: has one output for each class.
        path: a safetensors file.
        class_names: the classes of the data.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, has another number of classes than the data, or is of another model.
    """
    if not path.is_file():
        raise FileNotFoundError(f"the weights {path} do not exist")
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"the weights {path} are damaged or no safetensors file: {error}") from error
    expected = model.state_dict()
    classes = _number_of_classes(model, weights)
    if classes is not None and classes != len(class_names):
        raise ValueError(
            f"the weights {path} have {classes} classes, but the data have {len(class_names)} "
            f"({', '.join(class_names[:5])}{', ...' if len(class_names) > 5 else ''}). "
            "Give the data that the weights were trained on."
        )
    wrong = [
        f"{name} is {tuple(weights[name].shape) if name in weights else 'missing'}, not {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name not in weights or weights[name].shape != tensor.shape
    ]
    wrong += [f"{name} is unknown" for name in weights if name not in expected]
    if wrong:
        raise ValueError(
            f"the weights {path} do not fit the model: {'; '.join(wrong[:3])}"
            f"{f'; and {len(wrong) - 3} more' if len(wrong) > 3 else ''}"
        )
    model.load_state_dict(weights)


def _number_of_classes(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> int | None:
    """The classes of the weights' classifier, where the model names its classifier."""
    name = getattr(model, "default_cfg", {}).get("classifier")
    bias = weights.get(f"{name}.bias") if isinstance(name, str) else None
    return None if bias is None else len(bias)
