"""The layer: shapes, start, size-agnosticism, bad input."""

import numpy as np
import pytest
import torch
from torch import nn

from helpers import EVERYWHERE
from lambdanets import GridPositions, LambdaLayer, lambda_apply


def by_hand(layer, x):
    """The layer written out with the op's reference."""
    b, grid = x.shape[0], x.shape[2:]
    h, k, u, v = layer.num_heads, layer.dim_key, layer.intra_depth, layer.dim_value
    projected = torch.einsum("oc,bcn->bon", layer.qkv.weight.flatten(1), x.flatten(2))
    if layer.qkv.bias is not None:
        projected = projected + layer.qkv.bias[:, None]
    query, key, value = projected.split([h * k, u * k, u * v], dim=1)
    query = layer.norm_query(query.reshape(b, -1, *grid)).reshape(b, h, k, -1)
    value = layer.norm_value(value.reshape(b, -1, *grid)).reshape(b, u, v, -1)
    out = lambda_apply(
        query.transpose(2, 3),
        key.reshape(b, u, k, -1).transpose(2, 3),
        value.transpose(2, 3),
        GridPositions(layer.positions, tuple(grid)),
        kernel="reference",
        causal=layer.causal,
    )
    if layer.position_bias is not None:  # a constant in all entries of the position lambda
        lambda_kv = layer.position_bias[:, None].expand(k, v)
        out = out + query.transpose(2, 3) @ lambda_kv
    return layer.pool(out.transpose(2, 3).reshape(b, -1, *grid))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("ndim", "shape", "options"),
    [
        (1, (3, 8, 13), {"scope": 5}),
        (1, (3, 8, 13), {"size": 16, "intra_depth": 2}),
        (1, (3, 8, 13), {"size": 13, "causal": True}),
        (2, (3, 8, 7, 10), {"scope": (3, 5), "dim_out": 12, "num_heads": 2}),
        (2, (3, 8, 6, 9), {"size": (6, 9), "stride": 2}),
        (2, (3, 8, 1, 1), {"scope": 23}),
        (2, (3, 8, 5, 7), {"scope": 3, "intra_depth": 2, "qkv_bias": True, "position_bias": True}),
        (3, (2, 8, 3, 4, 5), {"scope": 3, "intra_depth": 2, "stride": 2}),
    ],
)
def test_layer_is_the_equations(ndim, shape, options, training):
    layer = LambdaLayer(8, dim_key=4, ndim=ndim, dtype=torch.float64, **options).train(training)
    other = LambdaLayer(8, dim_key=4, ndim=ndim, dtype=torch.float64, **options).train(training)
    for name, parameter in layer.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    other.load_state_dict(layer.state_dict())
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    actual, expected = layer(x), by_hand(other, x)
    torch.testing.assert_close(actual, expected, atol=1e-10, rtol=1e-10)
    grad = torch.randn_like(expected)
    torch.testing.assert_close(
        torch.autograd.grad(actual, [x, *layer.parameters()], grad),
        torch.autograd.grad(expected, [x, *other.parameters()], grad),
        atol=1e-10,
        rtol=1e-10,
    )


def variances_at_the_start(pixels, **options):
    """Means over initialisations of the variance of the position term, of the content term, and of k · u · Σ K̄²."""
    sums = torch.zeros(3)
    for _ in range(8):
        layer = LambdaLayer(256, **options)
        with torch.no_grad():
            query, key, value = layer.project(torch.randn(8, 256, pixels, pixels))
            position = lambda_apply(query, None, value, GridPositions(layer.positions, (pixels, pixels)))
            content = lambda_apply(query, key, value)
            weights = key.softmax(2).square().sum(2).mean() * layer.dim_key * layer.intra_depth
        sums += torch.stack([position.var(), content.var(), weights]) / 8
    return sums.tolist()


@pytest.mark.parametrize("pixels", [1, 3, 7, 14])
@pytest.mark.parametrize("options", [{}, {"dim_key": 8, "num_heads": 8}, {"intra_depth": 4}])
def test_start_of_global_layers(pixels, options):
    """Positions start with variance 1 at every size, the content term with what the softmax of the keys leaves."""
    position, content, expected = variances_at_the_start(pixels, size=pixels, **options)
    assert position == pytest.approx(1, rel=0.3)
    assert content == pytest.approx(expected, rel=0.3)


