"""Families of vision transformers: their attention is replaced, or left alone with the reason."""

import pytest
import timm
import torch
import torchvision
from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg
from torch import nn

from lambdanets import plan_attention, replace_attention
from lambdanets.interop import LambdaViTAttention, TokenLambda


def empty(name, **options):
    with torch.device("meta"):
        return timm.create_model(name, **options)


def names_of(kept):
    return {(k.name, k.old) for k in kept}


SMALL = {"img_size": 32, "embed_dim": 32, "num_heads": 2, "num_classes": 3}


@pytest.mark.parametrize(
    ("make", "request_", "kept"),
    [
        (lambda: timm.create_model("vit_tiny_patch16_224", depth=2, **SMALL), {}, None),
        (lambda: timm.create_model("deit3_small_patch16_224", depth=2, **SMALL), {}, None),
        (lambda: timm.create_model("deit_tiny_distilled_patch16_224", depth=2, **SMALL), {}, None),
        (
            lambda: timm.create_model("vit_so400m_patch14_siglip_224", depth=2, **{**SMALL, "img_size": 28}),
            {},
            ("attn_pool", "AttentionPoolLatent", "built of q (Linear), kv (Linear), proj (Linear)"),
        ),
        (
            lambda: timm.create_model("convit_tiny", depth=2, local_up_to_layer=1, **{**SMALL, "embed_dim": 16}),
            {},
            ("blocks.0.attn", "GPSA", "relative positions (pos_proj, rel_indices)"),
        ),
        (
            lambda: NaFlexVit(
                NaFlexVitCfg(patch_size=16, embed_dim=32, depth=2, num_heads=2, reg_tokens=2, global_pool="avg"),
                num_classes=3,
            ),
            {"scope": 3},
            None,
        ),
    ],
    ids=["vit", "deit3", "deit-distilled", "siglip", "convit", "naflexvit"],
)
def test_replaced(make, request_, kept):
    model = make()
    plan = plan_attention(model, **request_)
    assert [(k.name, k.old) for k in plan.kept] == ([] if kept is None else [kept[:2]])
    assert kept is None or kept[2] in plan.kept[0].reason
    plan.apply()
    side = 28 if kept and kept[0] == "attn_pool" else 32
    assert model(torch.randn(2, 3, side, side)).shape == (2, 3)


WINDOWED = r"windowed attention: its positions are inside of windows.*Take a vision transformer.*TokenLambda"


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("swin_tiny_patch4_window7_224", rf"layers.0.blocks.0.attn \(WindowAttention\) and 11 more: it is {WINDOWED}"),
        ("swinv2_tiny_window8_256", rf"\(WindowAttention\) and 11 more: it is {WINDOWED}"),
        ("vit_small_patch16_rope_224", r"made for rotary positions \(rope\), which a lambda layer would drop"),
        ("eva02_tiny_patch14_224", r"\(EvaAttention\) .*rotary positions \(rope\)"),
        ("beit_base_patch16_224", r"made for relative positions \(shared_rel_pos_bias, relative_position_bias_table"),
        ("mvitv2_tiny", r"relative positions \(rel_pos_h, rel_pos_w\)"),
        ("maxvit_tiny_tf_224", r"attn_block.attn \(AttentionCl\) and 21 more: .*relative positions .*rel_pos"),
        ("coatnet_0_rw_224", r"\(Attention2d\) .*relative positions"),
        ("levit_128s", r"relative positions \(attention_biases"),
        ("cait_xxs24_224", "something else than attention: it has proj_l, proj_w beside"),
        ("xcit_nano_12_p16_224", r"\(XCA\) and 11 more: it attends over channels"),
        ("davit_tiny", r"\(ChannelAttention\) and 5 more: it attends over channels"),
        ("twins_svt_small", r"called as forward\(x, size\)"),
        ("botnet26t_256", r"self_attn \(BottleneckAttn\) .*built of qkv \(Conv2d\)"),
    ],
)
def test_left_alone(name, reason):
    """Whatever positions are asked for: dropping those that the model has would be another model."""
    model = empty(name)
    for request in ({}, {"positions": "2d", "size": 7, "prefix_tokens": 0}):
        with pytest.raises(ValueError, match=f"has no attention that can be replaced: .*{reason}"):
            replace_attention(model, **request)
    assert not any(isinstance(module, TokenLambda) for module in model.modules())


