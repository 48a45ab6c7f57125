"""LambdaResNets: timm's bottleneck ResNets with lambda layers in place of 3x3 convolutions.

Paper: LambdaNetworks: Modeling Long-Range Interactions Without Attention, I. Bello, ICLR 2021,
arXiv 2102.08602. Stages are written C (convolution) or L (lambda layer), as there, or with another letter of
:data:`lambdanets.layers.registry.LAYERS`. The models of timm's registry are in :mod:`lambdanets.models.lambda_resnet`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from timm.layers import SEModule, is_scriptable
from timm.models.resnet import Bottleneck, ResNet
from torch import nn

from lambdanets.layers.arguments import per_axis
from lambdanets.layers.registry import LAYERS, layer_classes
from lambdanets.models.options import check_lambda_args, check_options
from lambdanets.models.placement import format_placement, place_blocks
from lambdanets.names import did_you_mean

__all__ = ["LambdaBottleneck", "LambdaResNet", "with_defaults"]

LambdaArgs = Mapping[str, Any]


class LambdaBottleneck(Bottleneck):
    """timm's bottleneck block with a lambda layer, or another layer of the registry, for its 3x3 convolution.

    A stride is the layer's own: a lambda layer has a 3x3 average pooling behind it. Groups and dilation belong to the
    convolution and have no meaning here; a lambda layer's scope is set by ``lambda_args``.

    Args:
        inplanes: channels of the input.
        planes: base width of the block; the output has ``4 · planes`` channels.
        stride: stride of the block.
        downsample: the shortcut's projection, or None.
        lambda_args: keyword arguments of the layer, :class:`lambdanets.LambdaLayer` if ``letter`` is "L".
        letter: of the layer in :data:`lambdanets.layers.registry.LAYERS`. Default "L".
        reduction: how many times smaller than the image this block's input is, where known; by it
            :func:`lambdanets.resize_positions` finds the size that an image makes. Default None.
        **kwargs: as for timm's ``Bottleneck``.
    """

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        *,
        lambda_args: LambdaArgs,
        letter: str = "L",
        reduction: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(inplanes, planes, stride, downsample, **kwargs)
        self.reduction = reduction
        conv: nn.Conv2d = self.conv2
        self.conv2 = LAYERS[letter].make(  # type: ignore[assignment]
            conv.in_channels,
            conv.out_channels,
            conv.stride[0],  # 1 where an anti-aliasing layer behind it has the stride
            lambda_args,
            scriptable=is_scriptable(),
            device=kwargs.get("device"),
            dtype=kwargs.get("dtype"),
        )


class _Blocks:
    """Stand-in for a block class in timm's constructor: each call makes the next block of the placement.

    It follows the size of the maps, since some layers must know the one that they see.

    Args:
        words: one letter a block for each stage.
        layer_args: for each stage, keyword arguments of its layers by letter.
        conv_args: keyword arguments of the convolution blocks.
        img_size: size of the images, or None where no layer must know that of its map.
        reduction: how many times the stem reduces them.
    """

    expansion = Bottleneck.expansion

    def __init__(
        self,
        words: Sequence[str],
        layer_args: Sequence[Mapping[str, LambdaArgs]],
        conv_args: Mapping[str, Any],
        img_size: tuple[int, int] | None,
        reduction: int,
    ) -> None:
        self.todo: Iterator[tuple[str, LambdaArgs]] = iter(
            [(letter, args.get(letter, {})) for word, args in zip(words, layer_args, strict=True) for letter in word]
        )
        self.conv_args, self.img_size, self.reduction = conv_args, img_size, reduction

    def __call__(self, inplanes: int, planes: int, stride: int, *args: Any, **kwargs: Any) -> Bottleneck:
        letter, options = next(self.todo)
        reduction, self.reduction = self.reduction, self.reduction * stride
        entry = LAYERS[letter]
        if entry.layer is None:
            behind = entry.channel_attention
            conv_args = self.conv_args if behind is None else {"attn_layer": partial(behind, **options)}
            return Bottleneck(inplanes, planes, stride, *args, **{**conv_args, **kwargs})
        return LambdaBottleneck(
            inplanes,
            planes,
            stride,
            *args,
            lambda_args=self._with_size(letter, options, reduction),
            letter=letter,
            reduction=reduction,
            **kwargs,
        )

    def _with_size(self, letter: str, options: LambdaArgs, reduction: int) -> LambdaArgs:
        """The options with the size of the map that the layer sees, where it needs that."""
        error = LAYERS[letter].size_error(options)
        if error is None:
            return options
        if self.img_size is None:
            raise ValueError(
                f"img_size must be given where {error}: the largest image that the model shall take, for example "
                "img_size=224"
            )
        return {**options, "size": tuple(-(-side // reduction) for side in self.img_size)}


class LambdaResNet(ResNet):
    """ResNet whose blocks use convolutions (C), lambda layers (L) or other layers of the registry.

    Args:
        layers: blocks of each of the four stages.
        stages: one letter a stage, as "CCLL"; or one pattern a stage that its blocks repeat, as "C-C-CL-L" or
            ("C", "C", "CL", "L"): a lambda layer in every second block of the third stage. Default "LLLL".
        lambda_args: keyword arguments of :class:`lambdanets.LambdaLayer` in the lambda blocks, or a sequence of
            four such mappings, one a stage; default the paper's k 16, h 4, u 1, scope 23. ``{"scope": None}``
            makes the layers global, each of the size of the map that it sees in an image of ``img_size``.
        img_size: side or (height, width) of the images. Global lambda layers need it, and take images up to it
            (:func:`lambdanets.resize_positions` goes beyond); local ones take any and only note it.
        se_ratio: squeeze-and-excitation behind the last norm of C blocks, with this part of the block's channels
            inside. Default 0: none. The paper's family has 1/4.
        stem_stride: None (default) for timm's stem, which reduces 4 times; 1 or 2 for a stem of small images,
            one 3x3 convolution of that stride without pooling.
        layer_args: keyword arguments of the layers with other letters than C and L, by letter. Default: none.
        **kwargs: as for timm's ``ResNet``. With ``output_stride`` 16 or 8 the last stages keep their resolution:
            convolutions are dilated then, and a lambda layer's scope still counts positions of its map, so that
            it covers a smaller part of the image; give it a larger scope where that matters.

    Weight decay: timm's optimizers exempt vectors (norms, biases). Position tables decay as convolution filters do,
    since a local one is a filter bank, as in the published codes; ``no_weight_decay_list=["*.positions"]`` of
    timm's ``create_optimizer_v2`` parameter groups exempts them.

    Raises:
        ValueError: if ``stages``, ``lambda_args``, ``layer_args``, ``img_size``, ``se_ratio`` or ``stem_stride`` cannot
            be.
        TypeError: for an unknown argument.
    """

    __jit_unused_properties__ = ("stages",)

    def __init__(
        self,
        layers: Sequence[int],
        stages: str | Sequence[str] = "LLLL",
        lambda_args: LambdaArgs | Sequence[LambdaArgs | None] | None = None,
        img_size: int | Sequence[int] | None = None,
        se_ratio: float = 0.0,
        stem_stride: int | None = None,
        layer_args: Mapping[str, LambdaArgs] | None = None,
        **kwargs: Any,
    ) -> None:
        for name in kwargs:
            if name not in _KNOWN:
                raise TypeError(f"{type(self).__name__} has no argument {name!r}; {did_you_mean(name, _KNOWN)}")
        whole = [number for number in layers if isinstance(number, int) and not isinstance(number, bool) and number > 0]
        if len(layers) != 4 or len(whole) != 4:
            raise ValueError(f"layers must be four whole numbers of blocks from 1 on, one a stage, got {layers!r}")
        if stem_stride not in (None, 1, 2) or isinstance(stem_stride, float | bool):
            raise ValueError(
                f"stem_stride must be 1 or 2 (small images) or None (timm's stem, stride 4), got {stem_stride!r}"
            )
        if not isinstance(se_ratio, int | float) or not 0 <= se_ratio <= 1:
            raise ValueError(f"se_ratio must be between 0 (none) and 1, as 0.25 in the paper, got {se_ratio!r}")
        words = place_blocks(stages, layers)
        size = None
        if img_size is not None:
            height, width = per_axis("img_size", img_size, 2, odd=False)
            size = (height, width)
        blocks = _Blocks(
            words,
            _layer_args_by_stage(lambda_args, layer_args, words),
            {"attn_layer": partial(SEModule, rd_ratio=se_ratio)} if se_ratio else {},
            size,
            stem_stride or 4,
        )
        super().__init__((blocks,) * 4, tuple(layers), **kwargs)  # type: ignore[arg-type]  # makes blocks by calls
        self.placement, self.img_size = words, size
        if stem_stride is not None:
            self._use_small_stem(stem_stride, kwargs.get("device"), kwargs.get("dtype"))

    @property
    def stages(self) -> str:
        """The placement in short, as "CCLL" or "C-C-CL-L"."""
        return format_placement(self.placement)

    def _use_small_stem(self, stride: int, device: Any, dtype: Any) -> None:
        infos: list[dict[str, Any]] = self.feature_info
        width = infos[0]["num_chs"]
        conv = nn.Conv2d(self.in_chans, width, 3, stride=stride, padding=1, bias=False, device=device, dtype=dtype)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        self.conv1, self.maxpool = conv, nn.Identity()  # type: ignore[assignment]
        for index, info in enumerate(infos):
            info["reduction"] = stride if index == 0 else stride * info["reduction"] // 4

    @torch.jit.ignore
    def init_weights(self, zero_init_last: bool = True, needs_reset: bool | None = None) -> None:
        """Timm's initialisation for the convolutions, the layer's own for lambda layers.

        Args:
            zero_init_last: each residual branch starts at zero.
            needs_reset: reset all other parameters and the running statistics too, as memory from
                ``to_empty`` needs it. Default: True, except in the constructor, where they are new.
        """
        if needs_reset is None:
            needs_reset = hasattr(self, "placement")
        if needs_reset:
            for module in self.modules():
                reset = getattr(module, "reset_parameters", None)
                if callable(reset):
                    reset()
        super().init_weights(zero_init_last)
        for module in self.modules():
            reset = getattr(module, "reset_parameters", None)
            if isinstance(module, layer_classes()) and callable(reset):
                reset()


_KNOWN = {
    name
    for kind in (LambdaResNet, ResNet)
    for name in inspect.signature(kind).parameters
    if name not in ("block", "kwargs")
}


def _layer_args_by_stage(
    given: LambdaArgs | Sequence[LambdaArgs | None] | None,
    others: Mapping[str, LambdaArgs] | None,
    words: Sequence[str],
) -> list[dict[str, LambdaArgs]]:
    """Keyword arguments of each stage's layers, by letter."""
    by_stage = list(given) if isinstance(given, Sequence) else [given] * 4
    if len(by_stage) != 4 or not all(args is None or isinstance(args, Mapping) for args in by_stage):
        raise ValueError(
            "lambda_args must be keyword arguments of LambdaLayer, as {'scope': 7}, or four such mappings, one a "
            f"stage, got {given!r}"
        )
    if others is not None and not isinstance(others, Mapping):
        raise TypeError(f"layer_args must be a mapping of letters to keyword arguments, got {others!r}")
    known = {letter for letter, entry in LAYERS.items() if entry.options and letter != "L"}
    for letter in others or {}:
        if letter not in known:
            raise ValueError(
                f"layer_args must be by the letters {sorted(known)}, got {letter!r}; those of L are lambda_args"
            )
        if not any(letter in word for word in words):
            raise ValueError(
                f"layer_args has arguments for {letter!r}, which the stages {format_placement(words)} have nowhere; "
                "leave them out, or place the letter"
            )
    checked = {
        letter: with_defaults(
            LAYERS[letter].defaults,
            check_options(letter, (others or {}).get(letter), f"layer_args[{letter!r}]", "each block"),
        )
        for letter in known
    }
    own = (with_defaults(LAYERS["L"].defaults, check_lambda_args(args, "each block")) for args in by_stage)
    return [{**checked, "L": args} for args in own]


def with_defaults(defaults: LambdaArgs, args: LambdaArgs) -> LambdaArgs:
    """A layer's options added to its defaults; one with a size has no scope."""
    return {**{name: value for name, value in defaults.items() if name != "scope" or not args.get("size")}, **args}
