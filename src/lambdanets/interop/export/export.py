"""Models in files that run without this package: ONNX and torch.export."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lambdanets.files import replacing
from lambdanets.interop.dry_run import DryRunError, dry_run
from lambdanets.interop.export.arguments import check_arguments, check_facts, format_of
from lambdanets.interop.export.formats import INPUTS
from lambdanets.interop.export.preprocessing import preprocessing_of
from lambdanets.interop.export.tracing import switch_kernels, trace
from lambdanets.interop.inputs import channels_of, configuration_of, image_size_of
from lambdanets.names import check_class_names
from lambdanets.provenance import package_version

__all__ = ["Check", "Export", "ExportDifferenceError", "export_model"]

_BATCHES = (1, 2, 3)
_SIZES = 3
# More than the strides of networks, by the number of sizes: a size of 1 somewhere inside would be taken for a constant.
_TRACED_SIZE = {1: (160,), 2: (128, 160), 3: (40, 48, 56)}


# Of the examples, whatever PyTorch's defaults are.
_PLAIN: dict[str, Any] = {"device": "cpu", "dtype": torch.float32}


@dataclass(frozen=True)
class Check:
    """The largest difference between the file and the model on one random batch.

    Args:
        batch: number of examples.
        height: of images and volumes; None for sequences.
        width: of images and volumes; the length of sequences.
        difference: of an output; for logits in units of the largest one, where that is above 1.
        depth: of volumes; None (default) for others.
    """

    batch: int
    height: int | None
    width: int
    difference: float
    depth: int | None = None

    @property
    def size(self) -> tuple[int, ...]:
        """Sizes of the input behind batch and channels."""
        return tuple(size for size in (self.depth, self.height, self.width) if size is not None)


class ExportDifferenceError(ValueError):
    """Error of a file that computes something else than the model; it is not kept.

    Args:
        message: what to say.
        checks: all that were made.
    """

    def __init__(self, message: str, checks: Sequence[Check]):
        super().__init__(message)
        self.checks = tuple(checks)


@dataclass(frozen=True)
class Export:
    """Record of what :func:`export_model` wrote.

    Args:
        path: the file.
        format: ``"onnx"`` or ``"torch-export"``.
        metadata: what the file says about itself.
        switched: the kernel that each lambda layer had (None: the fastest) before it was switched to the portable
            one for the file, by the layer's name; those of :class:`lambdanets.interop.TokenLambda` too.
        checks: file against model.
    """

    path: Path
    format: str
    metadata: dict[str, Any]
    switched: dict[str, str | None]
    checks: tuple[Check, ...]

    @property
    def difference(self) -> float:
        """The largest of all checks."""
        return max(check.difference for check in self.checks)


class _Classifier(nn.Module):
    """The model with a softmax behind it."""

    def __init__(self, model: nn.Module, probabilities: bool):
        super().__init__()
        self.model = model
        self.probabilities = probabilities

    def forward(self, image: Tensor) -> Tensor:
        out = self.model(image)
        return out.softmax(dim=1) if self.probabilities else out


def export_model(
    model: nn.Module,
    path: str | Path,
    *,
    format: str | None = None,
    output: str = "probabilities",
    example: Tensor | None = None,
    fixed_size: bool = False,
    opset: int | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    class_names: Sequence[str] = (),
    tolerance: float = 1e-4,
    overwrite: bool = False,
) -> Export:
    """Write a model for images, sequences or volumes to a file that needs neither this package nor the model's code.

    Batch and sizes are dynamic. The model is exported in evaluation, in float32 on the CPU; it is not changed itself.
    Lambda layers run the kernel ``"portable"`` in the file, plain convolutions of any runtime; ops of this package that
    the model calls otherwise are decomposed. The file is read back, run at three batch sizes and three input sizes and
    compared with the model; it stands at ``path`` only if that went well.

    The input is called ``image``, (batch, channels, height, width) in float32, or by the axes of ``example``
    ``sequence``, (batch, channels, length), or ``volume``, (batch, channels, depth, height, width). The output is
    ``probabilities`` or ``logits``. Preprocessing, class names and versions are in the file: in an ONNX file as
    ``metadata_props``, each JSON unless it is one string, in a torch.export file as the extra file ``metadata.json``.

    Args:
        model: takes one tensor and gives one, as timm's models do. ``torch.onnx.export`` and ``torch.export`` take
            models of several inputs, as those with masks or graphs.
        path: the file; ``.onnx`` or ``.pt2``.
        format: ``"onnx"`` or ``"torch-export"``; default: by the suffix of ``path``.
        output: ``"probabilities"`` (default): a softmax over axis 1 is put behind the model; or ``"logits"``, what
            the model gives.
        example: (b, channels, *sizes); its size is the first to be checked. Default: an image of the size that the
            model was built for (``img_size``), else of that of its timm configuration.
        fixed_size: the sizes are those of ``example``, for models that take one size only. Default False.
        opset: of ONNX, 18 or higher; default PyTorch's.
        preprocessing: plain values to record; default: what the model's timm configuration asks for, if it has one.
        class_names: of the outputs, to record.
        tolerance: largest difference between file and model. Default 1e-4.
        overwrite: True to replace a file at ``path``. Default False.

    Returns:
        What was written and how far it differs.

    Raises:
        ExportDifferenceError: (a ValueError) the file would differ from the model by more than ``tolerance``.
        ValueError: an argument does not fit, or the model has no form outside of Python; the layer is named.
        ModuleNotFoundError: the format needs packages that are not installed.
        FileNotFoundError: the folder of ``path`` does not exist.
        FileExistsError: ``path`` exists.
    """
    path = Path(path)
    kind = format_of(path, format)
    check_arguments(model, path, output, fixed_size, overwrite)
    check_facts(preprocessing, class_names, tolerance, opset)
    kind.require_packages()
    kind.check_opset(opset)
    images = _example(model, example)
    plain = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    classifier = _Classifier(plain, output == "probabilities").eval()
    _check_output(plain, images, output, class_names, given=example is not None)
    rank = images.ndim - 2
    if preprocessing is None and rank == 2:  # timm's configurations are about images
        preprocessing = preprocessing_of(model, _size(images))
    metadata = {
        "producer": f"lambdanets {package_version('lambdanets')}",
        "model": _model_name(model),
        "input": INPUTS[rank][0],
        "output": output,
        "preprocessing": None if preprocessing is None else dict(preprocessing),
        "class_names": list(class_names),
    }
    sizes = [_size(images)] if fixed_size else _checked_sizes(plain, images)
    with switch_kernels(plain) as switched:
        program = trace(classifier, images if fixed_size else _traced_images(plain, images), fixed_size)
    with replacing(path) as temporary:
        kind.write(program, temporary, metadata, opset)
        checks = _compare(classifier, kind.load(temporary), images.shape[1], sizes)
        _check_difference(checks, tolerance, output, path)
    return Export(path, kind.name, metadata, switched, checks)


def _example(model: nn.Module, given: Tensor | None) -> Tensor:
    """A batch of two: one of 1 would be taken for a constant."""
    if given is None:
        channels, size = channels_of(model), image_size_of(model)
        if channels is None or size is None:
            raise ValueError(
                "example must be given for a model without a timm configuration: a batch of images, (batch, channels, "
                "height, width), or of sequences or volumes with one or three sizes behind the channels"
            )
        return torch.zeros(2, channels, *size, **_PLAIN)
    if not isinstance(given, Tensor) or given.ndim - 2 not in INPUTS:
        shown = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
        raise ValueError(
            f"example must be a tensor of shape (batch, channels, *sizes) with one to three sizes, as (batch, "
            f"channels, height, width) for images, got {shown}"
        )
    return torch.zeros(2, *given.shape[1:], **_PLAIN)


def _check_output(model: nn.Module, images: Tensor, output: str, class_names: Sequence[str], given: bool) -> None:
    try:
        with torch.inference_mode():
            out = model(images[:1])
    except Exception as error:
        shown = f"{_by(_size(images))} with {images.shape[1]} channels"
        if given:
            what = f"{INPUTS[images.ndim - 2][0]}s"
            raise ValueError(f"example must be {what} that the model takes, got {shown}: {error}") from error
        raise ValueError(
            f"example must be given, images that the model takes: it does not take the default, {shown}: {error}"
        ) from error
    if not isinstance(out, Tensor):
        raise ValueError(f"the model must give one tensor, got {type(out).__name__}; wrap it in one that picks")
    if output == "probabilities" and out.ndim != 2:
        raise ValueError(
            f'output="probabilities" needs a classifier, but the model gives shape {tuple(out.shape)}; '
            'use output="logits"'
        )
    if out.numel() == 0:
        raise ValueError(f"the model must give numbers, got an output of shape {tuple(out.shape)}")
    if class_names and out.ndim == 2:
        check_class_names(class_names, out.shape[1])


def _size(images: Tensor) -> tuple[int, ...]:
    return tuple(images.shape[2:])


def _by(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))


def _takes(model: nn.Module, images: Tensor) -> bool:
    try:
        with torch.inference_mode():
            model(images)
    # Models refuse sizes with errors of many kinds.
    except Exception:
        return False
    return True


def _traced_images(model: nn.Module, images: Tensor) -> Tensor:
    """The example, or one large enough that no feature map is one pixel wide, if the model takes it.

    That is found out without numbers: a causal layer with the kernel "portable" has a matrix of all pairs of positions,
    which for the positions of a volume fills the memory.
    """
    larger = images.new_zeros(*images.shape[:2], *map(max, _size(images), _TRACED_SIZE[images.ndim - 2]))
    try:
        dry_run(model, (larger,))
    except DryRunError:
        return images
    return larger


def _checked_sizes(model: nn.Module, images: Tensor) -> list[tuple[int, ...]]:
    """The example's size and two others that the model takes, larger ones first: global layers have a largest."""
    size = _size(images)
    last = len(size) - 1
    lower = [max(1, side - max(1, side // (3 if axis == last else 4))) for axis, side in enumerate(size)]

    def changed(axis: int, side: int) -> tuple[int, ...]:
        return (*size[:axis], side, *size[axis + 1 :])

    candidates = [size, changed(last, size[last] + size[last] // 2)]
    candidates += [*(changed(axis, side) for axis, side in enumerate(lower)), tuple(lower)]
    # Some models add up feature maps that agree only where the size is a multiple of their stride, and some of these
    # take no larger images than their own.
    candidates += [changed(axis, size[axis] + 32) for axis in reversed(range(len(size)))]
    candidates += [changed(axis, size[axis] - 32) for axis in range(len(size))]
    taken: list[tuple[int, ...]] = []
    refused: list[tuple[int, ...]] = []
    for candidate in dict.fromkeys(each for each in candidates if min(each) > 0):
        (taken if _takes(model, images.new_zeros(1, images.shape[1], *candidate)) else refused).append(candidate)
    if len(taken) < _SIZES:
        raise ValueError(
            f"the model takes {INPUTS[len(size)][0]}s of {_listed(taken)}, but not of {_listed(refused)}; "
            "fixed_size=True (--fixed-size) exports it for one size"
        )
    return taken[:_SIZES]


def _listed(sizes: Sequence[tuple[int, ...]]) -> str:
    *rest, last = map(_by, sizes or [(0,)])
    return f"{', '.join(rest)} and {last}" if rest else last


@torch.inference_mode()
def _compare(
    model: nn.Module, run: Callable[[Tensor], Tensor], channels: int, sizes: Sequence[tuple[int, ...]]
) -> tuple[Check, ...]:
    random = torch.Generator("cpu").manual_seed(0)
    checks = []
    for size in sizes:
        for batch in _BATCHES:
            images = torch.randn(batch, channels, *size, generator=random, **_PLAIN)
            expected = model(images)
            try:
                actual = run(images)
            # Each runtime has errors of its own.
            except Exception as error:
                raise ValueError(
                    f"the file was not kept, for it does not take a batch of {batch} of {_by(size)}, which the "
                    f"model takes; an example of another size may do, and fixed_size=True (--fixed-size) exports one "
                    f"size: {(str(error).strip() or type(error).__name__).splitlines()[0]}"
                ) from error
            difference = (actual - expected).abs().max() / expected.abs().max().clamp(min=1)
            height = size[-2] if len(size) > 1 else None
            depth = size[-3] if len(size) > 2 else None
            checks.append(Check(batch, height, size[-1], difference.item(), depth))
    return tuple(checks)


def _check_difference(checks: Sequence[Check], tolerance: float, output: str, path: Path) -> None:
    wrong = [check for check in checks if not check.difference <= tolerance]  # NaN is wrong too
    if wrong:
        worst = max(wrong, key=lambda check: math.inf if math.isnan(check.difference) else check.difference)
        raise ExportDifferenceError(
            f"the file gives other {output} than the model: they differ by {worst.difference:.1e} for a batch of "
            f"{worst.batch} of {_by(worst.size)}, more than {tolerance:.0e}; {path} was not written",
            checks,
        )


def _model_name(model: nn.Module) -> str:
    return configuration_of(model).get("architecture") or type(model).__name__