@pytest.mark.parametrize("scope", [3, 7])
def test_start_of_local_layers(scope):
    """Away from the border a local position term has variance 1; at it positions are missing."""
    position, _, _ = variances_at_the_start(14, scope=scope)
    reach = scope // 2
    seen = sum(min(14, at + reach + 1) - max(0, at - reach) for at in range(14)) / (14 * scope)
    assert position == pytest.approx(seen**2, rel=0.3)


@pytest.mark.parametrize("grid", [(14, 14), (10, 14), (9, 5), (1, 1)])
def test_global_layer_uses_the_centre_of_its_table_on_smaller_inputs(grid):
    large = LambdaLayer(8, size=14, dim_key=4, dtype=torch.float64).eval()
    small = LambdaLayer(8, size=grid, dim_key=4, dtype=torch.float64).eval()
    h, w = grid
    state = large.state_dict()
    state["positions"] = state["positions"][:, :, 14 - h : 13 + h, 14 - w : 13 + w]
    small.load_state_dict(state)
    x = torch.randn(2, 8, *grid, dtype=torch.float64)
    torch.testing.assert_close(large(x), small(x), atol=1e-10, rtol=1e-10)


def test_kernel_changes_no_parameter():
    plain, forced = (LambdaLayer(8, scope=3, dim_key=4, kernel=k, dtype=torch.float64) for k in (None, "reference"))
    forced.load_state_dict(plain.state_dict())
    x = torch.randn(2, 8, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(plain(x), forced(x), atol=1e-10, rtol=1e-10)


def test_another_context():
    layer = LambdaLayer(8, scope=3, dim_key=4, dtype=torch.float64).eval()
    x, context = torch.randn(2, 2, 8, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(x, context=x), layer(x), atol=1e-10, rtol=1e-10)
    assert not torch.allclose(layer(x, context=context), layer(x))
    with pytest.raises(ValueError, match=r"context must have the shape of x.*\(2, 8, 5, 5\)"):
        layer(x, context=context[..., :5])


def test_mask_of_the_grid_or_of_positions():
    layer = LambdaLayer(8, size=(4, 6), dim_key=4, dtype=torch.float64).eval()
    x = torch.randn(2, 8, 4, 6, dtype=torch.float64)
    mask = torch.ones(2, 4, 6, dtype=torch.bool)
    mask[:, :, 4:] = False
    out = layer(x, mask=mask)
    torch.testing.assert_close(layer(x, mask=mask.flatten(1)), out, atol=1e-10, rtol=1e-10)
    # What is masked away is as if it were not there.
    torch.testing.assert_close(out[..., :4], layer(x[..., :4]), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("options", [{"scope": 5}, {"size": 6}])
def test_meta_device_then_load(options):
    """No buffer is computed at construction, so none can be stale after ``to_empty``."""
    layer = LambdaLayer(8, dim_key=4, **options)
    layer(torch.randn(4, 8, 6, 6))  # move the batch-norm statistics
    with torch.device("meta"):
        empty = LambdaLayer(8, dim_key=4, **options)
    empty = empty.to_empty(device="cpu")
    empty.load_state_dict(layer.state_dict())
    x = torch.randn(2, 8, 6, 6)
    torch.testing.assert_close(empty.eval()(x), layer.eval()(x), rtol=0, atol=0)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "options", [{"scope": 3}, {"size": 4}, {"scope": 3, "causal": True}, {"scope": 3, "recompute": True}]
)
def test_empty_batch(options, training):
    layer = LambdaLayer(8, **options).train(training)
    x = torch.randn(0, 8, 4, 4, requires_grad=True)
    out = layer(x)
    assert out.shape == (0, 8, 4, 4)
    out.sum().backward()
    assert x.grad.shape == x.shape


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("ndim", "shape"), [(1, (2, 8, 0)), (2, (2, 8, 0, 5)), (2, (2, 8, 5, 0)), (3, (0, 8, 4, 0, 4))]
)
def test_a_grid_without_positions_is_named(ndim, shape, causal):
    layer = LambdaLayer(8, ndim=ndim, scope=3, causal=causal)
    with pytest.raises(ValueError, match=r"x must have at least one position along each axis.*got shape \(.*8"):
        layer(torch.randn(shape))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scope": 4}, r"scope must be odd and positive, got 4; 3 or 5 would do"),
        ({"scope": 0}, "scope must be odd and positive ints, got 0"),
        ({"scope": -3}, "scope must be odd and positive ints, got -3"),
        ({"scope": (3, 5, 7)}, r"scope must be an int or 2 of them.*\(3, 5, 7\)"),
        ({"size": 0}, "size must be positive ints, got 0"),
        ({}, "exactly one of scope .* and size .*scope=None and size=None"),
        ({"scope": 3, "size": 4}, "exactly one of scope .* and size .*scope=3 and size=4"),
        (
            {"scope": 3, "num_heads": 3},
            "num_heads must divide dim_out = 8, got num_heads=3; 2 heads would do",
        ),
        ({"scope": 3, "num_heads": 0}, "num_heads must be a positive int, got 0"),
        ({"scope": 3, "dim_key": 1.5}, "dim_key must be a positive int, got 1.5"),
        ({"scope": 3, "stride": -1}, "stride must be a positive int, got -1"),
        ({"scope": 3, "ndim": 4}, "ndim must be 1 .* got 4"),
        ({"scope": 3, "ndim": True}, "ndim must be 1 .* got True"),
        ({"scope": 3, "ndim": [2]}, r"ndim must be 1 .* got \[2\]"),
        ({"scope": 7.0}, "scope must be odd and positive ints, got 7.0"),
        ({"scope": True}, "scope must be odd and positive ints, got True"),
        ({"scope": 3, "kernel": "bandd"}, "got 'bandd'; did you mean 'banded'"),
        (
            {"scope": 3, "ndim": 3, "kernel": "row_spectral"},
            "kernel='row_spectral' can run on no input: it is for sequences and images, .* rank 3; kernel=None picks",
        ),
        ({"size": 6, "ndim": 3, "kernel": "spectral_compiled"}, "kernel='spectral_compiled' can run on no input: "),
        ({"size": 6, "kernel": "banded"}, "kernel='banded' can run on no input: it is for local contexts"),
        ({"size": 6, "kernel": "banded", "causal": True}, "kernel='banded' can run on no input"),
        ({"size": (6, 1), "kernel": "banded"}, "kernel='banded' can run on no input"),
        ({"size": 6, "dim_out": 1032, "kernel": "lambda_first_triton"}, "'lambda_first_triton' can run on no input"),
    ],
)
def test_bad_arguments_are_named_at_construction(options, message):
    with pytest.raises(ValueError, match=message):
        LambdaLayer(8, **options)


