"""Lambda layers over tokens, with and without tokens that have no place on the grid."""

import numpy as np
import pytest
import torch
from torch import nn

from lambdanets import DensePositions, GridPositions, lambda_apply
from lambdanets.interop import TokenLambda


def embedding(layer, tokens):
    """E (n, m, k, u) written out from its four blocks; None for a layer without positions."""
    if layer.positions is None:
        return None
    p = layer.prefix_tokens
    grid = GridPositions(layer.positions, layer._grid(tokens - p)).dense()
    full = grid.new_zeros(tokens, tokens, layer.dim_key, layer.intra_depth)
    full[p:, p:] = grid
    for i in range(p):
        full[p:, i] = layer.prefix_keys[:, :, i].T
        full[i, p:] = layer.prefix_queries[:, :, i].T
        for j in range(p):
            full[i, j] = layer.prefix_pairs[:, :, i, j].T
    return full


def by_hand(layer, x, context=None, mask=None):
    """The layer written out with the op's reference and a dense E."""
    h, k, u, v = layer.num_heads, layer.dim_key, layer.intra_depth, layer.dim_value
    b, t = x.shape[:2]
    context = x if context is None else context
    weights = layer.qkv.weight.split([h * k, u * k, u * v])
    query = layer.norm_query(x @ weights[0].T).reshape(b, t, h, k)
    key = (context @ weights[1].T).reshape(b, -1, u, k)
    value = layer.norm_value(context @ weights[2].T).reshape(b, -1, u, v)
    dense = embedding(layer, t)
    out = lambda_apply(
        *(tensor.transpose(1, 2) for tensor in (query, key, value)),
        None if dense is None else DensePositions(dense),
        mask=mask,
        causal=layer.causal,
    )
    return out.transpose(1, 2).reshape(b, t, h * v)


CASES = [
    (9, {"positions": "1d", "size": 12}),
    (9, {"positions": "1d", "scope": 5, "intra_depth": 2}),
    (9, {"positions": "1d", "size": 9, "causal": True}),
    (10, {"positions": "1d", "size": 9, "prefix_tokens": 1}),
    (12, {"positions": "2d", "size": (3, 4)}),
    (14, {"positions": "2d", "size": (3, 4), "prefix_tokens": 2}),
    (12, {"positions": "2d", "scope": 3, "prefix_tokens": 3, "intra_depth": 2}),
    (6, {"positions": "2d", "scope": 3, "size": (1, 5), "prefix_tokens": 1, "dim_out": 12}),
    (7, {"positions": "none"}),
    (7, {"positions": "none", "causal": True}),
]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("tokens", "options"), CASES)
def test_layer_is_the_equations_with_e_in_blocks(tokens, options, masked):
    layer = TokenLambda(8, dim_key=3, **options).double()
    # Away from the start, where all blocks of E are small.
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(3, tokens, 8, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(3, tokens) < 0.7 if masked else None
    if masked:
        mask[:, 0] = True
    actual, expected = layer(x, mask=mask), by_hand(layer, x, mask=mask)
    torch.testing.assert_close(actual, expected, atol=1e-10, rtol=1e-10)
    grad, leaves = torch.randn_like(expected), [x, *layer.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad(actual, leaves, grad), torch.autograd.grad(expected, leaves, grad), atol=1e-9, rtol=1e-9
    )


def test_another_context_without_positions():
    layer = TokenLambda(8, positions="none", dim_key=3).double()
    x, context = torch.randn(2, 5, 8, dtype=torch.float64), torch.randn(2, 9, 8, dtype=torch.float64)
    torch.testing.assert_close(layer(x, context), by_hand(layer, x, context), atol=1e-10, rtol=1e-10)


def test_shifted_patches_shift_the_output_and_leave_the_class_token():
    """Far from the border of a local layer; the content term and the class token see a set."""
    layer = TokenLambda(4, positions="2d", scope=3, prefix_tokens=1, num_heads=2, dim_key=2).double()
    image = torch.zeros(1, 6, 6, 4, dtype=torch.float64)
    image[:, 2:4, 2:4] = torch.randn(2, 2, 4, dtype=torch.float64)
    prefix = torch.randn(1, 1, 4, dtype=torch.float64)

    def run(grid):
        out = layer(torch.cat([prefix, grid.flatten(1, 2)], dim=1))
        return out[:, 0], out[:, 1:].unflatten(1, (6, 6))

    (class_token, grid), (class_token_shifted, shifted) = run(image), run(image.roll(1, dims=2))
    torch.testing.assert_close(class_token_shifted, class_token)
    torch.testing.assert_close(shifted[:, 1:5, 2:6], grid[:, 1:5, 1:5])


@pytest.mark.parametrize("options", [{"size": 14, "prefix_tokens": 1}, {"scope": 7, "prefix_tokens": 2}, {"size": 14}])
def test_output_starts_with_a_variance_of_about_one(options):
    layer = TokenLambda(64, positions="2d", **options)
    out = layer(torch.randn(8, 196 + layer.prefix_tokens, 64))
    assert 0.4 < out[:, 5:].square().mean() < 2


def test_class_token_does_not_start_above_the_grid_where_tokens_have_much_in_common():
    """As trained features have: its sum over the grid must not add that up."""
    layer = TokenLambda(64, positions="2d", size=14, prefix_tokens=1)
    out = layer(torch.randn(16, 197, 64) + torch.randn(16, 1, 64)).square()
    assert out[:, 0].mean() < 2 * out[:, 1:].mean()


@pytest.mark.parametrize("tokens", [9, 16])
def test_square_grids_are_found_in_compiled_graphs(tokens):
    layer = TokenLambda(8, positions="2d", scope=3).eval()
    x = torch.randn(1, tokens, 8)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="eager")(x), layer(x))


