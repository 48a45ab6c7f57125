"""Conversion of a model's checkpoint from another code base into one for our layers; its outputs before and after."""

from __future__ import annotations

import copy
import importlib
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

import lambdanets.models  # noqa: F401  (registers the LambdaResNets)
from lambdanets.interop.adopt.adopt import Adoption, adopt
from lambdanets.interop.adopt.checkpoints import read_checkpoint
from lambdanets.interop.adopt.weights import LoadedWeights, copy_weights, load_weights
from lambdanets.interop.inputs import channels_of, image_size_of
from lambdanets.layers import LambdaLayer
from lambdanets.layers.arguments import check_bool
from lambdanets.models.shipped import check_tag
from lambdanets.names import did_you_mean

__all__ = ["Comparison", "Migration", "build_origin", "migrate"]

_TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-12}


@dataclass(frozen=True)
class Comparison:
    """Outputs before and after in one precision.

    Args:
        dtype: the precision, as "float32".
        difference: largest absolute difference.
        scale: largest absolute output before.
        tolerance: the largest difference allowed, for outputs up to 1 and relative to ``scale`` beyond.
    """

    dtype: str
    difference: float
    scale: float
    tolerance: float

    @property
    def equal(self) -> bool:
        """True if the difference is within the tolerance; never for outputs that are not numbers."""
        return self.difference <= self.tolerance * max(1.0, self.scale)


@dataclass(frozen=True, eq=False)
class Migration:
    """Result of :func:`migrate`.

    Args:
        model: the model with our layers and the checkpoint's weights, in evaluation mode.
        report: what was replaced (:class:`lambdanets.interop.Adoption`), or what was loaded where the model has our
            layers from the start. It prints itself.
        comparisons: outputs before and after, by precision; empty where there is no model before.
        images: shape of the random images that they were compared on.
    """

    model: nn.Module
    report: Adoption | LoadedWeights
    comparisons: tuple[Comparison, ...]
    images: tuple[int, ...]

    @property
    def equal(self) -> bool:
        """True if the outputs are the same in all precisions."""
        return all(comparison.equal for comparison in self.comparisons)

    @property
    def finite(self) -> bool:
        """True if the outputs are numbers, neither infinite nor NaN, before as after."""
        return all(math.isfinite(each.difference + each.scale) for each in self.comparisons)

    @property
    def telling(self) -> bool:
        """True if the outputs show anything of the lambda layers: with their rounding at least one bit differs.

        They do not where a later scale is zero, as behind every residual branch of a model that is not trained.
        """
        return any(comparison.difference > 0 for comparison in self.comparisons)


def migrate(
    checkpoint: str | Path | None,
    origin: str,
    *,
    num_classes: int | None = None,
    image_size: int | None = None,
    faithful: bool | None = None,
) -> Migration:
    """Build a model, read a checkpoint into it, put our layers in it, and compare its outputs before and after.

    Where the model has our lambda layers from the start, as ``timm:lambda_resnet50_llll``, the checkpoint may be one of
    any implementation that :func:`lambdanets.load_weights` knows; there is nothing to compare with then.

    Args:
        checkpoint: a file; None for the weights that timm publishes, downloaded or from its cache.
        origin: the model, see :func:`build_origin`.
        num_classes: outputs of the classifier; default as the checkpoint's, where its name is a usual one.
        image_size: side of the random images; default that of the model, else 224.
        faithful: see :func:`lambdanets.adopt`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the model is unknown, the checkpoint is not one of it, or it has no lambda layers.
    """
    read = None if checkpoint is None else read_checkpoint(checkpoint)
    if num_classes is None and read is not None:
        num_classes = _classes(read.tensors)
    model = build_origin(origin, num_classes=num_classes, pretrained=read is None).float().eval()
    if any(isinstance(module, LambdaLayer) for module in model.modules()):
        if read is None:
            raise ValueError(f"{origin} has the lambda layers of this library already and no published weights")
        return Migration(model, load_weights(model, read), (), ())
    if read is not None:
        copy_weights(model, read)
    x = _images(model, image_size)
    exact = copy.deepcopy(model).double()
    before = [_outputs(model, x, origin), _outputs(exact, x, origin)]
    report = adopt(model, faithful=faithful)
    model, exact = report.model, adopt(exact, faithful=faithful).model
    after = [_outputs(model, x, origin), _outputs(exact, x, origin)]
    comparisons = tuple(_compare(old, new) for old, new in zip(before, after, strict=True))
    return Migration(model, report, comparisons, tuple(x.shape))


