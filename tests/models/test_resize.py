"""Global layers on larger grids than they were made for."""

import pytest
import timm
import torch
from torch import nn

from lambdanets import GridPositions, LambdaLayer, lambda_apply, resize_positions

GRIDS = {1: (9,), 2: (6, 5), 3: (3, 4, 2)}


def layer_of(ndim, size=None, **kwargs):
    return LambdaLayer(8, num_heads=2, dim_key=4, ndim=ndim, size=size or GRIDS[ndim], **kwargs)


def attention_beside():
    return timm.create_model("lambda_resnet_tiny", stages="CXLL", lambda_args={"scope": None}, img_size=32)


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("factor", [1, 2, 3])
def test_takes_the_new_size(ndim, factor):
    layer = layer_of(ndim).eval()
    table = layer.positions
    before = table.detach().clone()
    size = tuple(factor * side + (factor > 1) for side in GRIDS[ndim])
    assert resize_positions(layer, size) is layer
    assert layer.size == size
    assert layer.positions is table
    assert table.shape[2:] == tuple(2 * side - 1 for side in size)
    assert layer(torch.randn(2, 8, *size)).shape == (2, 8, *size)
    if factor == 1:
        assert torch.equal(table, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("trained", [True, False])
def test_keeps_dtype_device_and_requires_grad(dtype, trained):
    layer = layer_of(2, dtype=dtype)
    layer.positions.requires_grad_(trained)
    layer.positions.grad = torch.ones_like(layer.positions)
    resize_positions(layer, 9)
    assert (layer.positions.dtype, layer.positions.requires_grad) == (dtype, trained)
    assert isinstance(layer.positions, nn.Parameter)
    assert layer.positions.grad is None
    with torch.device("meta"):
        empty = resize_positions(layer_of(2), 9)
    assert empty.positions.is_meta
    assert empty.positions.shape[2:] == (17, 17)


def test_offsets_keep_their_place():
    """An even function of the offset stays one, an odd one too, and the centre is still where it is largest."""
    layer = layer_of(2, (8, 8), dtype=torch.float64)
    offset = torch.arange(-7.0, 8.0, dtype=torch.float64)
    with torch.no_grad():
        layer.positions[:, :2] = torch.exp(-offset.square() / 8)[:, None] * torch.exp(-offset.square() / 8)
        layer.positions[:, 2:] = offset[:, None].expand(15, 15)
    resize_positions(layer, (13, 20))
    even, odd = layer.positions[0, 0].detach(), layer.positions[0, 2].detach()
    torch.testing.assert_close(even, even.flip(0, 1))
    torch.testing.assert_close(odd, -odd.flip(0))
    assert even.argmax() == even.numel() // 2
    # Corners not aligned: offset o of 13 positions is offset o · 15 / 25 of 8.
    inner = slice(6, 19)
    fraction = odd[inner, 0] / odd[18, 0] * 6
    torch.testing.assert_close(fraction, torch.arange(-6.0, 7.0, dtype=torch.float64), atol=0.15, rtol=0)


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("new", [2.0, 0.5])
def test_variance_stays_for_independent_values(ndim, new):
    """The position term of every query, the mean over the grid; values and queries as batch-norm leaves them."""
    side = {1: 64, 2: 10, 3: 4}[ndim]
    layer = LambdaLayer(16, num_heads=2, ndim=ndim, size=(side,) * ndim, dtype=torch.float64)
    large = (int(side * new),) * ndim

    def variance(grid):
        n = torch.Size(grid).numel()
        query = torch.randn(256, 2, n, 16, dtype=torch.float64)
        value = torch.randn(256, 1, n, 8, dtype=torch.float64)
        return lambda_apply(query, None, value, GridPositions(layer.positions, grid)).var().item()

    before = variance((side,) * ndim)
    resize_positions(layer, large)
    assert variance(large) == pytest.approx(before, rel=0.05)


def test_models_take_the_image_size():
    model = timm.create_model(
        "lambda_resnet50", layers=(1, 2, 2, 1), channels=(16, 32, 32, 64), lambda_args={"scope": None}, img_size=64
    ).eval()
    with pytest.raises(ValueError, match="larger than size"):
        model(torch.randn(1, 3, 96, 130))
    wrapped = nn.Sequential(model, nn.Flatten())
    resize_positions(wrapped, (96, 130))
    expected = timm.create_model(
        "lambda_resnet50",
        layers=(1, 2, 2, 1),
        channels=(16, 32, 32, 64),
        lambda_args={"scope": None},
        img_size=(96, 130),
    )
    assert [m.size for m in model.modules() if isinstance(m, LambdaLayer)] == [
        m.size for m in expected.modules() if isinstance(m, LambdaLayer)
    ]
    expected.load_state_dict(model.state_dict())
    assert model(torch.randn(1, 3, 96, 130)).shape == (1, 1000)
    assert model.img_size == (96, 130)


def test_features_only_models_too():
    model = timm.create_model(
        "lambda_resnet50_llll",
        layers=(1, 1, 1, 1),
        channels=(16, 32, 32, 64),
        lambda_args={"scope": None},
        img_size=32,
        features_only=True,
    ).eval()
    assert resize_positions(model, 64)(torch.randn(1, 3, 64, 64))[-1].shape == (1, 256, 2, 2)


def test_shared_tables_stay_shared():
    a, b = layer_of(2), layer_of(2)
    b.positions = a.positions
    both = resize_positions(nn.Sequential(a, b), 9)
    assert a.positions is b.positions
    assert both(torch.randn(1, 8, 9, 9)).shape == (1, 8, 9, 9)


def test_a_resized_model_with_sizes_of_its_own_can_be_made_anew():
    model = resize_positions(timm.create_model("lambda_resnet_tiny", lambda_args={"size": 32}), 48)
    assert model._model_args["lambda_args"] == {"scope": None, "size": None}
    timm.create_model("lambda_resnet_tiny", **model._model_args).load_state_dict(model.state_dict())


def test_local_layers_stay_as_they_are():
    model = nn.Sequential(layer_of(2), LambdaLayer(8, scope=3))
    before = model[1].positions.detach().clone()
    resize_positions(model, 9)
    assert torch.equal(model[1].positions, before)
    assert model[1].scope == (3, 3)


def sharing_one_table():
    network = timm.create_model("lambda_resnet_tiny", img_size=64, lambda_args={"scope": None})
    layers = [layer for layer in network.modules() if isinstance(layer, LambdaLayer)]
    first = layers[0]
    last = next(layer for layer in layers[::-1] if layer.size != first.size)
    last.size, last.positions = first.size, first.positions
    return network


@pytest.mark.parametrize(
    ("model", "size", "message"),
    [
        (nn.Linear(2, 2), 7, "model has no global lambda layers to resize, got Linear"),
        (LambdaLayer(8, scope=3), 7, "no global lambda layers.*layers with scope= take any grid"),
        (layer_of(2), 0, "size must be positive ints, got 0"),
        (layer_of(2), (7, -1), r"size must be positive ints, got \(7, -1\)"),
        (layer_of(2), 64.0, r"size must be positive ints, got 64\.0"),
        (layer_of(2), (7, True), r"size must be positive ints, got \(7, True\)"),
        (attention_beside(), 48, r"cannot be resized, layer2\.0\.conv2, a AxialAttention for maps of \(32, 32"),
        (nn.Sequential(layer_of(1)), (7, 7), r"size must be an int or 1 of them.*layer '0', got \(7, 7\)"),
        (sharing_one_table(), 448, r"share one table of positions, and would need it for the grids \("),
    ],
)
def test_refuses(model, size, message):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        resize_positions(model, size)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_networks_of_which_nothing_was_resized_keep_their_image_size():
    network = timm.create_model("lambda_resnet_tiny", img_size=64)
    assert not any(layer.size for layer in network.modules() if isinstance(layer, LambdaLayer))
    both = nn.ModuleList([network, layer_of(2), layer_of(1)])
    resize_positions(both[:2], 14)
    assert network.img_size == (64, 64)
    with pytest.raises(ValueError, match=r"size must be an int or 1 of them"):
        resize_positions(both, (14, 14))
    assert both[1].size == (14, 14)