def test_other_grids():
    layer = TokenLambda(8, positions="2d", size=(4, 6), prefix_tokens=1)
    assert layer(torch.randn(1, 25, 8)).shape == (1, 25, 8)
    assert layer(torch.randn(1, 17, 8)).shape == (1, 17, 8)  # 4 x 4
    with pytest.raises(ValueError, match=r"12 tokens after 1 prefix tokens .*layer.grid = \(height, width\)"):
        layer(torch.randn(1, 13, 8))
    layer.grid = (2, 6)
    assert layer(torch.randn(1, 13, 8)).shape == (1, 13, 8)
    with pytest.raises(ValueError, match=r"grid of \(5, 5\), larger than size=\(4, 6\)"):
        layer(torch.randn(1, 26, 8))


def test_another_dtype_than_the_weights():
    layer = TokenLambda(8, positions="none")
    x = torch.randn(2, 5, 8)
    with pytest.raises(TypeError, match=r"x must have the dtype of the layer's weights, torch.float32, got .*bfloat16"):
        layer(x.bfloat16())
    with pytest.raises(TypeError, match=r"context must have the dtype .* convert it with context.to\(torch.float32\)"):
        layer(x, x.double())


@pytest.mark.parametrize("prefix", [0, 1])
def test_bfloat16_autocast(prefix):
    layer = TokenLambda(8, positions="2d", size=4, prefix_tokens=prefix)
    x = torch.randn(2, 16 + prefix, 8)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), layer(x), atol=0.1, rtol=0.1)


@pytest.mark.parametrize("autocast", [False, True])
def test_sums_over_the_grid_that_leave_the_range_of_float16(autocast):
    layer = TokenLambda(8, positions="2d", size=16, prefix_tokens=2, dim_key=4, norm_layer="none").half().float()
    nn.init.constant_(layer.qkv.weight.data[-layer.dim_value :], 40.0)
    x = (1 + 0.1 * torch.randn(2, 258, 8)).half()
    expected = layer(x.float())
    if autocast:
        with torch.autocast("cpu", torch.float16):
            out = layer(x.float())
    else:
        out = layer.half()(x)
    assert torch.finfo(torch.float16).max < 256 * 320
    assert out.dtype == torch.float16
    # A term and its sum are rounded, and so are queries and values behind the projection.
    torch.testing.assert_close(out.float(), expected, rtol=0, atol=4e-3 * expected.abs().max().item())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positions": "3d"}, "positions must be one of 'none', '1d', '2d', got '3d'"),
        ({"positions": "1d"}, "needs size=the longest sequence"),
        ({"positions": "2d"}, "needs size=height and width"),
        ({"positions": "none", "size": 4}, "has neither scope nor size"),
        ({"positions": "1d", "size": 4, "scope": 3}, "exactly one of scope and size"),
        ({"positions": "2d", "scope": 4}, r"scope must be odd and positive, got 4; 3 or 5 would do"),
        ({"positions": "2d", "scope": (3, 4)}, r"scope must be odd and positive, got \(3, 4\); 3 or 5 would do"),
        ({"positions": ["2d"], "scope": 3}, r"positions must be one of 'none', '1d', '2d', got \['2d'\]"),
        ({"positions": "2d", "size": (4, 4, 4)}, "an int or 2 of them"),
        ({"positions": "1d", "size": 0}, "size must be positive ints, got 0"),
        ({"positions": "1d", "size": 4.0}, r"size must be positive ints, got 4\.0"),
        ({"positions": "1d", "size": 4, "num_heads": 3}, "num_heads must divide dim_out = 8"),
        ({"positions": "1d", "size": 4, "causal": True, "prefix_tokens": 1}, "excludes prefix_tokens=1"),
        ({"positions": "1d", "size": 4, "num_heads": 0}, "num_heads must be a positive int, got 0"),
        ({"positions": "1d", "size": 4, "dim_key": 2.0}, "dim_key must be a positive int, got 2.0"),
        ({"positions": "1d", "size": 4, "kernel": "bandd"}, "got 'bandd'; did you mean 'banded'"),
        (
            {"positions": "none", "kernel": "spectral"},
            "kernel='spectral' cannot run here: it is for GridPositions, got no positions; kernel=None, .* serve every",
        ),
        ({"positions": "2d", "size": 4, "kernel": "banded"}, "kernel='banded' can run on no input"),
        ({"positions": "1d", "size": 4, "norm_layer": "batch"}, "norm_layer must be one of 'layer', 'none'"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        TokenLambda(8, **options)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(0, 4, 8), (2, 0, 8), (0, 0, 8)])
