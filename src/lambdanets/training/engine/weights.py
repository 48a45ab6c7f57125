"""Weights to start from, whatever holds them, fitted to a model of other classes, channels or image size.

Nothing here is read through pickle: files are safetensors, or what ``torch.load(weights_only=True)`` takes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import adapt_input_conv
from torch import nn

import lambdanets.models  # noqa: F401  (registers the LambdaResNets)
from lambdanets.interop.adopt.checkpoints import check_plain, read_checkpoint
from lambdanets.models.resize import fit_positions
from lambdanets.models.shipped import shipped_names
from lambdanets.names import count, first_of, unknown_name
from lambdanets.training.data.transforms import InputTransform
from lambdanets.training.recipes.recipe import Recipe
from lambdanets.training.rules import DECIDED
from lambdanets.training.runs.folder import Run
from lambdanets.training.runs.model import check_weights, names_weights

_FORMS = "use a run folder, a file of weights, or a model of timm that has weights, such as resnet50.a1_in1k"


@dataclass(frozen=True)
class Source:
    """Meaning of an ``init_from``.

    Attributes:
        name: as it was given.
        read: reads the weights by name.
        model: the model's name in timm's registry, None where the weights alone are known.
        kwargs: the model's further arguments.
        transform: the steps from images to the inputs that the weights were trained with, if they are known.
        class_names: their classes, if they are known.
    """

    name: str
    read: Callable[[], dict[str, torch.Tensor]]
    model: str | None = None
    kwargs: Mapping[str, Any] | None = None
    transform: InputTransform | None = None
    class_names: tuple[str, ...] = ()

    def adapted(self, recipe: Recipe, image_size: int) -> Recipe:
        """The recipe with the arguments that its model needs for images of another size than before.

        Raises:
            ValueError: the recipe's model is another one.
        """
        if names_weights(recipe.model):
            raise ValueError(
                f"init_from is {self.name!r}, and model is {recipe.model!r}, which names weights too; give one of both"
            )
        if self.model is None:
            return recipe
        if _plain(recipe.model) != _plain(self.model):
            raise ValueError(
                f"init_from is {self.name!r}, weights of the model {self.model!r}, and model is {recipe.model!r}; "
                f"give --model {self.model}, or no --model"
            )
        kwargs, before = dict(recipe.model_kwargs), dict(self.kwargs or {})
        # A size that the model was made for, as of global lambda layers, follows the images.
        if kwargs.get("img_size") is not None and kwargs["img_size"] == before.get("img_size"):
            kwargs["img_size"] = image_size
        return recipe.override(model_kwargs=kwargs)


def _plain(model: str) -> str:
    return model.partition(".")[0]


def open_source(name: str) -> Source:
    """Find out what holds the weights that ``init_from`` names; they are not read yet.

    Raises:
        FileNotFoundError: it looks like a path, and nothing is there.
        ValueError: it is no such thing, or a run that is damaged.
    """
    path = Path(name).expanduser()
    if names_weights(name):
        return _of_timm(name)
    if path.is_dir() or name in shipped_names():
        return _of_run(name, Run.open_trained(path if path.is_dir() else name))
    if path.exists():
        return Source(name, lambda: read_checkpoint(path).tensors)
    if timm.models.is_model_pretrained(name):
        return _of_timm(name)
    # timm takes every word after a model's name and a dot.
    if "." not in name and timm.is_model(name):
        raise ValueError(f"init_from is {name!r}, a model that has no weights; {_FORMS}")
    if "/" in name or "\\" in name or name.startswith((".", "~")) or path.suffix in (".safetensors", ".pt", ".pth"):
        raise FileNotFoundError(f"init_from is {name!r}, and nothing is there; {_FORMS}")
    known = [*shipped_names(), *timm.list_pretrained()]
    raise unknown_name("weights", name, known, f"For init_from {_FORMS}.", examples=shipped_names())


def _of_run(name: str, run: Run) -> Source:
    file = run.path / "best.safetensors"
    if not file.is_file():
        file = run.path / "last.safetensors"
    model: Mapping[str, Any] = run.config["model"]
    return Source(
        name, lambda: read_checkpoint(file).tensors, model["name"], model["kwargs"], run.transform, run.class_names
    )


def _of_timm(name: str) -> Source:
    transform = None
    # No folder, no network, a file with other content: each is told in its own way.
    try:
        stored = timm.models.resolve_model_input_args(name)
        config = stored["pretrained_cfg"]
        channels, _, size = config["input_size"]
        if channels in (1, 3):
            transform = InputTransform(size, channels, tuple(config["mean"]), tuple(config["std"]))
        names = tuple(map(str, config.get("label_names") or ()))
    except Exception as error:
        raise ValueError(f"init_from is {name!r}, which cannot be opened: {error}") from error
    kwargs = {key: value for key, value in stored.items() if key not in DECIDED}

    def read() -> dict[str, torch.Tensor]:
        # In its own shape, so that timm takes no other weights than all that belong there.
        try:
            return dict(timm.create_model(name, pretrained=True).state_dict())
        except Exception as error:
            raise ValueError(f"the weights {name!r} cannot be loaded: {error}") from error

    return Source(name, read, stored["model_name"], kwargs, transform, names)


@torch.no_grad()
def fit_weights(model: nn.Module, source: Source, class_names: Sequence[str]) -> tuple[str, ...]:
    """Put weights into a model that may have another classifier, other channels or another image size.

    Args:
        model: with random weights, which its classifier keeps if the weights have another number of classes.
        source: holds the weights.
        class_names: the model's classes.

    Returns:
        Sentences for the user: where the weights are from, and what was fitted.

    Raises:
        ValueError: what is left does not fit; the message names it.
    """
    weights, expected = source.read(), model.state_dict()
    check_plain(weights, f"the weights {source.name}")
    notes = [f"Starts from the weights of {source.name}."]
    config = getattr(model, "default_cfg", {})
    weights = {name: _cast(tensor, expected.get(name)) for name, tensor in weights.items()}
    for name in _names(config.get("classifier")):
        notes += _fit_classifier(name, weights, expected, source, class_names)
    for name in _names(config.get("first_conv")):
        notes += _fit_channels(f"{name}.weight", weights, expected)
    weights, more = _fit_positions(model, weights)
    check_weights(model, weights, f"the weights {source.name}")
    model.load_state_dict(weights)
    return (*notes, *more)


def _names(given: str | Sequence[str] | None) -> tuple[str, ...]:
    return () if given is None else (given,) if isinstance(given, str) else tuple(given)


def _cast(tensor: torch.Tensor, like: torch.Tensor | None) -> torch.Tensor:
    """Half precision, as checkpoints are often stored, becomes the model's."""
    both = like is not None and tensor.is_floating_point() and like.is_floating_point()
    return tensor.to(like.dtype) if both else tensor  # type: ignore[union-attr]


