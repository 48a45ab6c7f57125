"""The checks before a training begins: the data, the batches, the choices, and the weights to start from."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import timm
import timm.optim
import torch
from accelerate import Accelerator
from torch import nn

from lambdanets.names import count, first_of
from lambdanets.training.data import FileImages, ImageData
from lambdanets.training.data.inspection import describe_copies, inspect_images
from lambdanets.training.data.skipping import FILE as SKIPPED
from lambdanets.training.data.skipping import read_or_next
from lambdanets.training.data.transforms import InputTransform
from lambdanets.training.engine.loaders import check_parallel, fewest_in_a_step
from lambdanets.training.engine.mixing import check_mixing
from lambdanets.training.engine.optimisation import check_optimizer, freeze_stages
from lambdanets.training.engine.weights import Source, fit_weights
from lambdanets.training.recipes.recipe import AUGMENTATION_FIELDS, Augmentation, Recipe
from lambdanets.training.rules import DECIDED, class_names, refuse
from lambdanets.training.runs.model import build_model_for_size, names_weights


@dataclass(frozen=True)
class Start:
    """A model before its training.

    Attributes:
        model: the model.
        recipe: the recipe with the model's name and arguments as the registry has them.
        weights: the name of the weights that were loaded, None for random ones.
        notes: sentences for the user.
    """

    model: nn.Module
    recipe: Recipe
    weights: str | None
    notes: tuple[str, ...]


def _has_momentum(recipe: Recipe) -> bool:
    try:
        return timm.optim.get_optimizer_info(recipe.optimizer.lower()).has_momentum
    except ValueError:  # an unknown one is refused where it is made
        return True


# Fields that count only together with others: when they do, and what they need then.
_NEEDS: dict[str, tuple[Callable[[Recipe], bool], str]] = {
    "momentum": (_has_momentum, "an optimizer with momentum, such as sgd"),
    "warmup_epochs": (lambda recipe: recipe.schedule != "one-cycle", "another schedule than one-cycle"),
    "min_lr": (lambda recipe: recipe.schedule in ("cosine", "one-cycle"), "the schedule cosine or one-cycle"),
    "decay_epochs": (lambda recipe: recipe.schedule == "step", "the schedule step"),
    "decay_rate": (lambda recipe: recipe.schedule == "step", "the schedule step"),
    "clip_mode": (lambda recipe: recipe.clip_grad is not None, "clip_grad"),
    "padding": (lambda recipe: recipe.augmentation.crop == "padded", "the crop padded"),
    "scale": (lambda recipe: recipe.augmentation.crop == "resized", "the crop resized"),
    "rotation": (lambda recipe: recipe.augmentation.crop != "resized", "another crop than resized"),
    "auto_augment": (lambda recipe: recipe.augmentation.crop == "resized", "the crop resized"),
    "mix_probability": (lambda recipe: recipe.augmentation.mixes, "mixup or cutmix above 0"),
}


def without_effect(recipe: Recipe) -> dict[str, str]:
    """The fields of a recipe and of its augmentation that change nothing, each with what it needs to do so."""
    return {name: needs for name, (counts, needs) in _NEEDS.items() if not counts(recipe)}


def describe_without_effect(recipe: Recipe) -> tuple[str, ...]:
    """A sentence for each field that has another value than its default and changes nothing."""
    plain = {field.name: field.default for kind in (Recipe, Augmentation) for field in dataclasses.fields(kind)}
    found = {name: _value(recipe, name) for name in without_effect(recipe)}
    return tuple(
        f"{name} is {value!r} and changes nothing: it needs {_NEEDS[name][1]}."
        for name, value in found.items()
        if value != plain[name]
    )


def _value(recipe: Recipe, name: str) -> Any:
    return getattr(recipe.augmentation if name in AUGMENTATION_FIELDS else recipe, name)


def check_choices(recipe: Recipe, transform: InputTransform) -> None:
    """Raise a ValueError for an optimizer, a compiler or an augmentation that cannot be used."""
    check_optimizer(recipe)
    if recipe.compile:
        _check_compiler()
    if recipe.augmentation.auto_augment is not None:
        _check_policy(recipe.augmentation.auto_augment)
    try:
        transform.build_training(recipe.augmentation)
    except ValueError:
        raise
    # timm's policies are refused by assertions.
    except Exception as error:
        raise ValueError(f"the augmentation {recipe.augmentation} cannot be made: {error}") from error


# timm's policies and the parts that it reads behind their names, each once; it passes over others without a word.
_FRACTION = r"\d+(\.\d+)?"
_POLICIES = {
    "rand": rf"(m|n|mmax|inc)\d+|(p|mstd){_FRACTION}|t(weights|3a|3aw)",
    "augmix": rf"(m|w|d|b)\d+|(a|mstd){_FRACTION}",
    **dict.fromkeys(("original", "originalr", "v0", "v0r", "3a"), f"mstd{_FRACTION}"),
}


def _check_policy(policy: str) -> None:
    name, *parts = policy.split("-")
    if name not in _POLICIES:
        raise refuse(policy, "auto_augment", f"policies of timm begin with {', '.join(_POLICIES)}")
    seen = set()
    for part in parts:
        key = re.match("t|[a-z]*", part)[0]  # type: ignore[index]  # it matches nothing, too
        if key in seen or not re.fullmatch(_POLICIES[name], part, re.ASCII):
            example = {"rand": "rand-m9-n2-mstd0.5", "augmix": "augmix-m5-w4-d2"}.get(name, f"{name}-mstd0.5")
            raise refuse(policy, "auto_augment", f"timm does not read {part!r} in it; use a policy such as {example}")
        seen.add(key)


def _check_compiler() -> None:
    try:
        torch.compile(lambda value: value + 1)(torch.ones(2))
    # A missing compiler, an unsupported version of Python: each fails in its own way.
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        raise ValueError(f"compile is True, and torch.compile does not work here ({first}); use False") from error


def check_data(data: ImageData) -> None:
    """Raise a ValueError for data that nothing can be learnt from.

    These are less than two classes, names that are not each of one class, an empty part, labels of no class, and a
    class without training images.
    """
    if len(data.class_names) < 2:
        raise ValueError(
            f"the data {data.spec!r} have {count(len(data.class_names), 'class', 'classes')} "
            f"({first_of(data.class_names)}); a classifier needs at least 2. Add a folder of images of another class."
        )
    for name, part in data.parts.items():
        if len(part) == 0:
            raise ValueError(f"the data {data.spec!r} have no {name} images; add some")
    class_names(data.class_names, f"class_names of the data {data.spec!r}")
    for name, part in data.parts.items():
        labels = part.known_labels()
        if labels is None:
            continue
        present = set(labels)
        wrong = [label for label in present if not 0 <= label < len(data.class_names)]
        if wrong:
            what = f"the label of a {name} image of the data {data.spec!r} is {min(wrong)}"
            raise ValueError(f"{what}, and they have {len(data.class_names)} classes, from 0")
        missing = [name for index, name in enumerate(data.class_names) if index not in present]
        if missing and part is data.train:
            raise ValueError(f"the data {data.spec!r} have no training images of {first_of(missing, 8)}; add some")


def inspect_data(data: ImageData, most: int = 0) -> tuple[list[str], tuple[str, ...]]:
    """Inspect all image files.

    Args:
        data: the data.
        most: how many images may be unreadable.

    Returns:
        The files that cannot be read, and sentences about them and about copies between parts.

    Raises:
        ValueError: more images cannot be read.
    """
    files = [part for part in data.parts.values() if isinstance(part, FileImages)]
    bad = inspect_images(files, most)
    notes = describe_copies(data)
    if not bad:
        return bad, notes
    what = count(len(bad), "image cannot be read and is", "images cannot be read and are")
    return bad, (f"{what} replaced by the next one that can: {first_of(bad)}. All are listed in {SKIPPED}.", *notes)


def list_bad_images(data: ImageData, bad: Collection[str]) -> None:
    """Put files that ``inspect_data`` found on the run's list: a training may end before it meets them."""
    bad = set(bad)
    for part in data.parts.values():
        if isinstance(part, FileImages) and bad:
            for index, path in enumerate(part.paths):
                if str(path) in bad:
                    read_or_next(part.read, part.name, index, len(part), part.skips)


