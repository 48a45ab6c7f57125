"""Lambda layers in place of convolutions, in any model: the paper's swap in one line."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from lambdanets.console import make_console
from lambdanets.interop.dry_run import Trial, try_before
from lambdanets.interop.replace.plan import Change, Kept, Plan, make_plan, none_replaceable
from lambdanets.interop.replace.stages import lambda_blocks, modules_of_block
from lambdanets.interop.tree import Candidate, choose, find, hooks_of, is_lambda, is_spatial, parameters_of
from lambdanets.layers import LambdaLayer
from lambdanets.layers.arguments import check_bool
from lambdanets.models.options import check_lambda_args
from lambdanets.names import count

__all__ = ["plan_convs", "replace_convs"]

_KIND = "spatial convolution"
# The paper's scope of images; a volume's table of 23^3 offsets would be larger than most models.
_SCOPE = {1: 23, 2: 23, 3: 7}
# The forward of PyTorch's own convolutions; that of a subclass may do more.
_FORWARD = {1: nn.Conv1d.forward, 2: nn.Conv2d.forward, 3: nn.Conv3d.forward}
_HEADS = 4
# What timm.utils.reparameterize_model calls: a block's branches become one convolution, from their weights.
_MERGERS = ("fuse", "reparameterize", "switch_to_deploy")


def replace_convs(
    model: nn.Module,
    *,
    stages: str | Sequence[str] | None = None,
    where: Callable[[str, nn.Module], bool] | None = None,
    names: str | Iterable[str] | None = None,
    lambda_args: Mapping[str, Any] | None = None,
    example: Any = None,
    img_size: int | Sequence[int] | None = None,
    verbose: bool = True,
) -> nn.Module:
    """Put lambda layers in place of a model's 3x3 convolutions, so that it can be trained on (paper, section 4).

    Everything else stays: the same module and parameter objects with the same values, device, dtype and mode. Each
    new layer takes the convolution's channels, device, dtype, training mode and stride (its own average pooling),
    starts as :meth:`lambdanets.LambdaLayer.reset_parameters` says, and is trainable even where the convolution was
    frozen.
    What has no counterpart is told in the table: *groups* (a lambda layer mixes all channels: ResNeXt's and
    MobileNet's grouped and depthwise convolutions become ordinary lambda layers), *dilation* (the scope covers
    it), a *bias* (dropped: the paper's layer has none), a *padding mode* (outside of the map is nothing) and *merging*:
    a RepVGG's or MobileOne's block with a lambda layer among its branches trains, but what makes one convolution of
    them for inference (``timm.utils.reparameterize_model``) fails on it. Merge before replacing where that is wanted.

    Convolutions that cannot be replaced are kept, and the table says why: padding that changes the map's size,
    strides that differ along the axes, weights that are parametrised, quantised or not made yet, hooks that would be
    lost, a forward that takes more than one input, channels that the given ``num_heads`` does not divide. The model is
    run before and after without numbers; if it does not run with the new layers, all convolutions are put back and
    the error names the module. A model that does not run before on an example that was guessed is changed unchecked;
    the table says so, and why.

    Exactly one of ``stages``, ``where`` and ``names`` chooses the convolutions. Make the optimizer afterwards, and
    train before evaluating: normalisations that follow have the statistics of the convolution until then.

    Args:
        model: any module: timm's and torchvision's models, and modules that contain them. Changed in place.
        stages: C (keep) or L (lambda) for each stage, as "CCLL", or a pattern that a stage's blocks repeat, as
            "C-C-CL-L" or ("C", "C", "CL", "L"). Replaces all 3-wide convolutions of the chosen blocks, none of the
            stem, of shortcuts and of the head.
        where: ``where(name, module)``, true for the convolutions to replace; called for all wider than 1x1.
        names: glob or globs over module names, as "layer4.*.conv2"; any odd width.
        lambda_args: keyword arguments of :class:`lambdanets.LambdaLayer`; default the paper's k 16, h 4, u 1 and
            scope 23 (7 in volumes). Without ``num_heads``, the most heads up to 4 that divide the channels.
            ``{"size": "auto"}`` makes global layers of the size of each map, found by running the model without
            numbers on ``example``.
        example: a tensor or a tuple of arguments for the model, for running it without numbers; default two images
            of the size that timm says the model is for, else 224.
        img_size: height and width of the example that is made; not together with ``example``.
        verbose: print what was replaced, with parameters before and after. Default True.

    Returns:
        The model; another object only where the model itself is the convolution. :func:`lambdanets.plan_convs`
        tells what would change, as data.

    Raises:
        TypeError: if ``model`` is not a module, or a switch no bool.
        ValueError: if nothing was chosen (with the nearest candidates), nothing chosen can be replaced (with the
            reasons), an argument does not fit, or the model does not run (with the module and the reason).

    Example:
        >>> model = lambdanets.replace_convs(timm.create_model("resnet10t"), stages="CCLL", verbose=False)
        >>> model.layer4[0].conv2.scope
        (23, 23)
    """
    check_bool("verbose", verbose)
    plan = plan_convs(
        model,
        stages=stages,
        where=where,
        names=names,
        lambda_args=lambda_args,
        example=example,
        img_size=img_size,
    )
    changed = plan.apply()
    if verbose:
        make_console().print(plan)
    return changed


def plan_convs(
    model: nn.Module,
    *,
    stages: str | Sequence[str] | None = None,
    where: Callable[[str, nn.Module], bool] | None = None,
    names: str | Iterable[str] | None = None,
    lambda_args: Mapping[str, Any] | None = None,
    example: Any = None,
    img_size: int | Sequence[int] | None = None,
) -> Plan:
    """Plan the changes of :func:`replace_convs` without making them; arguments and errors are the same.

    Returns:
        The plan: ``plan.changes`` and ``plan.kept`` are data, ``print(plan)`` is the table, ``plan.apply()`` carries
        it out and returns the model.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError(f"{type(model).__name__} is TorchScript, whose modules are fixed; replace before scripting")
    options = check_lambda_args(lambda_args, "each convolution")
    chosen, left = _choose(model, stages, where, names)
    trial = _try_before(model, chosen, options, example, img_size)

    changes, kept, builders = {}, [], {}
    for candidate in chosen:
        conv = candidate.module
        reason = _why_not(conv, options)
        if reason is None and options.get("size") == "auto" and candidate.name not in trial.inputs:
            reason = "the example never reaches it, so that the size of its map is unknown"
        if reason is not None:
            kept.append(Kept(candidate.name, _describe(conv), reason))
            continue
        make = partial(_lambda_for, conv, options, trial.inputs.get(candidate.name))
        changes[conv] = _change(model, candidate, make, options)
        builders[conv] = make
    if not changes:
        raise none_replaceable(kept, "convolutions")
    return make_plan(model, changes, (*kept, *left), builders, trial)


def _choose(
    model: nn.Module,
    stages: str | Sequence[str] | None,
    where: Callable[[str, nn.Module], bool] | None,
    names: str | Iterable[str] | None,
) -> tuple[list[Candidate], list[Kept]]:
    """Choose the modules to replace, and list what the stages have beside them."""
    given = {"stages": stages, "where": where, "names": names}
    if sum(value is not None for value in given.values()) != 1:
        said = ", ".join(f"{name}={value!r}" for name, value in given.items() if value is not None) or "none"
        raise ValueError(f"exactly one of stages, where and names must be given, got {said}")
    candidates = find(model, is_spatial)
    if not candidates:
        lambdas = sum(is_lambda(module) for module in model.modules())
        already = f"; it has {count(lambdas, 'lambda layer', 'lambda layers')} already" if lambdas else ""
        raise ValueError(f"{type(model).__name__} has no {_KIND}{already}")
    if stages is not None:
        return _by_stages(model, candidates, stages)
    return choose(model, candidates, _KIND, names, where), []


def _by_stages(
    model: nn.Module, candidates: list[Candidate], stages: str | Sequence[str]
) -> tuple[list[Candidate], list[Kept]]:
    blocks = lambda_blocks(model, stages)
    if not blocks:
        raise ValueError(f"stages={stages!r} has no L, so that nothing would be replaced")
    # Attention over channels has one-dimensional convolutions in a model of images.
    first = candidates[0].module
    inside = {module for block in blocks for _, module in modules_of_block(*block)}
    wide = [c for c in candidates if c.module in inside and len(_kernel(c.module)) == len(_kernel(first))]
    chosen = [c for c in wide if set(_kernel(c.module)) == {3}]
    if chosen:
        left = [c for c in wide if set(_kernel(c.module)) != {3}]
        reason = "stages= is for 3x3 convolutions; choose it with names=..."
        return chosen, [Kept(c.name, _describe(c.module), reason) for c in left]
    others = ", ".join(f"{c.name} ({_describe(c.module)})" for c in wide[:3])
    lambdas = sum(is_lambda(module) for module in inside)
    found = f"; wider than 1x1 are {others}: choose them with names=..." if others else ""
    already = f"; they have {count(lambdas, 'lambda layer', 'lambda layers')} already" if lambdas else ""
    raise ValueError(f"the blocks that stages={stages!r} marks with L have no 3x3 convolution{found}{already}")


def _kernel(conv: nn.Module) -> tuple[int, ...]:
    return conv.kernel_size  # type: ignore[return-value]


def _why_not(conv: Any, options: Mapping[str, Any]) -> str | None:
    """Why a convolution cannot become a lambda layer; None if it can."""
    if isinstance(next(conv.parameters(), None), nn.parameter.UninitializedParameter):
        return "its weights are not made yet; run the model once on an input"
    if parametrize.is_parametrized(conv):
        return "its weight is parametrised; call torch.nn.utils.parametrize.remove_parametrizations on it first"
    if type(conv).__module__.startswith(("torch.ao.", "torch.nn.quantized", "torch.nn.qat")):
        return "it is prepared for quantisation; replace before preparing"
    if hooks_of(conv):
        return "it has hooks (weight_norm and spectral_norm are such), which would be lost; remove them first"
    required = [p for p in inspect.signature(conv.forward).parameters.values() if p.default is p.empty]
    if sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) for p in required) != 1:
        return f"{type(conv).__name__}.forward takes more than one input"
    if any(width % 2 == 0 for width in conv.kernel_size):
        return "an even kernel has no centre, so that its map has another size than a lambda layer's"
    if len(set(conv.stride)) != 1:
        return f"its strides {conv.stride} differ along the axes; a lambda layer pools by one stride"
    same = tuple(d * (k // 2) for d, k in zip(conv.dilation, conv.kernel_size, strict=True))
    if not (conv.padding == "same" or tuple(conv.padding) == same or type(conv).__name__ == "Conv2dSame"):
        return f"its padding {conv.padding} is not that of an output of the input's size, {same}"
    heads = options.get("num_heads")
    if isinstance(heads, int) and heads > 0 and conv.out_channels % heads:
        return f"num_heads={heads} does not divide its {conv.out_channels} output channels; leave num_heads out"
    return None


def _lambda_for(conv: Any, options: Mapping[str, Any], seen: tuple[int, ...] | None, meta: bool = False) -> LambdaLayer:
    """The lambda layer for a convolution; ``seen`` is the shape of its input where that is known."""
    ndim = len(conv.kernel_size)
    arguments = {"num_heads": _heads(conv.out_channels), **options}
    if arguments.get("size") == "auto":
        arguments["size"] = (seen or ())[-ndim:]
    elif arguments.get("size") is None and arguments.get("scope") is None:
        arguments["scope"] = _SCOPE[ndim]
    layer = LambdaLayer(
        conv.in_channels,
        conv.out_channels,
        ndim=ndim,
        stride=conv.stride[0],
        device="meta" if meta else conv.weight.device,
        dtype=conv.weight.dtype,
        **arguments,
    )
    return layer.train(conv.training)


def _heads(channels: int) -> int:
    return next(heads for heads in range(_HEADS, 0, -1) if channels % heads == 0)


def _change(
    model: nn.Module, candidate: Candidate, make: Callable[..., LambdaLayer], options: Mapping[str, Any]
) -> Change:
    conv: Any = candidate.module
    try:
        layer = make(meta=True)
    except ValueError as error:
        raise ValueError(f"lambda_args do not fit {candidate.name} ({_describe(conv)}): {error}") from error
    context = f"scope {_short(layer.scope)}" if layer.scope else f"global {_by(layer.size or ())}"
    return Change(
        candidate.name,
        _describe(conv),
        f"LambdaLayer {layer.dim}->{layer.dim_out}, h {layer.num_heads}, k {layer.dim_key}, {context}",
        parameters_of(conv),
        parameters_of(layer),
        _notes(model, candidate, layer, options),
    )


def _notes(model: nn.Module, candidate: Candidate, layer: LambdaLayer, options: Mapping[str, Any]) -> tuple[str, ...]:
    conv: Any = candidate.module
    notes = []
    if conv.groups > 1:
        notes.append("mixes all channels")
    if max(conv.dilation) > 1:
        notes.append(f"dilation {_short(conv.dilation)} dropped")
    reach = max(d * (k - 1) + 1 for d, k in zip(conv.dilation, conv.kernel_size, strict=True))
    if layer.scope and min(layer.scope) < reach:
        notes.append(f"sees less than the convolution's {reach}")
    if conv.bias is not None:
        notes.append("bias dropped")
    if conv.padding_mode != "zeros":
        notes.append(f"padding mode {conv.padding_mode} dropped")
    if type(conv).forward is not _FORWARD[len(conv.kernel_size)] and type(conv).__name__ != "Conv2dSame":
        notes.append(f"what {type(conv).__name__}.forward adds is dropped")
    if not any(p.requires_grad for p in conv.parameters()):
        notes.append("was frozen, is trainable")
    if "num_heads" not in options and layer.num_heads != _HEADS:
        notes.append(f"{layer.num_heads} heads divide {layer.dim_out}")
    if merger := _merger(model, candidate.name):
        notes.append(f"{merger} may no longer run")
    if len(candidate.names) > 1:
        notes.append(f"also {', '.join(candidate.names[1:])}")
    return tuple(notes)


def _merger(model: nn.Module, name: str) -> str | None:
    """The method of the innermost block around a module that merges convolutions, as "RepVggBlock.reparameterize()"."""
    while name:
        name = name.rpartition(".")[0]
        block = model.get_submodule(name)
        for method in _MERGERS:
            if callable(getattr(block, method, None)):
                return f"{type(block).__name__}.{method}()"
    return None


def _describe(conv: Any) -> str:
    parts = [f"{type(conv).__name__} {_by(conv.kernel_size)} {conv.in_channels}->{conv.out_channels}"]
    parts += [f"stride {_short(conv.stride)}"] if max(conv.stride) > 1 else []
    parts += [f"dilation {_short(conv.dilation)}"] if max(conv.dilation) > 1 else []
    parts += [f"groups {conv.groups}"] if conv.groups > 1 else []
    return ", ".join(parts)


def _by(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))


def _short(sizes: Sequence[int]) -> str:
    return str(sizes[0]) if len(set(sizes)) == 1 else _by(sizes)


def _try_before(
    model: nn.Module, chosen: list[Candidate], options: Mapping[str, Any], example: Any, img_size: Any
) -> Trial:
    """A run before the replacement, which layers that are as large as their maps cannot do without."""
    trial = try_before(model, example, img_size, "convolutions", [c.name for c in chosen])
    if options.get("size") == "auto" and trial.not_run is not None:
        raise ValueError(
            f'lambda_args={{"size": "auto"}} needs a run of the model: {trial.not_run}; give an example=... that it '
            'runs on (or the size itself, as lambda_args={"size": 14}, or a scope)'
        )
    return trial