def _fit_classifier(
    name: str,
    weights: dict[str, torch.Tensor],
    expected: Mapping[str, torch.Tensor],
    source: Source,
    class_names: Sequence[str],
) -> list[str]:
    keys = [key for key in (f"{name}.weight", f"{name}.bias") if key in expected]
    before = [len(weights[key]) for key in keys if key in weights]
    if not keys:
        return []
    if not before or before[0] != len(class_names):
        weights.update({key: expected[key] for key in keys})
        was = f"; that of {source.name} was for {before[0]}" if before else ""
        return [f"The classifier for {len(class_names)} classes is new, with random weights{was}."]
    if source.class_names and source.class_names != tuple(class_names):
        names, were = first_of(class_names), first_of(source.class_names)
        return [f"The classifier is kept; its classes were {were}, now {names}."]
    return []


def _fit_channels(key: str, weights: dict[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> list[str]:
    if key not in weights or key not in expected:
        return []
    have, want = weights[key].shape, expected[key].shape
    if len(have) != 4 or len(want) != 4 or have[1] == want[1] or (have[0], *have[2:]) != (want[0], *want[2:]):
        return []
    weights[key] = adapt_input_conv(want[1], weights[key], base_chans=have[1])
    return [f"The first convolution is fitted to images of {count(want[1], 'channel', 'channels')}, from {have[1]}."]


def _fit_positions(model: nn.Module, weights: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Tables of positions for another size: those of lambda layers, and what timm resamples of its own models."""
    expected = model.state_dict()
    others = {key: tensor.shape for key, tensor in weights.items() if key in expected}
    fitted = fit_positions(weights, model)
    # timm's families have a function of this name beside the class.
    of_timm = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if of_timm is not None and any(shape != expected[key].shape for key, shape in others.items()):
        fitted = dict(of_timm(fitted, model))
    changed = [key for key, shape in others.items() if key in fitted and fitted[key].shape != shape]
    if not changed:
        return fitted, []
    before, now = (" x ".join(map(str, shape)) for shape in (others[changed[0]], fitted[changed[0]].shape))
    what = count(len(changed), "table of positions is", "tables of positions are")
    return fitted, [f"{what} resampled for the image size: {first_of(changed)}, of {before} now {now}."]