def check_batches(accelerator: Accelerator, data: ImageData, recipe: Recipe) -> tuple[str, ...]:
    """Check that the batches can be shared out; return a sentence about images that an epoch leaves out.

    Raises:
        ValueError: the batch size is no multiple of the processes.
    """
    check_parallel(accelerator, recipe.batch_size)
    images = len(data.train)
    left = images % recipe.batch_size
    if images < recipe.batch_size or not left:
        return ()
    return (
        f"Each epoch takes {images - left:,} of the {images:,} training images, in full batches of "
        f"{recipe.batch_size}; a different {left:,} are left out in each.",
    )


def initial_model(recipe: Recipe, data: ImageData, transform: InputTransform, source: Source | None = None) -> Start:
    """Make the model of a recipe, with random weights, those of its ``init_from`` or those that its name asks for.

    Its first stages are frozen as the recipe says.

    Args:
        recipe: the choices.
        data: their classes are the model's.
        transform: the size and the channels of the images.
        source: what ``init_from`` names, opened.

    Raises:
        ValueError: there is no such model, it does not take the arguments or the size, it has fewer stages, or its
            weights cannot be loaded or do not fit.
    """
    if source is not None:
        recipe = source.adapted(recipe, transform.image_size)
    with _collected_log_of_timm() as told:
        model, kwargs = build_model_for_size(
            recipe.model,
            transform.image_size,
            num_classes=len(data.class_names),
            in_chans=data.channels,
            drop_rate=recipe.drop_rate,
            drop_path_rate=recipe.drop_path_rate,
            **recipe.model_kwargs,
        )
    freeze_stages(model, recipe.frozen_stages)
    if source is not None:
        told_of_weights = fit_weights(model, source, data.class_names)
        return Start(model, recipe.override(model_kwargs=kwargs), source.name, told_of_weights)
    if not names_weights(recipe.model):
        return Start(model, recipe.override(model_kwargs=kwargs), None, _unused_weights(recipe.model))
    # The run must not depend on the folder or the network once more: it stores the name and arguments of the registry.
    config: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    stored = timm.models.resolve_model_input_args(recipe.model)
    kwargs = {key: value for key, value in {**stored, **kwargs}.items() if key not in DECIDED}
    # The model was made with the stored rates where the recipe has none.
    rates = {key: getattr(recipe, key) or stored.get(key) for key in ("drop_rate", "drop_path_rate")}
    notes = [f"Starts from the weights of {recipe.model}."]
    if config.get("num_classes") != len(data.class_names):
        notes.append(
            f"The classifier for {len(data.class_names)} classes is new, with random weights; that of {recipe.model} "
            f"was for {config.get('num_classes')}."
        )
    changed = recipe.override(model=stored["model_name"], model_kwargs=kwargs, **rates)
    return Start(model, changed, recipe.model, (*notes, *told))