@pytest.mark.parametrize("make", [torchvision.models.swin_t, torchvision.models.swin_v2_t])
@pytest.mark.parametrize("request_", [{}, {"positions": "none"}, {"positions": "2d", "scope": 7}])
def test_torchvisions_swin_is_refused_as_a_whole(make, request_):
    with torch.device("meta"):
        model = make()
    before = dict(model.named_modules())
    with pytest.raises(
        ValueError, match=rf"features.1.0.attn \(ShiftedWindowAttention\w*\) and 11 more: it is {WINDOWED}"
    ):
        replace_attention(model, **request_)
    assert dict(model.named_modules()) == before


def test_the_way_by_hand_for_windows():
    """What the message names: torchvision's blocks call their attention with the whole map, (b, height, width, dim)."""

    class OnMaps(nn.Module):
        def __init__(self, tokens):
            super().__init__()
            self.tokens = tokens

        def forward(self, x):
            self.tokens.grid = tuple(x.shape[1:3])
            return self.tokens(x.flatten(1, 2)).unflatten(1, x.shape[1:3])

    model = torchvision.models.SwinTransformer([4, 4], 16, [2, 2], [2, 4], [7, 7], num_classes=3)
    for name, module in list(model.named_modules()):
        if type(module).__name__ == "ShiftedWindowAttention":
            dim, side = module.qkv.in_features, 16 // (module.qkv.in_features // 16)
            model.set_submodule(name, OnMaps(TokenLambda(dim, positions="2d", scope=7, size=side)))
    assert model(torch.randn(2, 3, 64, 96)).shape == (2, 3)


def convit(**options):
    return timm.create_model("convit_tiny", depth=3, local_up_to_layer=2, **{**SMALL, "embed_dim": 16, **options})


def test_lookalikes_by_name():
    """Those that a glob asks for are kept, with the reason; where a glob asks for nothing else, it is an error."""
    plan = plan_attention(convit(), names="blocks.[12].attn")
    assert [change.name for change in plan.changes] == ["blocks.2.attn"]
    assert names_of(plan.kept) == {("blocks.1.attn", "GPSA")}
    assert not plan_attention(convit(), names="blocks.2.attn").kept
    assert not plan_attention(convit(), where=lambda name, module: True).kept
    with pytest.raises(
        ValueError,
        match=r"names='blocks\.0\.\*' matches no self-attention: blocks.0.attn is a GPSA, which cannot be replaced: it "
        r"is made for relative positions",
    ):
        plan_attention(convit(), names="blocks.0.*")


def test_what_was_replaced_before_is_told():
    model = replace_attention(
        timm.create_model("vit_tiny_patch16_224", depth=2, **SMALL), names="*.0.attn", verbose=False
    )
    plan = plan_attention(model)
    assert [change.name for change in plan.changes] == ["blocks.1.attn"]
    assert names_of(plan.kept) == {("blocks.0.attn", LambdaViTAttention.__name__)}
    plan.apply()
    with pytest.raises(
        ValueError, match=r"blocks.0.attn \(LambdaViTAttention\) and 1 more: it is a lambda layer already"
    ):
        plan_attention(model)


class WithSlopes(timm.layers.Attention):
    """Adds a bias by distance, whose factors are no parameters."""

    def __init__(self, dim):
        super().__init__(dim, 2)
        self.register_buffer("slopes", torch.ones(2))


class RotaryMultiheadAttention(nn.MultiheadAttention):
    def forward(self, query, key, value, **options):
        return super().forward(query.roll(1, -1), key.roll(1, -1), value, **options)


def test_positions_in_buffers_and_in_a_subclass_are_not_dropped():
    model = nn.Sequential(WithSlopes(8), timm.layers.Attention(8, 2), RotaryMultiheadAttention(8, 2))
    plan = plan_attention(model, size=4)
    assert [change.name for change in plan.changes] == ["1"]
    reasons = {kept.name: kept.reason for kept in plan.kept}
    assert reasons["0"] == "it computes something else than attention: it has slopes beside qkv and proj"
    assert "RotaryMultiheadAttention has a forward of its own" in reasons["2"]
