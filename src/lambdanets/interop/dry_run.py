"""Running a model without numbers: what shapes its modules see, and which module fails and why."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeCopyMode,
    FakeTensorMode,
)
from torch.utils import _pytree as pytree

from lambdanets.interop.inputs import image_size_of
from lambdanets.interop.tree import is_spatial
from lambdanets.layers.arguments import per_axis

__all__ = ["DryRun", "DryRunError", "Trial", "dry_run", "try_before", "without_numbers"]

# Of sequences, images and volumes.
_USUAL_SIZE = {1: 224, 2: 224, 3: 32}
_LOG_OF_FAKE_TENSORS = logging.getLogger("torch._subclasses.fake_tensor")


class DryRunError(ValueError):
    """A model that cannot be run: the message says which module and why."""


@dataclass(frozen=True)
class DryRun:
    """Findings of a run without numbers.

    Args:
        inputs: shape of the first argument of each watched module that was called, by name; of several calls the
            largest along each axis.
        outputs: shapes of all tensors in the model's output.
    """

    inputs: dict[str, tuple[int, ...]]
    outputs: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Trial:
    """Findings of a run of a model before its layers are replaced.

    Args:
        inputs: as of :class:`DryRun`; {} where the model was not run.
        check: raises a :class:`DryRunError` unless the model with the new layers runs, with outputs of the shapes that
            it had before; None where it was not run.
        not_run: why it was not run; None where it was.
    """

    inputs: dict[str, tuple[int, ...]]
    check: Callable[[nn.Module], None] | None
    not_run: str | None


def try_before(
    model: nn.Module,
    example: Any,
    img_size: int | Sequence[int] | None,
    what: str,
    watch: Iterable[str] = (),
) -> Trial:
    """Run a model without numbers, before its layers are replaced.

    Args:
        model: the model.
        example: a tensor or a tuple of arguments; None makes two images, of the size that the model is for.
        img_size: height and width of the images that are made.
        what: the modules that will be replaced, for messages.
        watch: names of the modules whose input shapes are wanted.

    Raises:
        ValueError: if both example and size are given, or ``img_size`` is not of positive ints.
        DryRunError: if the model does not run on what was given. If it does not run on a guessed example,
            nothing is raised and the trial gives the reason.
    """
    arguments = _example_for(model, example, img_size)
    if arguments is None:
        return Trial({}, None, "what the model takes is not known")
    try:
        before = dry_run(model, arguments, watch)
    except DryRunError as error:
        if example is None and img_size is None:
            shape = "x".join(map(str, arguments[0].shape))
            return Trial({}, None, f"{error} (on a guessed input of {shape})")
        raise DryRunError(f"{error}; give an example=... that the model runs on") from error
    return Trial(before.inputs, _check_after(before, arguments, what), None)


def _example_for(model: nn.Module, example: Any, img_size: int | Sequence[int] | None) -> tuple[Any, ...] | None:
    """Arguments for the model's forward: the given ones, or two images of the size that the model is for.

    Args:
        model: the model.
        example: a tensor or a tuple of arguments; None makes one.
        img_size: height and width of the example that is made; default what the model says that it is for,
            else 224.

    Returns:
        The arguments; None where none can be made: a model without a convolution.

    Raises:
        ValueError: if both are given, or ``img_size`` is not of positive ints.
    """
    if example is not None:
        if img_size is not None:
            raise ValueError("example and img_size must not both be given: an example has a size")
        return example if isinstance(example, tuple) else (example,)
    conv = next((module for module in model.modules() if is_spatial(module)), None)
    if conv is None:
        return None
    ndim = len(conv.kernel_size)  # type: ignore[arg-type]
    if img_size is None:
        img_size = (image_size_of(model) if ndim == 2 else None) or _USUAL_SIZE[ndim]
    size = per_axis("img_size", img_size, ndim, odd=False)
    weight = next(iter(conv.parameters()))
    channels: int = conv.in_channels  # type: ignore[assignment]
    return (torch.empty(2, channels, *size, dtype=weight.dtype, device=weight.device),)


def without_numbers() -> FakeTensorMode:
    """Context in which operations make tensors without numbers; its ``from_tensor`` makes one of a tensor."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def dry_run(model: nn.Module, arguments: tuple[Any, ...], watch: Iterable[str] = ()) -> DryRun:
    """Run a copy of the model on tensors without numbers, in the mode (training or not) that it is in.

    Neither parameters nor statistics of the model change, and nothing is allocated. Its hooks run too: what one of them
    keeps elsewhere are tensors without numbers then, as what a function keeps in a cache of its own.

    Args:
        model: the model.
        arguments: of its forward.
        watch: names of the modules whose input shapes are wanted.

    Raises:
        DryRunError: if it does not run; the message names the innermost module that was running.
    """
    mode = without_numbers()
    try:
        # A copy, for models that keep tensors from one forward to the next.
        with FakeCopyMode(mode):
            fake = copy.deepcopy(model)
    except Exception as error:
        raise DryRunError(f"cannot trace {type(model).__name__}: it cannot be copied: {_say(error)}") from error
    running: list[str] = []
    inputs: dict[str, tuple[int, ...]] = {}
    _watch(fake, set(watch), running, inputs)
    try:
        with torch.no_grad(), _without_log(), mode:
            outputs = fake(*pytree.tree_map_only(Tensor, mode.from_tensor, arguments))
    except Exception as error:
        name = running[-1] if running else ""
        where = f"in module {name!r} ({type(fake.get_submodule(name)).__name__})" if name else "in its own forward"
        raise DryRunError(f"cannot trace {type(model).__name__}: {where}: {_say(error)}") from error
    shapes = tuple(tuple(leaf.shape) for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor))
    return DryRun(inputs, shapes)