def _unused_weights(name: str) -> tuple[str, ...]:
    tag = name.partition(".")[2]
    if not tag:
        return ()
    return (
        f"The weights {tag!r} that {name} names are not loaded: the training starts from random ones. "
        f"--init-from {name} loads them.",
    )


@contextmanager
def _collected_log_of_timm() -> Iterator[list[str]]:
    """Collect timm's log while it loads weights: parameters that it leaves random, weights that have no place."""
    told: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            message = record.getMessage()
            if record.levelno >= logging.WARNING or message.startswith("Missing keys"):
                told.append(f"timm: {message}")

    logger, handler = logging.getLogger("timm.models"), Collect()
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield told
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


def check_training_step(model: nn.Module, recipe: Recipe, data: ImageData, size: int, processes: int) -> None:
    """Try the model in training mode on the smallest batch that one process can get; nothing of it is kept.

    Raises:
        ValueError: the model cannot train on such a batch, as one with batch-norm on one image of one position; or the
            batch cannot be mixed, or computed in as many parts, as the recipe says.
    """
    images = fewest_in_a_step(len(data.train), recipe.batch_size, processes)
    check_mixing(recipe, images)
    if recipe.accumulate > images:
        what = f"a process gets {count(images, 'image', 'images')} a step"
        raise refuse(recipe.accumulate, "accumulate", f"{what}; use at most {images}")
    images //= recipe.accumulate
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    training = model.training
    model.train()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            model(torch.zeros(min(images, 2), data.channels, size, size))
    except Exception as error:
        if images > 1:
            raise ValueError(f"the model {recipe.model!r} cannot train on images of {size} pixels: {error}") from error
        parts = f" in {recipe.accumulate} parts" if recipe.accumulate > 1 else ""
        raise ValueError(
            f"batch_size is {recipe.batch_size} for {len(data.train):,} training images on "
            f"{count(processes, 'process', 'processes')}{parts}, so that a step has 1 image in a process, and the "
            f"model {recipe.model!r} needs 2 or more there to train ({error}); give a larger --batch-size or more "
            "images"
        ) from error
    finally:
        model.train(training)
        for name, buffer in model.named_buffers():
            if name in buffers:  # not one that the model makes on its first images
                buffer.copy_(buffers[name])
