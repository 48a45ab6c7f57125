"""Making models and putting weights into them, with errors that say what does not fit."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

import lambdanets.models  # noqa: F401  (registers the LambdaResNets)
from lambdanets.console import one_line
from lambdanets.files import naming_failed_writes, replacing
from lambdanets.models.shipped import check_tag
from lambdanets.names import first_of, unknown_name

_SOURCES = ("hf-hub:", "hf_hub:", "local-dir:")


def names_weights(name: str) -> bool:
    """True for a model's name that says where its weights lie: ``local-dir:FOLDER`` or ``hf-hub:NAME``."""
    return name.lower().startswith(_SOURCES)


def check_model_name(name: str) -> None:
    """Raise a ValueError with the nearest names if timm's registry does not have the model, or not its weights."""
    if not timm.is_model(name) and not names_weights(name):
        ours = timm.list_models(module="lambda_resnet")
        raise unknown_name("model", name, timm.list_models(), "timm.list_models() lists them all.", examples=ours)
    if not names_weights(name):
        check_tag(name)


def build_model(
    name: str,
    *,
    num_classes: int,
    in_chans: int,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    **kwargs: Any,
) -> nn.Module:
    """A model of timm's registry with random weights from torch's generator, or one that is read with its weights.

    Args:
        name: the model's name in the registry; or ``local-dir:FOLDER`` or ``hf-hub:NAME``, whose weights are loaded
            too. Where these have another number of classes the classifier is new, with random weights.
        num_classes: outputs of the classifier.
        in_chans: channels of the input.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth.
        **kwargs: further arguments of the model.

    Raises:
        ValueError: there is no such model, it does not take these arguments, or its weights cannot be loaded.
    """
    check_model_name(name)
    # Not every model takes the drop rates, so they are passed only where they are wanted.
    rates = {"drop_rate": drop_rate, "drop_path_rate": drop_path_rate}
    given = {key: value for key, value in rates.items() if value} | kwargs
    loads = names_weights(name)
    try:
        return timm.create_model(name, pretrained=loads, num_classes=num_classes, in_chans=in_chans, **given)
    except TypeError as error:
        raise ValueError(f"the model {name!r} cannot be made with {given!r}: {error}") from error
    except Exception as error:
        if not loads:
            raise
        # A missing folder, file or network, a damaged file, weights of another model: each fails in its own way.
        raise ValueError(f"the model {name!r} and its weights cannot be loaded: {error}") from error


def build_model_for_size(
    name: str,
    image_size: int,
    *,
    num_classes: int,
    in_chans: int,
    drop_rate: float,
    drop_path_rate: float,
    **kwargs: Any,
) -> tuple[nn.Module, dict[str, Any]]:
    """A model that takes images of one size, tried on an image without content.

    Models with tables for one size, as most transformers, are told the size by ``img_size`` where they take it.

    Args:
        name: the model's name.
        image_size: side of the images in pixels.
        num_classes: outputs of the classifier.
        in_chans: channels of the images.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth.
        **kwargs: further arguments of the model.

    Returns:
        The model, and the further arguments that it was made with.

    Raises:
        ValueError: there is no such model, it does not take the arguments, or no images of this size.
    """
    rates = {"drop_rate": drop_rate, "drop_path_rate": drop_path_rate}
    generator = torch.get_rng_state()
    for way in _ways_to_the_size(name, image_size, kwargs):
        # The weights must be those of a model that is made at once.
        torch.set_rng_state(generator)
        try:
            model = build_model(name, num_classes=num_classes, in_chans=in_chans, **rates, **way)
        except Exception:
            if way == kwargs:
                raise
            continue
        reason = _why_not(model, in_chans, image_size, num_classes)
        if reason is None:
            return model, way
        if way == kwargs:
            size = f"{image_size}x{image_size} pixels"
            refusal = ValueError(f"the model {name!r} does not take images of {size}{reason}. {_remedy(model)}")
    raise refusal


def _ways_to_the_size(name: str, image_size: int, kwargs: dict[str, Any]) -> list[dict[str, Any]]:
    """Arguments to try, the most promising first; those that were given are among them."""
    if "img_size" in kwargs:
        return [kwargs]
    ways = [kwargs, {**kwargs, "img_size": image_size}]
    fixed = timm.is_model(name) and timm.get_pretrained_cfg_value(name, "fixed_input_size")
    return ways[::-1] if fixed else ways