def _check_after(before: DryRun, arguments: tuple[Any, ...], what: str) -> Callable[[nn.Module], None]:
    """A function that raises unless a model with new layers runs, with outputs of the shapes that it had before.

    Args:
        before: the run without the new layers.
        arguments: of the model's forward.
        what: the modules that were replaced, for messages.
    """

    def check(model: nn.Module) -> None:
        try:
            after = dry_run(model, arguments)
        except DryRunError as error:
            raise DryRunError(
                f"with the lambda layers the model does not run, so that the {what} were put back: {error}"
            ) from error
        if after.outputs != before.outputs:
            raise DryRunError(
                f"with the lambda layers the model's outputs have other shapes, so that the {what} were put back: "
                f"{after.outputs}, not {before.outputs}"
            )

    return check


@contextmanager
def _without_log() -> Iterator[None]:
    """Within the block an operation that refuses a shape raises alone; PyTorch logs it with a traceback, too."""
    before = _LOG_OF_FAKE_TENSORS.disabled
    _LOG_OF_FAKE_TENSORS.disabled = True
    try:
        yield
    finally:
        _LOG_OF_FAKE_TENSORS.disabled = before


def _watch(model: nn.Module, watched: set[str], running: list[str], inputs: dict[str, tuple[int, ...]]) -> None:
    """Keep the names of the modules that are running, innermost last, and the shapes that the watched ones see."""
    for name, module in model.named_modules():

        def enter(_: nn.Module, args: tuple[Any, ...], name: str = name) -> None:
            running.append(name)
            if name in watched and args and isinstance(args[0], Tensor):
                # A module that is called on several maps has to serve the largest.
                shape = tuple(args[0].shape)
                inputs[name] = tuple(map(max, inputs.get(name, shape), shape))

        def leave(*_: Any) -> None:
            running.pop()

        module.register_forward_pre_hook(enter, prepend=True)
        module.register_forward_hook(leave)


def _say(error: Exception) -> str:
    if isinstance(error, DataDependentOutputException | DynamicOutputShapeException):
        return f"what it does depends on the numbers in a tensor ({type(error).__name__}: {error})"
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