def build_origin(origin: str, *, num_classes: int | None = None, pretrained: bool = False) -> nn.Module:
    """Build the model that a checkpoint belongs to.

    Args:
        origin: "timm:NAME", a model of timm's registry, where those of this library are too; or
            "python:MODULE:FUNCTION", what the function of a module on the path, or in this folder, returns when it is
            called without arguments but ``num_classes``, if that is given.
        num_classes: outputs of the classifier; default the model's own.
        pretrained: with the weights that timm publishes.

    Raises:
        ValueError: there is no such model, module or function.
    """
    check_bool("pretrained", pretrained)
    kind, _, rest = origin.partition(":")
    if kind == "timm" and rest:
        return _from_timm(rest, num_classes, pretrained)
    if kind == "python" and rest.count(":") == 1:
        if pretrained:
            raise ValueError(f"{origin} has no published weights; give a checkpoint")
        module, _, function = rest.partition(":")
        return _from_python(module, function, num_classes)
    known = f"; did you mean timm:{origin}?" if timm.is_model(origin) else ""
    raise ValueError(
        f"the origin must be timm:NAME (as timm:lambda_resnet26t) or python:MODULE:FUNCTION, got {origin!r}{known}"
    )


def _from_timm(name: str, num_classes: int | None, pretrained: bool) -> nn.Module:
    if not timm.is_model(name):
        hint = did_you_mean(name, timm.list_models(), "timm.list_models() lists them", count=3)
        raise ValueError(f"unknown model {name!r} of timm; {hint}")
    check_tag(name)
    published = timm.get_pretrained_cfg(name)
    if pretrained and not (published and published.has_weights):
        raise ValueError(f"the model {name!r} of timm has no published weights; give a checkpoint")
    given: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    return timm.create_model(name, pretrained=pretrained, **given)


def _from_python(module: str, function: str, num_classes: int | None) -> nn.Module:
    # An installed command does not look into the folder it is called from, as python -m does.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        made = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"python:{module}:{function} cannot be imported: {error}") from error
    model = made() if num_classes is None else made(num_classes=num_classes)
    if not isinstance(model, nn.Module):
        raise ValueError(f"python:{module}:{function} made a {type(model).__name__}, not a torch.nn.Module")
    return model


def _classes(tensors: Mapping[str, Tensor]) -> int | None:
    """Width of the last layer, under the names that classifiers usually have."""
    names = ("head.fc.bias", "fc.bias", "fc.1.bias", "linear.bias", "head.bias", "classifier.bias")
    return next((len(tensors[name]) for name in names if name in tensors), None)


def _images(model: nn.Module, image_size: int | None) -> Tensor:
    size = (image_size, image_size) if image_size is not None else image_size_of(model) or (224, 224)
    generator = torch.Generator("cpu").manual_seed(0)  # whatever the default device
    return torch.randn(2, channels_of(model) or 3, *size, generator=generator, dtype=torch.float64, device="cpu")


def _outputs(model: nn.Module, x: Tensor, origin: str) -> Tensor:
    dtype = next(model.parameters()).dtype
    try:
        with torch.no_grad():
            out = model.eval()(x.to(dtype))
    # Models refuse sizes with errors of many kinds.
    except Exception as error:
        raise ValueError(
            f"{origin} does not take images of {x.shape[2]}x{x.shape[3]}, give another image_size (--image-size): "
            f"{error}"
        ) from error
    if not isinstance(out, Tensor):
        raise ValueError(
            f"{type(model).__name__} returns a {type(out).__name__}; a tensor is needed to compare outputs"
        )
    return out


def _compare(before: Tensor, after: Tensor) -> Comparison:
    return Comparison(
        str(before.dtype).removeprefix("torch."),
        float((after - before).abs().max()),
        float(before.abs().max()),
        _TOLERANCES[before.dtype],
    )
