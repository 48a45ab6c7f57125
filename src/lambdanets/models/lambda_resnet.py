"""The LambdaResNets of timm's registry.

The family is C→C→L→L with squeeze-and-excitation in the convolution blocks and a 3x3 stride-2 convolution in place
of the stem's max-pool (paper, section 4 and appendix). None has published weights; those of ``lambda_resnet_tiny``
come with the package (:mod:`lambdanets.models.shipped`).

Image sizes: public sources give 320 for LambdaResNet-420 and 128 to 320, growing with depth, for the family. The
others here are those of ResNet-RS, whose networks have the same blocks a stage and the same author, and which is at
320 for its 420 too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model, register_notrace_module

from lambdanets.layers.registry import LAYERS
from lambdanets.models.options import by_stage
from lambdanets.models.resize import fit_positions
from lambdanets.models.resnet import LambdaBottleneck, LambdaResNet, with_defaults
from lambdanets.models.shipped import shipped_arguments, shipped_cfgs

__all__ = ["LambdaBottleneck", "LambdaResNet"]

# Leaves in graphs that torch.fx traces: their checks look at shapes, which a traced value does not have.
for _entry in LAYERS.values():
    if _entry.layer is not None and _entry.leaf:
        register_notrace_module(_entry.layer)


def _create(variant: str, pretrained: bool, defaults: dict[str, Any], given: dict[str, Any]) -> LambdaResNet:
    args = {**defaults, **given}
    if "lambda_args" in defaults:
        args["lambda_args"] = _added(defaults["lambda_args"], given.get("lambda_args"))
    return build_model_with_cfg(LambdaResNet, variant, pretrained, pretrained_filter_fn=fit_positions, **args)


def _added(defaults: Mapping[str, Any], own: Any) -> Any:
    """The variant's arguments of lambda layers with those that are given, for all stages or for each of them."""
    if isinstance(own, list | tuple) and len(own) != 4:  # the model refuses it as it is
        return own
    return by_stage(own, lambda args: with_defaults(defaults, args or {}) if isinstance(args or {}, Mapping) else args)


def _family(variant: str, layers: tuple[int, ...], pretrained: bool, given: dict[str, Any]) -> LambdaResNet:
    defaults = dict(layers=layers, stages="CCLL", se_ratio=0.25, replace_stem_pool=True)
    return _create(variant, pretrained, defaults, given)


def _cfg(image_size: int = 224, **kwargs: Any) -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, image_size, image_size),
        "pool_size": (-(-image_size // 32),) * 2,
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "conv1",
        "classifier": "fc",
        "license": "mit",
        "paper_ids": "arXiv:2102.08602",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "lambda_resnet50.untrained": _cfg(160),
        "lambda_resnet101.untrained": _cfg(192),
        "lambda_resnet152.untrained": _cfg(256),
        "lambda_resnet200.untrained": _cfg(256),
        "lambda_resnet270.untrained": _cfg(256),
        "lambda_resnet350.untrained": _cfg(288),
        "lambda_resnet420.untrained": _cfg(320),
        "lambda_resnet50_llll.untrained": _cfg(),
        "lambda_resnet50_llll_u4.untrained": _cfg(),
        # The first with weights is what ``pretrained=True`` loads.
        **{name: _cfg(32, pool_size=(4, 4), **cfg) for name, cfg in shipped_cfgs("lambda_resnet_tiny").items()},
        "lambda_resnet_tiny.untrained": _cfg(32, pool_size=(4, 4), num_classes=10, crop_pct=1.0),
    }
)


@register_model
def lambda_resnet50(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """LambdaResNet-50, C→C→L→L with squeeze-and-excitation in the C blocks, at 160 pixels."""
    return _family("lambda_resnet50", (3, 4, 6, 3), pretrained, kwargs)


@register_model
def lambda_resnet101(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """LambdaResNet-101, C→C→L→L with squeeze-and-excitation in the C blocks, at 192 pixels."""
    return _family("lambda_resnet101", (3, 4, 23, 3), pretrained, kwargs)


@register_model
def lambda_resnet152(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """LambdaResNet-152, C→C→L→L with squeeze-and-excitation in the C blocks, at 256 pixels."""
    return _family("lambda_resnet152", (3, 8, 36, 3), pretrained, kwargs)


@register_model
def lambda_resnet200(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """LambdaResNet-200, C→C→L→L with squeeze-and-excitation in the C blocks, at 256 pixels."""
    return _family("lambda_resnet200", (3, 24, 36, 3), pretrained, kwargs)


@register_model
def lambda_resnet270(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """LambdaResNet-270, C→C→L→L with squeeze-and-excitation in the C blocks, at 256 pixels."""
    return _family("lambda_resnet270", (4, 29, 53, 4), pretrained, kwargs)


@register_model
def lambda_resnet350(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """LambdaResNet-350, C→C→L→L with squeeze-and-excitation in the C blocks, at 288 pixels."""
    return _family("lambda_resnet350", (4, 36, 72, 4), pretrained, kwargs)


@register_model
def lambda_resnet420(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """LambdaResNet-420, C→C→L→L with squeeze-and-excitation in the C blocks, at 320 pixels."""
    return _family("lambda_resnet420", (4, 44, 87, 4), pretrained, kwargs)


@register_model
def lambda_resnet50_llll(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """ResNet-50 with lambda layers in all four stages: k 16, h 4, u 1, scope 23 (paper, table 3)."""
    return _create("lambda_resnet50_llll", pretrained, dict(layers=(3, 4, 6, 3), stages="LLLL"), kwargs)


@register_model
def lambda_resnet50_llll_u4(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """ResNet-50 with lambda layers in all four stages: k 16, h 4, u 4, scope 7 (paper, table 3)."""
    args = dict(layers=(3, 4, 6, 3), stages="LLLL", lambda_args={"intra_depth": 4, "scope": 7})
    return _create("lambda_resnet50_llll_u4", pretrained, args, kwargs)


@register_model
def lambda_resnet_tiny(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """A small LambdaResNet for images of 8 to 32 pixels: one convolution stage, three lambda stages.

    With ``pretrained=True`` it has weights of this package, and their number of channels and classes by default.
    """
    if kwargs.get("pretrained_cfg") is None:
        # Without weights images have three channels, whatever those of the first weights have.
        kwargs["pretrained_cfg"] = default_cfgs["lambda_resnet_tiny"].tags[0] if pretrained else "untrained"
    tag = kwargs["pretrained_cfg"]
    args: dict[str, Any] = dict(
        layers=(1, 1, 1, 1),
        stages="CLLL",
        lambda_args={"scope": 7, "recompute": False},  # its maps are small: time counts more
        stem_stride=1,
        stem_type="deep",
        stem_width=16,
        channels=(16, 32, 64, 128),
    )
    if isinstance(tag, str):
        args |= shipped_arguments("lambda_resnet_tiny", tag)
    return _create("lambda_resnet_tiny", pretrained, args, kwargs)
