"""Influences on the score of a class: terms and layers taken out, parts of the image covered, Grad-CAM."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lambdanets.explanation.capture import bound_arguments, evaluating, lambda_layers, parts_of
from lambdanets.explanation.terms import Array
from lambdanets.functional import lambda_apply, lambda_apply_by_graph
from lambdanets.layers import GraphLambdaLayer, LambdaLayer, TokenLambda

__all__ = ["Ablation", "ablate", "class_scores", "grad_cam", "has_grad_cam", "occlude", "one_example"]

_REMOVABLE = ("content", "position", "layer")


@dataclass(frozen=True)
class Ablation:
    """The score of a class without a part of one layer.

    Args:
        layer: its name.
        part: what was taken out: ``"content"``, ``"position"`` (with the bias of its entries) or the whole ``"layer"``,
            whose output is then 0.
        score: log of the class's probability without it.
        change: ``score`` minus the score of the whole model; negative where the part speaks for the class.
    """

    layer: str
    part: str
    score: float
    change: float


def class_scores(output: Any) -> Tensor:
    """(examples, classes), log of the probabilities.

    Raises:
        ValueError: if a model's output is not (examples, classes).
    """
    if not isinstance(output, Tensor) or output.ndim != 2 or output.shape[1] < 2:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"the model must give scores of classes, (1, classes), got {shape}; maps and figures need none, "
            "save_html(path, decision=False) leaves out what does"
        )
    return output.detach().float().log_softmax(dim=1)


def one_example(scores: Tensor) -> Tensor:
    """(classes,), the scores of the one example that is explained.

    Raises:
        ValueError: if there are scores of several, as of the nodes of a graph.
    """
    if len(scores) != 1:
        raise ValueError(
            f"the model must give scores of classes for one example, (1, classes), got {tuple(scores.shape)}, as of a "
            "classifier of nodes; maps and figures need none, save_html(path, decision=False) leaves out what does"
        )
    return scores[0]


def ablate(model: nn.Module, inputs: tuple[Any, ...], names: Sequence[str], target: int) -> tuple[Ablation, ...]:
    """Score of class ``target`` when one part of one layer is taken out, for all ``names`` and parts."""
    layers = lambda_layers(model)
    with evaluating(model):
        whole = float(class_scores(model(*inputs))[0, target])
        results = []
        for name in names:
            for part in _REMOVABLE:
                # Before a user's hooks: what they make of the output, they make of what is left of it.
                handle = layers[name].register_forward_hook(_without(part), with_kwargs=True, prepend=True)
                try:
                    score = float(class_scores(model(*inputs))[0, target])
                finally:
                    handle.remove()
                results.append(Ablation(name, part, score, score - whole))
    return tuple(results)


def _without(part: str) -> Any:
    """A forward hook that gives a lambda layer's output without a part of it."""

    def hook(layer: nn.Module, args: Any, kwargs: Any, out: Tensor) -> Tensor:
        if part == "layer":
            return torch.zeros_like(out)
        content = _content_output(layer, bound_arguments(layer, args, kwargs)).reshape(out.shape).to(out.dtype)
        return content if part == "position" else out - content

    return hook


def _content_output(layer: Any, bound: dict[str, Any]) -> Tensor:
    """The content term's part of a layer's output; pooling is linear, so that parts can be pooled."""
    query, key, value = parts_of(layer, bound["x"], bound.get("context"))
    if isinstance(layer, GraphLambdaLayer):
        if bound["batch"] is None:
            out = lambda_apply(query, key, value)
        else:
            out = lambda_apply_by_graph(query, key, value, bound["batch"], int(bound["batch"].max()) + 1)
        return out[0].transpose(0, 1)
    mask = None if bound["mask"] is None else bound["mask"].flatten(1)
    out = lambda_apply(query, key, value, mask=mask, causal=layer.causal)
    if isinstance(layer, LambdaLayer):
        return layer.pool(out.transpose(2, 3).reshape(len(out), layer.dim_out, *bound["x"].shape[2:]))
    return out.transpose(1, 2)


