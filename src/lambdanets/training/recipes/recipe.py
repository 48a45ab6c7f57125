"""The choices of one training as plain values; a ``Recipe`` can be written to JSON and read back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lambdanets.training.rules import (
    Rule,
    check_attributes,
    each,
    maybe,
    model_arguments,
    number,
    one_of,
    refuse,
    text,
    whole,
)

CROPS = ("none", "padded", "resized")
PRECISIONS = ("fp32", "bf16", "fp16")
CLIP_MODES = ("norm", "agc")


# Sizes above these are mistakes, not choices: no machine could hold them.
MAX_IMAGE_SIZE = 8192
MAX_SEED = 2**31 - 1
_MAX_WORKERS = 256


@dataclass(frozen=True)
class Augmentation:
    """Random changes to the training images. Validation and test images never see them.

    Attributes:
        crop: ``"none"``, ``"padded"`` (pad by ``padding`` pixels, cut out the image size at random) or
            ``"resized"`` (random-resized crop, as on ImageNet).
        padding: pixels added on each side, for ``crop="padded"``.
        scale: smallest and largest share of the image's area, for ``crop="resized"``.
        horizontal_flip: probability of mirroring left and right.
        rotation: largest rotation in degrees, either way.
        random_erasing: probability of blanking a random rectangle.
        auto_augment: a policy of ``timm.data.auto_augment``, such as ``"rand-m15-n2"``, or None.
    """

    crop: str = "none"
    padding: int = 0
    scale: tuple[float, float] = (0.08, 1.0)
    horizontal_flip: float = 0.0
    rotation: float = 0.0
    random_erasing: float = 0.0
    auto_augment: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.scale, list):
            object.__setattr__(self, "scale", tuple(self.scale))
        check_attributes(self, _AUGMENTATION)


@dataclass(frozen=True)
class Recipe:
    """All choices of one training.

    Attributes:
        name: the recipe's name on the command line.
        model: a name in timm's registry, where the LambdaResNets are too.
        data: a data specification (see ``lambdanets.training.data``), or None where the user must give one.
        model_kwargs: further arguments for ``timm.create_model``.
        image_size: side of the square input in pixels; None takes the data's own size.
        crop_pct: share of the image's shorter side that validation and test images keep (centre crop).
        epochs: passes over the training images.
        batch_size: images a step, over all processes together.
        optimizer: a name that ``timm.optim.create_optimizer_v2`` knows.
        lr: peak learning rate, per ``lr_batch_size`` images if that is given.
        lr_batch_size: the learning rate scales with ``batch_size / lr_batch_size``; None: no scaling.
        momentum: momentum of SGD and its relatives.
        weight_decay: weight decay; biases and norms are left out, as timm does.
        warmup_epochs: epochs of linear warm-up; a cosine decay to zero follows.
        label_smoothing: share of the target spread over all classes.
        clip_grad: largest norm of the gradient, None: no clipping.
        clip_mode: ``"norm"`` clips by the norm of the whole gradient; ``"agc"`` each unit's by ``clip_grad`` times the
            norm of its weights (timm's adaptive clipping), the classifier left out.
        nonfinite_steps: steps in a row whose loss or gradient is not finite, and which are left out, before the
            training ends; under a gradient scaler (fp16) 16 times as many.
        ema_decay: decay of the moving average of the weights (timm's ``ModelEmaV3`` with warm-up), None: no
            average. With an average, it is what is validated, saved and tested.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth.
        augmentation: random changes to the training images.
        seed: seed of the weights, of the order of the images and of the augmentation.
        precision: ``"fp32"``, ``"bf16"`` or ``"fp16"`` (mixed precision).
        workers: processes that read images for each training process; 0 reads in the training process.
        cpu_threads: threads a process computes with on a CPU; None leaves it to PyTorch.
    """

    name: str
    model: str
    data: str | None
    model_kwargs: Mapping[str, Any] = field(default_factory=dict)
    image_size: int | None = None
    crop_pct: float = 1.0
    epochs: int = 10
    batch_size: int = 64
    optimizer: str = "adamw"
    lr: float = 1e-3
    lr_batch_size: int | None = None
    momentum: float = 0.9
    weight_decay: float = 0.05
    warmup_epochs: int = 1
    label_smoothing: float = 0.1
    clip_grad: float | None = None
    clip_mode: str = "norm"
    nonfinite_steps: int = 3
    ema_decay: float | None = None
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    augmentation: Augmentation = field(default_factory=Augmentation)
    seed: int = 0
    precision: str = "fp32"
    workers: int = 0
    cpu_threads: int | None = None

    def __post_init__(self) -> None:
        check_attributes(self, _RECIPE)

    @property
    def scaled_lr(self) -> float:
        """The peak learning rate at this recipe's batch size."""
        return self.lr if self.lr_batch_size is None else self.lr * self.batch_size / self.lr_batch_size

    def override(self, **changes: Any) -> Recipe:
        """This recipe with the given fields changed; a value of None leaves a field as it is."""
        return dataclasses.replace(self, **{name: value for name, value in changes.items() if value is not None})

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values for JSON; ``from_dict`` reads them back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Recipe:
        """The recipe that ``to_dict`` wrote.

        Raises:
            ValueError: for a field that recipes do not have, or one that is missing.
        """
        values = dict(fields)
        augmentation = values.get("augmentation", {})
        if not isinstance(augmentation, Mapping):
            raise refuse(augmentation, "augmentation", "use an object with the fields of an augmentation")
        try:
            try:
                values["augmentation"] = Augmentation(**augmentation)
            except ValueError as error:
                raise ValueError(f"augmentation.{error}") from error
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"a recipe does not read: {error}; was it written by another version?") from error


def _scale(value: object, name: str) -> None:
    try:
        each(number(0, 1, "", above=True), least=2)(value, name)
        fits = len(value) == 2 and value[0] <= value[1]  # type: ignore[arg-type, index]
    except ValueError:
        fits = False
    if not fits:
        raise refuse(value, name, "use two shares of the area, 0 < smallest <= largest <= 1")


def _augmentation(value: object, name: str) -> None:
    if not isinstance(value, Augmentation):
        raise refuse(value, name, "use an Augmentation")


_share = number(0, 1, "use a number from 0 to below 1", below=True)
_probability = number(0, 1, "use a probability from 0 to 1")
_positive = number(0, math.inf, "use a finite number from 0")
_AUGMENTATION: dict[str, Rule] = {
    "crop": one_of(CROPS),
    "padding": whole(0, MAX_IMAGE_SIZE),
    "scale": _scale,
    "horizontal_flip": _probability,
    "rotation": number(0, 180, "use 0 to 180 degrees"),
    "random_erasing": _probability,
    "auto_augment": maybe(text),
}
_RECIPE: dict[str, Rule] = {
    "name": text,
    "model": text,
    "data": maybe(text),
    "model_kwargs": model_arguments,
    "image_size": maybe(whole(1, MAX_IMAGE_SIZE)),
    "crop_pct": number(0.05, 1, "use a share from 0.05 to 1"),
    "epochs": whole(1, 10**6),
    "batch_size": whole(1, 10**6),
    "optimizer": text,
    "lr": _positive,
    "lr_batch_size": maybe(whole(1, 10**6)),
    "momentum": _share,
    "weight_decay": _positive,
    "warmup_epochs": whole(0, 10**6),
    "label_smoothing": _share,
    "clip_grad": maybe(number(0, math.inf, "use a number above 0, or None", above=True)),
    "clip_mode": one_of(CLIP_MODES),
    "nonfinite_steps": whole(1, 10**6),
    "ema_decay": maybe(number(0, 1, "use a number between 0 and 1, or None", above=True, below=True)),
    "drop_rate": _share,
    "drop_path_rate": _share,
    "augmentation": _augmentation,
    "seed": whole(0, MAX_SEED),
    "precision": one_of(PRECISIONS),
    "workers": whole(0, _MAX_WORKERS),
    "cpu_threads": maybe(whole(1, 1024)),
}