def _why_not(model: nn.Module, channels: int, size: int, classes: int) -> str | None:
    """The reason why a model cannot classify an image of a size, or None."""
    model.eval()
    try:
        # Whatever a model draws here must not change what is drawn in training, nor may it keep inference tensors.
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            logits = model(torch.zeros(1, channels, size, size))
    # Every model refuses in its own way: by assertions, by products that do not fit.
    except Exception as error:
        return f" ({error})" if str(error) else ""
    finally:
        model.train()
    if not isinstance(logits, torch.Tensor) or logits.shape != (1, classes):
        given = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        return f" (for one image it gives {given}, not {(1, classes)})"
    return None


def _remedy(model: nn.Module) -> str:
    made_for = getattr(model, "default_cfg", {}).get("input_size")
    return (
        f"It was made for {made_for[1]}: give --image-size {made_for[1]}" if made_for else "Give another --image-size"
    )


def save_weights(path: Path, weights: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]) -> None:
    """Write weights as safetensors, all of them or nothing.

    Args:
        path: the file.
        weights: a ``state_dict``.
        metadata: facts to keep with the weights; stored as text, in one line each.
    """
    # Copies: safetensors refuses tensors that share memory, as one position table for many layers does.
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in weights.items()}
    with replacing(path) as temporary, naming_failed_writes(path):
        save_file(tensors, temporary, metadata={key: one_line(value) for key, value in metadata.items()})
        _sort_metadata(temporary)


def _sort_metadata(file: Path) -> None:
    """Put the metadata of a safetensors file in order: safetensors writes them in another one each time."""
    with open(file, "r+b") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) > length:
            raise RuntimeError(f"the header of {file} grew when it was sorted; this is a fault of lambdanets")
        opened.seek(8)
        opened.write(text.ljust(length))


def read_weights(model: nn.Module, path: Path, class_names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Read the weights of a model, which is left as it is.

    Args:
        model: has one output for each class.
        path: a safetensors file.
        class_names: the classes of the data.

    Returns:
        Weights for ``model.load_state_dict``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, has another number of classes than the data, or is of another model.
    """
    if not path.exists():
        raise FileNotFoundError(f"the weights {path} do not exist")
    if not path.is_file():
        raise ValueError(f"the weights {path} are a folder, a pipe or a device; give a safetensors file")
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"the weights {path} are damaged or no safetensors file: {error}") from error
    classes = _number_of_classes(model, weights)
    if classes is not None and classes != len(class_names):
        raise ValueError(
            f"the weights {path} have {classes} classes, but the data have {len(class_names)} "
            f"({', '.join(class_names[:5])}{', ...' if len(class_names) > 5 else ''}). "
            "Give the data that the weights were trained on."
        )
    check_weights(model, weights, f"the weights {path}")
    return weights


def check_weights(model: nn.Module, weights: Mapping[str, torch.Tensor], what: str) -> None:
    """Raise a ValueError that begins with ``what`` for weights that are not a model's, or not finite."""
    expected = model.state_dict()
    wrong = [
        f"{name} is {tuple(weights[name].shape) if name in weights else 'missing'}, not {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name not in weights or weights[name].shape != tensor.shape
    ]
    wrong += [f"{name} is unknown" for name in weights if name not in expected]
    wrong += [
        f"{name} has numbers of type {weights[name].dtype}, not {tensor.dtype}"
        for name, tensor in expected.items()
        if name in weights and weights[name].dtype != tensor.dtype
    ]
    if wrong:
        raise ValueError(f"{what} do not fit the model: {first_of(wrong, separator='; ')}")
    broken = [name for name, tensor in weights.items() if not tensor.isfinite().all()]
    if broken:
        raise ValueError(f"{what} have numbers that are not finite, in {first_of(broken)}")


def _number_of_classes(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> int | None:
    """The classes of the weights' classifier, where the model names its classifier."""
    name = getattr(model, "default_cfg", {}).get("classifier")
    bias = weights.get(f"{name}.bias") if isinstance(name, str) else None
    return None if bias is None else len(bias)
