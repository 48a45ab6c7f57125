"""The choices of one training as plain values; a ``Recipe`` can be written to JSON or YAML and read back.

The words of the classes' docstrings are also the help of the options of ``lambdanets train``, one option a field
(``lambdanets_cli.recipe_options``).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lambdanets.names import did_you_mean
from lambdanets.training.rules import (
    Rule,
    check_attributes,
    each,
    flag,
    held_out_share,
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
SCHEDULES = ("cosine", "step", "one-cycle", "constant")

# Sizes above these are mistakes, not choices: no machine could hold them.
MAX_IMAGE_SIZE = 8192
MAX_SEED = 2**31 - 1
_MAX_WORKERS = 256


@dataclass(frozen=True)
class Augmentation:
    """Random changes to the training images; validation and test images are not changed.

    Attributes:
        crop: ``"none"``, ``"padded"`` (pad by ``padding`` pixels, then crop to the image size at a random position) or
            ``"resized"`` (random-resized crop, as on ImageNet).
        padding: pixels to add on each side, for ``crop="padded"``.
        scale: smallest and largest fraction of the image's area, for ``crop="resized"``.
        horizontal_flip: probability of a horizontal flip.
        rotation: largest rotation in degrees, in both directions; not for ``crop="resized"``.
        random_erasing: probability of erasing a random rectangle.
        auto_augment: a policy of ``timm.data.auto_augment``, such as ``"rand-m15-n2"``, or None; for
            ``crop="resized"``.
        mixup: mix pairs of images and their labels with a ratio drawn from Beta(mixup, mixup); 0: no mixup. If
            ``cutmix`` is also above 0, each batch uses one of the two, with equal probability.
        cutmix: paste a rectangle of one image into another, its area drawn from Beta(cutmix, cutmix); 0: no cutmix.
        mix_probability: probability that a batch is mixed, if ``mixup`` or ``cutmix`` is above 0.
    """

    crop: str = "none"
    padding: int = 0
    scale: tuple[float, float] = (0.08, 1.0)
    horizontal_flip: float = 0.0
    rotation: float = 0.0
    random_erasing: float = 0.0
    auto_augment: str | None = None
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_probability: float = 1.0

    @property
    def mixes(self) -> bool:
        """True if batches are mixed by mixup or cutmix."""
        return bool(self.mixup or self.cutmix) and self.mix_probability > 0

    def __post_init__(self) -> None:
        if isinstance(self.scale, list):
            object.__setattr__(self, "scale", tuple(self.scale))
        check_attributes(self, _AUGMENTATION)


@dataclass(frozen=True)
class Recipe:
    """All choices of one training.

    Attributes:
        name: name of the recipe on the command line.
        model: a name in timm's registry, which includes the LambdaResNets; or ``local-dir:FOLDER`` or ``hf-hub:NAME``
            for a model with its weights.
        data: ``digits``, ``fashion-mnist``, ``fashion-mnist:DIR``, a folder of images (``DIR`` or
            ``imagefolder:DIR``), or data of timm's readers (``hfds/NAME``, ``torch/NAME``, ``wds/:DIR``). None: the
            recipe has no data of its own.
        model_kwargs: additional arguments for ``timm.create_model``.
        init_from: initial weights: a run folder, bundled weights (``lambda_resnet_tiny.digits``), a file (safetensors,
            or written by ``torch.save`` and without code), or weights of timm (``resnet50.a1_in1k``, ``hf-hub:NAME``,
            ``local-dir:FOLDER``). None: random weights.
        image_size: side of the square input in pixels. None: that of the data or, if they have none, of the initial
            weights.
        crop_pct: fraction of the shorter image side that the centre crop of validation and test images keeps.
        validation_share: fraction of the training images, per class, held out for choosing the best epoch. The data's
            own validation images then become the test set, or training images if there is a test set. None: use the
            data's validation images or, if there are none, a tenth of the training images.
        epochs: number of passes over the training images.
        batch_size: images per update of the weights, in total over all processes and accumulated parts.
        accumulate: number of parts in which each batch is computed, one after the other, to save memory; the gradients
            are added up. Batch-norm statistics are computed for each part separately.
        optimizer: a name known to ``timm.optim.create_optimizer_v2``, such as ``sgd``, ``adamw`` or ``lamb``.
        lr: peak learning rate; per ``lr_batch_size`` images if that is set.
        lr_batch_size: scale the learning rate by ``batch_size / lr_batch_size``. None: no scaling.
        momentum: momentum of SGD and related optimizers.
        weight_decay: weight decay; not applied to biases and norms, as in timm.
        layer_decay: factor by which the learning rate decreases from each layer to the one before it; the classifier
            has the full rate. None: the same rate for all layers.
        frozen_stages: number of groups of layers, from the input on, that keep their weights and batch statistics: 1
            for the stem, 2 for the stem and the first stage, and so on.
        schedule: ``"cosine"`` (down to ``min_lr``), ``"step"`` (multiply by ``decay_rate`` every ``decay_epochs``),
            ``"one-cycle"`` (linear increase for 30 % of the training, then cosine down to ``min_lr``; no other warm-up)
            or ``"constant"``.
        warmup_epochs: epochs of linear warm-up before the schedule.
        min_lr: final learning rate of the schedules ``cosine`` and ``one-cycle``.
        decay_epochs: epochs between two decays of the schedule ``step``.
        decay_rate: decay factor of the schedule ``step``.
        label_smoothing: fraction of the target distributed over all classes.
        clip_grad: largest norm of the gradient. None: no clipping.
        clip_mode: ``"norm"`` clips the norm of the whole gradient; ``"agc"`` clips the gradient of each unit at
            ``clip_grad`` times the norm of its weights (timm's adaptive clipping), except in the classifier.
        nonfinite_steps: number of consecutive steps with a non-finite loss or gradient after which the training ends;
            such steps are skipped, except on a GPU without a gradient scaler. With a scaler (fp16) it takes 16 times as
            many.
        ema_decay: decay of the moving average of the weights (timm's ``ModelEmaV3`` with warm-up); the average is then
            validated, saved and tested. None: no average.
        drop_rate: dropout rate before the classifier.
        drop_path_rate: rate of stochastic depth.
        augmentation: random changes to the training images.
        seed: random seed of the weights, the order of the images and the augmentation.
        precision: ``"fp32"``, ``"bf16"`` or ``"fp16"`` (the last two: mixed precision).
        channels_last: keep images and convolution weights in the channels-last memory format.
        compile: compile the model with ``torch.compile``, separately for each batch shape.
        shard: shard weights, gradients and optimizer state over the processes (PyTorch's FSDP2), for models that do not
            fit on one device; needs two or more processes.
        workers: number of processes that read images, per training process; 0: the training process reads them.
        cpu_threads: number of threads per process for computations on a CPU. None: PyTorch's default.
        skip_bad_images: largest number of unreadable images to replace by the next readable image of the same split; 0:
            an unreadable image is an error.
    """

    name: str
    model: str
    data: str | None
    model_kwargs: Mapping[str, Any] = field(default_factory=dict)
    init_from: str | None = None
    image_size: int | None = None
    crop_pct: float = 1.0
    validation_share: float | None = None
    epochs: int = 10
    batch_size: int = 64
    accumulate: int = 1
    optimizer: str = "adamw"
    lr: float = 1e-3
    lr_batch_size: int | None = None
    momentum: float = 0.9
    weight_decay: float = 0.05
    layer_decay: float | None = None
    frozen_stages: int = 0
    schedule: str = "cosine"
    warmup_epochs: int = 1
    min_lr: float = 0.0
    decay_epochs: int = 30
    decay_rate: float = 0.1
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
    channels_last: bool = False
    compile: bool = False
    shard: bool = False
    workers: int = 0
    cpu_threads: int | None = None
    skip_bad_images: int = 0

    def __post_init__(self) -> None:
        check_attributes(self, _RECIPE)

    @property
    def scaled_lr(self) -> float:
        """The peak learning rate at this recipe's batch size."""
        return self.lr if self.lr_batch_size is None else self.lr * self.batch_size / self.lr_batch_size

    def override(self, **changes: Any) -> Recipe:
        """This recipe with the given fields changed; a value of None leaves a field as it is."""
        return self.replace({name: value for name, value in changes.items() if value is not None})

    def replace(self, changes: Mapping[str, Any]) -> Recipe:
        """This recipe with the given fields changed, those of its augmentation by their own names too.

        Raises:
            ValueError: for a field that recipes do not have, with the nearest name.
        """
        _check_fields(changes, FIELDS + AUGMENTATION_FIELDS, "a recipe")
        inner = {name: value for name, value in changes.items() if name in AUGMENTATION_FIELDS}
        outer = {name: value for name, value in changes.items() if name not in inner}
        if inner:
            outer["augmentation"] = dataclasses.replace(outer.get("augmentation", self.augmentation), **inner)
        return dataclasses.replace(self, **outer)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values for JSON; ``from_dict`` reads them back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Recipe:
        """The recipe that ``to_dict`` wrote.

        Raises:
            ValueError: for a field that recipes do not have, with the nearest name, or one that is missing.
        """
        _check_fields(fields, FIELDS)
        for name in ("name", "model", "data"):
            if name not in fields:
                raise ValueError(f"{name} is missing")
        augmentation = fields.get("augmentation", {})
        if not isinstance(augmentation, Mapping):
            raise refuse(augmentation, "augmentation", "use an object with the fields of an augmentation")
        _check_fields(augmentation, AUGMENTATION_FIELDS, "augmentation.")
        try:
            made = Augmentation(**augmentation)
        except ValueError as error:
            raise ValueError(f"augmentation.{error}") from error
        return cls(**{**fields, "augmentation": made})


FIELDS = tuple(field.name for field in dataclasses.fields(Recipe))
AUGMENTATION_FIELDS = tuple(field.name for field in dataclasses.fields(Augmentation))


def _check_fields(given: Mapping[str, Any], known: Sequence[str], prefix: str = "") -> None:
    for name in given:
        if name not in known:
            raise ValueError(f"{prefix}{name} is no field of a recipe; {did_you_mean(name, known)}")


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
    "mixup": number(0, 1000, "use a number from 0 to 1000"),
    "cutmix": number(0, 1000, "use a number from 0 to 1000"),
    "mix_probability": _probability,
}
_RECIPE: dict[str, Rule] = {
    "name": text,
    "model": text,
    "data": maybe(text),
    "model_kwargs": model_arguments,
    "init_from": maybe(text),
    "image_size": maybe(whole(1, MAX_IMAGE_SIZE)),
    "crop_pct": number(0.05, 1, "use a share from 0.05 to 1"),
    "validation_share": maybe(held_out_share),
    "epochs": whole(1, 10**6),
    "batch_size": whole(1, 10**6),
    "accumulate": whole(1, 10**6),
    "optimizer": text,
    "lr": _positive,
    "lr_batch_size": maybe(whole(1, 10**6)),
    "momentum": _share,
    "weight_decay": _positive,
    "layer_decay": maybe(number(0, 1, "use a factor above 0, to 1, or None", above=True)),
    "frozen_stages": whole(0, 10**4),
    "schedule": one_of(SCHEDULES),
    "warmup_epochs": whole(0, 10**6),
    "min_lr": _positive,
    "decay_epochs": whole(1, 10**6),
    "decay_rate": number(0, 1, "use a factor above 0, to 1", above=True),
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
    "channels_last": flag,
    "compile": flag,
    "shard": flag,
    "workers": whole(0, _MAX_WORKERS),
    "cpu_threads": maybe(whole(1, 1024)),
    "skip_bad_images": whole(0, 10**6),
}
