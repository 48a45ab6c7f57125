"""LambdaResNets: timm's bottleneck ResNets with lambda layers in place of 3x3 convolutions.

Paper: LambdaNetworks: Modeling Long-Range Interactions Without Attention, I. Bello, ICLR 2021,
arXiv 2102.08602. Stages are written C (convolution) or L (lambda layer), as there.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import Bottleneck, ResNet
from torch import nn

from lambdanets.layers import LambdaLayer

__all__ = ["LambdaBottleneck", "LambdaResNet"]


class LambdaBottleneck(Bottleneck):
    """timm's bottleneck block with a lambda layer for its 3x3 convolution.

    A stride is the layer's own: a 3x3 average pooling behind it. Groups and dilation belong to the
    convolution and have no meaning here; a lambda layer's scope is set by ``lambda_args``.

    Args:
        inplanes: channels of the input.
        planes: base width of the block; the output has ``4 · planes`` channels.
        stride: stride of the block.
        downsample: the shortcut's projection, or None.
        lambda_args: keyword arguments of :class:`lambdanets.LambdaLayer`.
        **kwargs: as for timm's ``Bottleneck``.
    """

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        *,
        lambda_args: dict[str, Any],
        **kwargs: Any,
    ) -> None:
        super().__init__(inplanes, planes, stride, downsample, **kwargs)
        conv: nn.Conv2d = self.conv2
        self.conv2 = LambdaLayer(  # type: ignore[assignment]
            conv.in_channels,
            conv.out_channels,
            stride=stride,
            device=kwargs.get("device"),
            dtype=kwargs.get("dtype"),
            **lambda_args,
        )


class LambdaResNet(ResNet):
    """ResNet whose stages use convolutions (C) or lambda layers (L).

    Args:
        layers: blocks of each of the four stages.
        stages: one letter a stage, C or L. Default "LLLL".
        lambda_args: keyword arguments of :class:`lambdanets.LambdaLayer` in the lambda stages; default the
            paper's k 16, h 4, u 1, scope 23.
        stem_stride: None (default) for timm's stem, which reduces 4 times; 1 or 2 for a stem of small images,
            one 3x3 convolution of that stride without pooling.
        **kwargs: as for timm's ``ResNet``.

    Raises:
        ValueError: if ``stages`` is not four letters C or L, or ``stem_stride`` is something else.
    """

    def __init__(
        self,
        layers: tuple[int, ...],
        stages: str = "LLLL",
        lambda_args: dict[str, Any] | None = None,
        stem_stride: int | None = None,
        **kwargs: Any,
    ) -> None:
        if len(stages) != 4 or set(stages) - {"C", "L"}:
            raise ValueError(
                f'stages must be four letters, C (convolution) or L (lambda layer), as "CCLL", got {stages!r}'
            )
        if stem_stride not in (None, 1, 2):
            raise ValueError(
                f"stem_stride must be 1 or 2 (small images) or None (timm's stem, stride 4), got {stem_stride!r}"
            )
        lambda_block = partial(LambdaBottleneck, lambda_args={"scope": 23, **(lambda_args or {})})
        lambda_block.expansion = LambdaBottleneck.expansion  # type: ignore[attr-defined]
        blocks = tuple(lambda_block if letter == "L" else Bottleneck for letter in stages)
        super().__init__(blocks, layers, **kwargs)  # type: ignore[arg-type]  # timm takes one class a stage too
        if stem_stride is not None:
            self._use_small_stem(stem_stride, kwargs.get("device"), kwargs.get("dtype"))

    def _use_small_stem(self, stride: int, device: Any, dtype: Any) -> None:
        infos: list[dict[str, Any]] = self.feature_info
        width = infos[0]["num_chs"]
        conv = nn.Conv2d(self.in_chans, width, 3, stride=stride, padding=1, bias=False, device=device, dtype=dtype)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        self.conv1, self.maxpool = conv, nn.Identity()  # type: ignore[assignment]
        for index, info in enumerate(infos):
            info["reduction"] = stride if index == 0 else stride * info["reduction"] // 4

    @torch.jit.ignore
    def init_weights(self, zero_init_last: bool = True) -> None:
        """Timm's initialisation for the convolutions, the layer's own for lambda layers."""
        super().init_weights(zero_init_last)
        for module in self.modules():
            if isinstance(module, LambdaLayer):
                module.reset_parameters()


def _create(variant: str, pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    return build_model_with_cfg(LambdaResNet, variant, pretrained, **kwargs)


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "conv1",
        "classifier": "fc",
        "license": "mit",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "lambda_resnet50_llll.untrained": _cfg(),
        "lambda_resnet_tiny.untrained": _cfg(input_size=(3, 32, 32), pool_size=(4, 4), num_classes=10, crop_pct=1.0),
    }
)


@register_model
def lambda_resnet50_llll(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """ResNet-50 with lambda layers in all four stages: k 16, h 4, u 1, scope 23 (paper, table 3)."""
    return _create("lambda_resnet50_llll", pretrained, **dict(dict(layers=(3, 4, 6, 3), stages="LLLL"), **kwargs))


@register_model
def lambda_resnet_tiny(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """A small LambdaResNet for images of 8 to 32 pixels: one convolution stage, three lambda stages."""
    args: dict[str, Any] = dict(
        layers=(1, 1, 1, 1),
        stages="CLLL",
        lambda_args={"scope": 7},
        stem_stride=1,
        stem_type="deep",
        stem_width=16,
        channels=(16, 32, 64, 128),
    )
    return _create("lambda_resnet_tiny", pretrained, **dict(args, **kwargs))