@pytest.mark.parametrize("options", [{"scope": 1}, {"scope": 23}, {"scope": 9, "causal": True}, {"size": 300}])
def test_kernels_that_can_run_somewhere_are_taken(options):
    for kernel in ("reference", "portable", *EVERYWHERE):
        if not (kernel in FOR_SCOPES and "size" in options):
            assert LambdaLayer(8, kernel=kernel, device="meta", **options).kernel == kernel


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.ones(2, 8, 4, 4).int(), TypeError, "x must be a floating-point tensor, got torch.int32"),
        (
            torch.ones(2, 6, 4, 4),
            ValueError,
            r"x must have shape \(batch, 8, height, width\).*\(2, 6, 4, 4\)",
        ),
        (torch.ones(2, 8, 4), ValueError, r"got \(2, 8, 4\)"),
        (torch.ones(2, 8, 5, 9), ValueError, r"grid of \(5, 9\), larger than size=\(6, 6\)"),
        (
            torch.ones(2, 8, 4, 4).half(),
            TypeError,
            r"x must have the dtype of the layer's weights, torch.float32, got torch.float16; convert it with x.to\(",
        ),
        (torch.ones(2, 8, 4, 4).double(), TypeError, r"got torch.float64; .* the layer with layer.to\(torch.float64\)"),
    ],
)
def test_bad_inputs_are_named(x, error, message):
    with pytest.raises(error, match=message):
        LambdaLayer(8, size=6)(x)


def test_numpy_ints_are_ints():
    layer = LambdaLayer(np.int64(8), scope=np.int64(3), num_heads=np.int32(2))
    assert (layer.dim, layer.scope, layer.num_heads) == (8, (3, 3), 2)
    assert type(layer.dim) is int


