"""Vision transformers with lambda layers on images of other sizes than they were made for."""

import copy

import pytest
import timm
import torch
import torchvision
from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg
from torch import nn

from lambdanets import LambdaLayer, plan_attention, replace_attention, resize_positions
from lambdanets.interop import TokenLambda

TABLES = ("prefix_keys", "prefix_queries", "prefix_pairs")


def vit(size=32, replace=None, dynamic_img_size=False, **options):
    options = {"num_classes": 5, "depth": 2, "dynamic_img_size": dynamic_img_size, **options}
    model = timm.create_model("test_vit", img_size=size, **options)
    return replace_attention(model, verbose=False, **(replace or {}))


def torchvision_vit(size):
    model = torchvision.models.VisionTransformer(
        image_size=size, patch_size=8, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=64, num_classes=5
    )
    return replace_attention(model, verbose=False)


def tokens_of(model):
    return [module for module in model.modules() if isinstance(module, TokenLambda)]


@pytest.mark.parametrize(("size", "grid"), [(64, (4, 4)), ((96, 32), (6, 2)), (16, (1, 1))])
@pytest.mark.parametrize("options", [{}, {"reg_tokens": 2}, {"class_token": False, "global_pool": "avg"}])
def test_timms_set_input_size_and_then_the_tables(size, grid, options):
    """The tables are those that a lambda layer of that grid gets; vectors of the prefix tokens are left alone."""
    model = vit(**options).eval()
    before = copy.deepcopy(model)
    model.set_input_size(img_size=size)
    assert resize_positions(model, size) is model
    for tokens, old in zip(tokens_of(model), tokens_of(before), strict=True):
        layer = LambdaLayer(8, num_heads=1, dim_key=old.dim_key, size=(2, 2))
        layer.positions.data.copy_(old.positions.data)
        assert torch.equal(tokens.positions, resize_positions(layer, grid).positions)
        assert (tokens.size, tokens.grid) == (grid, grid)
        for name in TABLES:
            assert (getattr(old, name) is None) == (not old.prefix_tokens)
            assert not old.prefix_tokens or torch.equal(getattr(tokens, name), getattr(old, name))
    # A model that is made for the size computes the same with these weights.
    made = vit(size, **options).eval()
    made.load_state_dict(model.state_dict())
    height, width = (size, size) if isinstance(size, int) else size
    images = torch.randn(2, 3, height, width)
    torch.testing.assert_close(model(images), made(images), atol=0, rtol=0)


def test_the_order_of_both_calls_does_not_matter_and_the_way_back_is_no_error():
    model = vit()
    other = copy.deepcopy(model)
    model.set_input_size(img_size=(32, 64))
    resize_positions(model, (32, 64))
    resize_positions(other, (32, 64)).set_input_size(img_size=(32, 64))
    images = torch.randn(1, 3, 32, 64)
    torch.testing.assert_close(model.eval()(images), other.eval()(images), atol=0, rtol=0)
    model.set_input_size(img_size=32)
    assert resize_positions(model, 32)(torch.randn(1, 3, 32, 32)).shape == (1, 5)


def test_a_new_size_of_patches():
    model = vit()
    model.set_input_size(img_size=32, patch_size=8)
    assert resize_positions(model, 32)(torch.randn(1, 3, 32, 32)).shape == (1, 5)
    assert tokens_of(model)[0].size == (4, 4)


def test_positions_along_one_axis():
    model = vit(replace={"positions": "1d"})
    model.set_input_size(img_size=(32, 64))
    assert resize_positions(model, (32, 64))(torch.randn(1, 3, 32, 64)).shape == (1, 5)
    assert tokens_of(model)[0].size == (8,)


def test_weights_for_torchvisions():
    """Which has no size to set: weights go into a model that is made for the other size."""
    old, new = torchvision_vit(32), torchvision_vit(48)
    weights = resize_positions(old, 48).state_dict()
    weights = torchvision.models.vision_transformer.interpolate_embeddings(48, 8, weights)
    new.load_state_dict(weights)
    assert new(torch.randn(1, 3, 48, 48)).shape == (1, 5)
    assert tokens_of(new)[0].size == (6, 6)


def test_inside_of_another_model_and_beside_other_layers():
    model = nn.ModuleDict({"vit": vit(), "layer": LambdaLayer(8, size=2), "tokens": TokenLambda(8, size=4)})
    with pytest.raises(ValueError, match="an int or 1 of them for the grid of rank 1 of layer 'tokens'"):
        resize_positions(model, (64, 64))
    resize_positions(model, 64)
    sizes = [model["layer"].size, model["tokens"].size, tokens_of(model["vit"])[0].size]
    assert sizes == [(64, 64), (64,), (4, 4)]


@pytest.mark.parametrize("size", [16, 32, 64, 112])
def test_square_images_of_any_size_with_local_layers(size):
    model = vit(dynamic_img_size=True, replace={"scope": 3})
    assert model(torch.randn(1, 3, size, size)).shape == (1, 5)


@pytest.mark.parametrize("replace", [{"scope": 3}, {"size": 4}])
def test_other_images_with_dynamic_sizes_need_to_be_told(replace):
    """Tokens do not tell which grid of 8 they are; square images no larger than a global layer need no call."""
    model = vit(dynamic_img_size=True, replace=replace)
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 5)
    images = torch.randn(1, 3, 32, 64)
    with pytest.raises(ValueError, match=r"8 tokens after 1 prefix tokens .*resize_positions\(model, image size\)"):
        model(images)
    tables = [tokens.positions.detach().clone() for tokens in tokens_of(model)]
    assert resize_positions(model, (32, 64))(images).shape == (1, 5)
    for tokens, table in zip(tokens_of(model), tables, strict=True):
        assert tokens.grid == (2, 4)
        assert torch.equal(tokens.positions, table) == ("scope" in replace)


def test_naflexvit_which_is_for_no_size():
    config = NaFlexVitCfg(patch_size=8, embed_dim=32, depth=2, num_heads=2, reg_tokens=2, global_pool="avg")
    model = replace_attention(NaFlexVit(config, num_classes=3), scope=3, verbose=False)
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 3)
    with pytest.raises(ValueError, match="24 tokens after 2 prefix tokens"):
        model(torch.randn(1, 3, 32, 48))
    assert resize_positions(model, (32, 48))(torch.randn(1, 3, 32, 48)).shape == (1, 3)
    assert tokens_of(model)[0].grid == (4, 6)


def test_the_table_tells_which_images_need_a_call():
    note = "resize_positions before images that are no square"
    for dynamic in (False, True):
        plan = plan_attention(timm.create_model("test_vit", img_size=32, dynamic_img_size=dynamic))
        assert all((note in change.notes) == dynamic for change in plan.changes)


def test_the_grid_can_be_set_by_hand():
    model = vit(dynamic_img_size=True, replace={"scope": 3})
    for tokens in tokens_of(model):
        tokens.grid = (2, 4)
    assert model(torch.randn(1, 3, 32, 64)).shape == (1, 5)


def test_refuses():
    model = vit()
    with pytest.raises(ValueError, match=r"larger than size=\(2, 2\).*call lambdanets\.resize_positions\(model"):
        vit(dynamic_img_size=True)(torch.randn(1, 3, 48, 48))
    with pytest.raises(ValueError, match=r"at least one patch of VisionTransformer .*an image of 8 x 8.*0 x 0"):
        resize_positions(model, 8)
    with pytest.raises(ValueError, match=r"size must be positive ints, got 64\.0"):
        resize_positions(model, 64.0)
    assert all(tokens.size == (2, 2) for tokens in tokens_of(model))
