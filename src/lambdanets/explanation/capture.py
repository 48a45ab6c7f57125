"""One run of a model, in which every lambda layer's queries, keys, values and positions are taken down."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lambdanets.explanation.terms import LayerTerms
from lambdanets.interop.adopt import TwoOrderLambdaLayer
from lambdanets.layers import GraphLambdaLayer, LambdaLayer, TokenLambda
from lambdanets.names import unknown_name

__all__ = ["LAYERS", "bound_arguments", "capture", "choose", "evaluating", "lambda_layers", "parts_of"]

LAYERS = (LambdaLayer, TokenLambda, GraphLambdaLayer)


def lambda_layers(model: nn.Module) -> dict[str, nn.Module]:
    """All lambda layers by their path in the model, "(model)" where it is one itself.

    Raises:
        ValueError: if there is none.
    """
    found: dict[str, nn.Module] = {
        name or "(model)": module for name, module in model.named_modules() if isinstance(module, LAYERS)
    }
    if not found:
        raise ValueError(
            f"model has no lambda layer to explain, got {type(model).__name__}; lambda layers of timm, lucidrains, "
            "d-li14 and leaderj1001 become ours with lambdanets.adopt(model).model, and "
            "lambdanets.replace_convs(model, stages=...) or lambdanets.replace_attention(model) puts new ones in"
        )
    return found


def choose(layers: dict[str, nn.Module], names: Sequence[str] | None) -> dict[str, nn.Module]:
    """Return the named ones of ``layers``, or all; a ValueError with the nearest names for one that is not there."""
    if names is None:
        return layers
    for name in names:
        if name not in layers:
            raise unknown_name("layer", name, list(layers))
    return {name: layers[name] for name in layers if name in names}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients inside; afterwards each module is in the mode that it was in.

    Compiled modules run as they were before: a graph that was compiled calls no hooks that came after it.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for module in training:
            module.training = True


def capture(
    model: nn.Module, inputs: tuple[Any, ...], names: Sequence[str] | None = None
) -> tuple[dict[str, LayerTerms], dict[str, str], Any]:
    """Run ``model(*inputs)`` once in evaluation mode and take down its lambda layers.

    Args:
        model: any model that contains lambda layers.
        inputs: its positional arguments, one example.
        names: which layers; None for all.

    Returns:
        The layers in the order in which they ran; those that cannot be explained, with the reason; the model's output.

    Raises:
        ValueError: if there is no lambda layer, or none of a name.
    """
    chosen = choose(lambda_layers(model), names)
    found: dict[str, LayerTerms] = {}
    left_out: dict[str, str] = {}
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        for name, layer in chosen.items():
            unpooled: list[Tensor] = []
            if isinstance(layer, LambdaLayer):
                handle = layer.pool.register_forward_pre_hook(lambda _, given, to=unpooled: to.append(given[0]))
                stack.callback(handle.remove)

            def take(layer: Any, args: Any, kwargs: Any, out: Tensor, name: str = name, before: Any = unpooled) -> None:
                if name in found or name in left_out:
                    return  # a layer that is used several times: its first call
                bound = bound_arguments(layer, args, kwargs)
                reason = _why_not(layer, bound)
                if reason is not None:
                    left_out[name] = reason
                    return
                found[name] = _terms(name, layer, bound, before[-1] if before else out)

            # Before a user's hooks, which may change the output.
            stack.callback(layer.register_forward_hook(take, with_kwargs=True, prepend=True).remove)
        output = model(*inputs)
    for name in chosen:
        if name not in found:
            left_out.setdefault(name, "the model did not call it")
    return found, left_out, output


def bound_arguments(layer: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the layer's call by name, defaults included."""
    bound = inspect.signature(layer.forward).bind(*args, **kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


def _why_not(layer: nn.Module, bound: dict[str, Any]) -> str | None:
    examples = 1 if isinstance(layer, GraphLambdaLayer) else bound["x"].shape[0]
    if examples != 1:
        return f"it is applied to {examples} examples or windows at once, and a map is for one"
    if isinstance(layer, TwoOrderLambdaLayer) and layer.intra_depth > 1:
        return "its content and position terms read the values in two orders, so that they have no common weights"
    if 0 in bound["x"].shape:
        return "its input is empty"
    return None


def _terms(name: str, layer: nn.Module, bound: dict[str, Any], out: Tensor) -> LayerTerms:
    if isinstance(layer, GraphLambdaLayer):
        return _graph_terms(name, layer, bound, out)
    if isinstance(layer, TokenLambda):
        return _token_terms(name, layer, bound, out)
    if isinstance(layer, LambdaLayer):
        return _grid_terms(name, layer, bound, out)
    raise TypeError(f"{name} is a {type(layer).__name__}, which has no maps")


def parts_of(layer: Any, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised queries (b, h, n, k), keys (b, u, m, k) before their softmax and normalised values (b, u, m, v).

    Args:
        layer: any of the lambda layers; of a graph b is 1.
        x: its input.
        context: what keys and values are taken from; None for ``x``.
    """
    given = (x,) if isinstance(layer, GraphLambdaLayer) else (x, context)
    query, key, value = (_wide(part) for part in layer.project(*given))
    return query, key, value


def _split(x: Tensor, count: int, axis: int) -> Tensor:
    """Channels (count, depth) on ``axis`` and one example -> (count, positions, depth)."""
    x = _wide(x).movedim(axis, -1)
    return x.reshape(-1, count, x.shape[-1] // count).transpose(0, 1)


def _wide(tensor: Tensor) -> Tensor:
    """In float32, or in float64 where it is so already."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _numpy(tensor: Tensor | None) -> Any:
    if tensor is None:
        return None
    # A copy: what follows in the model may write to the tensor, and parameters may be trained on.
    return (_wide(tensor) if tensor.is_floating_point() else tensor).detach().cpu().numpy().copy()


def _content_keys(key: Tensor, mask: Tensor | None, causal: bool) -> dict[str, Any]:
    """The fields of LayerTerms that the content term needs: keys (u, m, k) and a mask (m,)."""
    fields: dict[str, Any] = {}
    if mask is not None:
        key = key.masked_fill(~mask[:, None], -math.inf)
        fields["visible"] = _numpy(mask)
    if not causal:
        # A context without any visible position has no weights.
        fields["key"] = _numpy(key.softmax(dim=1).nan_to_num(nan=0.0))
        return fields
    largest = key.amax(dim=1, keepdim=True)
    key = key - torch.where(largest.isfinite(), largest, 0.0)
    # Finite numbers below all that count: what is hidden is left out by its visibility.
    fields["logsumexp"] = _numpy(key.logcumsumexp(dim=1).clamp(min=-1e4))
    fields["key"] = _numpy(key.clamp(min=-2e4))
    return fields


def _grid_terms(name: str, layer: LambdaLayer, bound: dict[str, Any], out: Tensor) -> LayerTerms:
    x, mask = bound["x"], bound["mask"]
    query, key, value = (part[0] for part in parts_of(layer, x, bound["context"]))
    mask = None if mask is None else mask.reshape(-1)
    if mask is not None:
        value = value.masked_fill(~mask[:, None], 0.0)
    grid = tuple(x.shape[2:])
    return LayerTerms(
        name=name,
        kind=type(layer).__name__,
        query=_numpy(query),
        value=_numpy(value),
        output=_numpy(_split(out, layer.num_heads, 1)),
        grid=grid,
        context_grid=grid,
        table=_numpy(layer.positions),
        local=layer.scope is not None,
        bias=_numpy(layer.position_bias),
        **_content_keys(key, mask, layer.causal),
    )


def _token_terms(name: str, layer: TokenLambda, bound: dict[str, Any], out: Tensor) -> LayerTerms:
    x, context, mask = bound["x"], bound["context"], bound["mask"]
    query, key, value = (part[0] for part in parts_of(layer, x, context))
    mask = None if mask is None else mask.reshape(-1)
    if mask is not None:
        value = value.masked_fill(~mask[:, None], 0.0)
    # Without positions all tokens are alike: a sequence, prefix tokens and all.
    prefix = layer.prefix_tokens if layer.ndim else 0
    grid = _token_grid(layer, query.shape[1] - prefix)
    return LayerTerms(
        name=name,
        kind=type(layer).__name__,
        query=_numpy(query),
        value=_numpy(value),
        output=_numpy(_split(out, layer.num_heads, 2)),
        grid=grid,
        context_grid=grid if context is None else (key.shape[1],),
        own_context=context is not None and layer.positions is None,
        prefix=prefix,
        table=_numpy(layer.positions),
        local=layer.scope is not None,
        prefix_keys=_numpy(layer.prefix_keys),
        prefix_queries=_numpy(layer.prefix_queries),
        prefix_pairs=_numpy(layer.prefix_pairs),
        **_content_keys(key, mask, layer.causal),
    )


def _token_grid(layer: TokenLambda, tokens: int) -> tuple[int, ...]:
    """The grid of so many tokens, which the layer has just taken."""
    if layer.ndim < 2:
        return (tokens,)
    if layer.grid is not None and math.prod(layer.grid) == tokens:
        return tuple(layer.grid)
    return (math.isqrt(tokens),) * 2


def _graph_terms(name: str, layer: GraphLambdaLayer, bound: dict[str, Any], out: Tensor) -> LayerTerms:
    x, index, attributes, batch = bound["x"], bound["edge_index"], bound["edge_attr"], bound["batch"]
    query, key, value = (part[0] for part in parts_of(layer, x, None))
    embedding = layer._embedding(index, attributes)
    weights = torch.empty_like(key)
    for graph in (None,) if batch is None else batch.unique():
        own = slice(None) if graph is None else batch == graph
        weights[:, own] = key[:, own].softmax(dim=1)
    return LayerTerms(
        name=name,
        kind=type(layer).__name__,
        query=_numpy(query),
        key=_numpy(weights),
        value=_numpy(value),
        output=_numpy(_split(out, layer.num_heads, 1)),
        grid=(len(x),),
        context_grid=(len(x),),
        edges=_numpy(index.flip(0)),
        embedding=_numpy(embedding),
        graph=_numpy(batch),
    )