def occlude(model: nn.Module, image: Tensor, target: int, window: int | None = None, batch_size: int = 16) -> Array:
    """Change of the score of class ``target`` when a square of the image is covered.

    Args:
        model: gives (examples, classes).
        image: (1, c, height, width); covered means 0, which is the mean colour where the input is normalised.
        target: the class.
        window: side of the square in pixels; default a fifth of the image's longer side. It moves by half of it.
        batch_size: images at a time.

    Returns:
        (height, width): for each pixel the mean, over the squares that cover it, of the score with the square covered
        minus the score without; negative where the image speaks for the class.
    """
    height, width = image.shape[2:]
    side = max(1, -(-max(height, width) // 5)) if window is None else window
    places = [(row, column) for row in _starts(height, side) for column in _starts(width, side)]
    total, count = np.zeros((2, height, width))
    with evaluating(model):
        whole = class_scores(model(image))[0, target]
        for start in range(0, len(places), batch_size):
            some = [
                (slice(row, row + side), slice(column, column + side))
                for row, column in places[start : start + batch_size]
            ]
            covered = image.repeat(len(some), 1, 1, 1)
            for example, (rows, columns) in zip(covered, some, strict=True):
                example[:, rows, columns] = 0
            changes = class_scores(model(covered))[:, target] - whole
            for (rows, columns), change in zip(some, changes.tolist(), strict=True):
                total[rows, columns] += change
                count[rows, columns] += 1
    return (total / count).astype(np.float32)


def _starts(size: int, side: int) -> list[int]:
    """Starts of windows: half of a side apart, the first and the last at the borders."""
    count = max(1, math.ceil((size - side) / max(1, side / 2)) + 1)
    return sorted({round(start) for start in np.linspace(0, max(0, size - side), count).tolist()})


def has_grad_cam() -> bool:
    """True if PyPI's ``grad-cam`` is installed."""
    return find_spec("pytorch_grad_cam") is not None


def grad_cam(model: nn.Module, image: Tensor, target: int, layer: str, grid: tuple[int, ...], prefix: int) -> Array:
    """Grad-CAM of class ``target`` by the package ``grad-cam``: a second opinion, which knows nothing of lambda layers.

    For convolutional models of timm it reads the last stage that has four rows and columns; for others ``layer``: a
    LambdaLayer's output, or the projection of a TokenLambda, since the output of a last one may reach the classifier
    by its class token alone.

    Args:
        model: gives (examples, classes).
        image: (1, c, height, width).
        target: the class.
        layer: name of the last lambda layer.
        grid: its grid.
        prefix: its number of prefix tokens.

    Returns:
        (height, width), 0 to 1.

    Raises:
        ImportError: if ``grad-cam`` is not installed.
        ValueError: if the image is in bfloat16, which the package does not take.
    """
    if not has_grad_cam():
        raise ImportError("Grad-CAM needs the package grad-cam: pip install 'lambdanets[explain]'")
    if image.dtype == torch.bfloat16:
        raise ValueError("Grad-CAM takes no model in bfloat16: explain model.float(), with an input in float32")
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    module: Any = lambda_layers(model)[layer]
    reshape = None
    if isinstance(module, TokenLambda):
        module = module.qkv
        reshape = lambda tokens: tokens[:, prefix:].transpose(1, 2).unflatten(2, grid)  # noqa: E731
    else:
        module = _deepest_stage(model, min(image.shape[2:])) or module
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    # An input that needs a gradient, for models whose parameters need none.
    image = image.detach().clone().requires_grad_()
    options: dict[str, Any] = {"target_layers": [module], "reshape_transform": reshape}
    try:
        # GradCAM takes the model to evaluation when it is made, and leaves it there.
        with evaluating(model), torch.enable_grad(), GradCAM(model=model, **options) as cam, _keeping_output(module):
            result = cam(input_tensor=image, targets=[ClassifierOutputTarget(target)])
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
    return np.asarray(result[0], dtype=np.float32)


@contextmanager
def _keeping_output(module: nn.Module) -> Iterator[None]:
    """Pass a copy of a module's output on, so that what follows in place, as a ReLU, leaves what GradCAM has taken."""
    handle = module.register_forward_hook(lambda module, args, out: out.clone())
    try:
        yield
    finally:
        handle.remove()


def _deepest_stage(model: nn.Module, size: int) -> nn.Module | None:
    """The last stage of a model of timm that still has a map to speak of, four positions along each axis."""
    stages = list(getattr(model, "feature_info", None) or ())
    mapped = [stage["module"] for stage in stages if size // stage["reduction"] >= 4]
    return model.get_submodule(mapped[-1]) if mapped else None
