"""What a training is made of, as plain values: a ``Recipe`` can be written to JSON and read back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

CROPS = ("none", "padded", "resized")
PRECISIONS = ("fp32", "bf16", "fp16")


def _require(condition: bool, name: str, value: object, remedy: str) -> None:
    if not condition:
        raise ValueError(f"{name} is {value!r}; {remedy}")


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
        object.__setattr__(self, "scale", tuple(self.scale))
        _require(self.crop in CROPS, "crop", self.crop, f"use one of {', '.join(CROPS)}")
        _require(self.padding >= 0, "padding", self.padding, "use zero or more pixels")
        _require(
            len(self.scale) == 2 and 0 < self.scale[0] <= self.scale[1] <= 1,
            "scale",
            self.scale,
            "use two shares of the area, 0 < smallest <= largest <= 1",
        )
        _require(0 <= self.rotation <= 180, "rotation", self.rotation, "use 0 to 180 degrees")
        for name in ("horizontal_flip", "random_erasing"):
            value = getattr(self, name)
            _require(0 <= value <= 1, name, value, "use a probability from 0 to 1")


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
    ema_decay: float | None = None
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    augmentation: Augmentation = field(default_factory=Augmentation)
    seed: int = 0
    precision: str = "fp32"
    workers: int = 0
    cpu_threads: int | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            _require(isinstance(value, int) and value >= 1, name, value, "use an integer from 1")
        for name in ("workers", "warmup_epochs", "seed"):
            value = getattr(self, name)
            _require(isinstance(value, int) and value >= 0, name, value, "use an integer from 0")
        for name in ("image_size", "lr_batch_size", "cpu_threads"):
            value = getattr(self, name)
            _require(value is None or value >= 1, name, value, "use an integer from 1")
        for name in ("lr", "weight_decay"):
            value = getattr(self, name)
            _require(0 <= value < float("inf"), name, value, "use a finite number from 0")
        for name in ("label_smoothing", "drop_rate", "drop_path_rate"):
            value = getattr(self, name)
            _require(0 <= value < 1, name, value, "use a number from 0 to below 1")
        _require(0 < self.crop_pct <= 1, "crop_pct", self.crop_pct, "use a share above 0, up to 1")
        decay = self.ema_decay
        _require(decay is None or 0 < decay < 1, "ema_decay", decay, "use a number between 0 and 1, or None")
        clip = self.clip_grad
        _require(clip is None or clip > 0, "clip_grad", clip, "use a number above 0, or None")
        _require(self.precision in PRECISIONS, "precision", self.precision, f"use one of {', '.join(PRECISIONS)}")

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
        try:
            values["augmentation"] = Augmentation(**values.get("augmentation", {}))
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"a recipe does not read: {error}; was it written by another version?") from error