def test_arguments_of_another_type():
    with pytest.raises(TypeError, match="causal must be True or False, got 'no'"):
        LambdaLayer(8, scope=3, causal="no")
    with pytest.raises(TypeError, match=r"x must be a torch.Tensor, got list"):
        LambdaLayer(8, scope=3)([1.0])


def test_masks_in_both_shapes_and_no_other():
    layer = LambdaLayer(8, scope=3, dim_key=4, dtype=torch.float64).eval()
    x, mask = torch.randn(2, 8, 4, 6, dtype=torch.float64), torch.rand(2, 4, 6) > 0.3
    torch.testing.assert_close(layer(x, mask=mask), layer(x, mask=mask.flatten(1)), atol=1e-10, rtol=1e-10)
    with pytest.raises(ValueError, match=r"mask must have shape \(b, 4, 6\) or \(b, 24\), got \(2, 6, 4\)"):
        layer(x, mask=mask.transpose(1, 2))
    with pytest.raises(TypeError, match=r"mask must be a bool tensor .* got list"):
        layer(x, mask=[True])


def test_strided_volumes_shorter_than_the_pooling_window():
    layer = LambdaLayer(8, ndim=3, scope=3, stride=2, dim_key=4, dtype=torch.float64).eval()
    x = torch.randn(1, 8, 2, 1, 5, dtype=torch.float64)
    full = LambdaLayer(8, ndim=3, scope=3, dim_key=4, dtype=torch.float64).eval()
    full.load_state_dict(layer.state_dict())
    expected = torch.nn.functional.avg_pool3d(torch.nn.functional.pad(full(x), (1,) * 6), 3, 2)
    torch.testing.assert_close(layer(x), expected, atol=1e-10, rtol=1e-10)
    assert layer(x).shape == torch.nn.Conv3d(8, 8, 3, stride=2, padding=1).double()(x).shape


GRIDS_OF_ONE = [((4, 3), {"size": (4, 3)}), ((4, 3), {"scope": 3}), ((3, 2, 2), {"size": 3})]
FOR_SCOPES, FOR_LOW_RANKS = ("banded",), ("row_spectral",)
CALLS_OF_ONE = [
    (kernel, grid, options)
    for kernel in (None, "reference", "portable", *EVERYWHERE)
    for grid, options in GRIDS_OF_ONE
    if not (kernel in FOR_SCOPES and "size" in options) and not (kernel in FOR_LOW_RANKS and len(grid) == 3)
]


@pytest.mark.parametrize(("kernel", "grid", "options"), CALLS_OF_ONE)
@pytest.mark.parametrize(("h", "u"), [(1, 1), (2, 2)])
def test_gradients_of_a_single_example(kernel, grid, options, h, u):
    """PyTorch's batch-norms of images misread a batch of one whose strides are almost those of channels last."""
    options = {"dim_key": 2, "num_heads": h, "intra_depth": u, "ndim": len(grid), "kernel": kernel, **options}
    norm = (nn.BatchNorm2d if len(grid) == 2 else nn.BatchNorm3d)(4)
    model = nn.Sequential(LambdaLayer(4, **options), norm).double().eval()
    x = torch.randn(1, 4, *grid, dtype=torch.float64, requires_grad=True)
    for layout in (torch.contiguous_format, torch.channels_last if len(grid) == 2 else torch.channels_last_3d):
        assert torch.autograd.gradcheck(model, x.detach().to(memory_format=layout).requires_grad_())
    assert torch.autograd.gradcheck(model.train(), x)


def test_hooks_of_the_average_keep_what_they_need():
    """Its own input is not kept, whose shape alone its gradient needs; that of what a hook computes is."""
    torch.manual_seed(0)
    layer, x = LambdaLayer(16, scope=3, stride=2).double(), torch.randn(2, 16, 6, 6, dtype=torch.float64)
    plain = layer(x)
    gain = torch.ones(plain.shape[1:], dtype=torch.float64, requires_grad=True)
    layer.pool.register_forward_hook(lambda module, given, out: out * gain)
    layer(x).sum().backward()
    torch.testing.assert_close(gain.grad, plain.sum(dim=0).detach())