@pytest.mark.parametrize(
    "options",
    [
        {"size": 4},
        {"scope": 3},
        {"size": 4, "causal": True},
        {"positions": "none"},
        {"positions": "none", "causal": True},
    ],
)
def test_no_tokens(options, shape, training):
    layer = TokenLambda(8, **options).train(training)
    x = torch.randn(shape, requires_grad=True)
    out = layer(x)
    assert out.shape == shape
    out.sum().backward()
    assert x.grad.shape == shape


def test_only_prefix_tokens_and_fewer():
    layer = TokenLambda(8, size=4, prefix_tokens=2).double()
    x = torch.randn(2, 2, 8, dtype=torch.float64)
    torch.testing.assert_close(layer(x), by_hand(layer, x), atol=1e-10, rtol=1e-10)
    for tokens in (0, 1):
        with pytest.raises(
            ValueError, match=r"x must have the 2 prefix tokens of this layer in front, got shape \(2, "
        ):
            layer(torch.randn(2, tokens, 8, dtype=torch.float64))
    with pytest.raises(ValueError, match="0 tokens after 0 prefix tokens are not the grid"):
        TokenLambda(8, positions="2d", size=4)(torch.randn(2, 0, 8))


X = torch.randn(2, 4, 8)
BAD_INPUTS = {
    "list": ([[[1.0]]], None, TypeError, "x must be a torch.Tensor, got list"),
    "integers": (X.long(), None, TypeError, r"x must be a floating-point tensor, got torch.int64; .* with .float\(\)"),
    "axes": (X[0], None, ValueError, r"x must have shape \(batch, tokens, 8\), got \(4, 8\)"),
    "context, list": (X, [1.0], TypeError, "context must be a torch.Tensor, got list"),
    "context, integers": (X, X.long(), TypeError, "context must be a floating-point tensor, got torch.int64"),
    "context, axes": (X, X[0], ValueError, r"context must have shape \(batch, tokens, 8\), got \(4, 8\)"),
    "context, width": (X, X[..., :6], ValueError, r"context must have shape \(batch, tokens, 8\), got \(2, 4, 6\)"),
    "context, batch": (X, X[:1], ValueError, r"context must have the batch size of x, got context \(1, 4, 8\) and x"),
}


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_tokens_are_named(name):
    x, context, error, message = BAD_INPUTS[name]
    with pytest.raises(error, match=message):
        TokenLambda(8, positions="none")(x, context)


def test_a_causal_layer_refuses_a_longer_context():
    with pytest.raises(ValueError, match=r"context must have as many tokens as x in a causal layer, .*\(2, 3, 8\)"):
        TokenLambda(8, positions="none", causal=True)(X, X[:, :3])


def test_bad_inputs():
    layer = TokenLambda(8, size=4)
    with pytest.raises(ValueError, match=r"\(batch, tokens, 8\), got \(2, 4, 6\)"):
        layer(torch.randn(2, 4, 6))
    with pytest.raises(ValueError, match='positions="none"'):
        layer(torch.randn(2, 4, 8), context=torch.randn(2, 4, 8))


def test_numbers_of_numpy_are_numbers():
    assert TokenLambda(8, positions="2d", scope=3, prefix_tokens=np.int64(1)).prefix_tokens == 1
    with pytest.raises(ValueError, match=r"prefix_tokens must be a whole number from 0 on, got 1\.0"):
        TokenLambda(8, positions="2d", scope=3, prefix_tokens=1.0)


def test_repr_has_every_argument_that_is_no_default():
    text = repr(TokenLambda(8, size=4, intra_depth=2, num_heads=2, causal=True, kernel="reference"))
    assert "8, 8, num_heads=2, dim_key=16, intra_depth=2, size=(4,), causal=True, kernel='reference'" in text
