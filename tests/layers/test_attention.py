"""The attention layers that lambda is compared with: plain loops, timm, other packages, fused against stored maps."""

import pytest
import torch
from timm.layers.bottleneck_attn import BottleneckAttn
from timm.layers.halo_attn import HaloAttn
from torch import nn

from lambdanets.layers.augmented_conv import AugmentedConv
from lambdanets.layers.axial_attention import AxialAttention
from lambdanets.layers.global_attention import GlobalAttention
from lambdanets.layers.linear_attention_conv import LinearAttentionConv
from lambdanets.layers.local_attention import LocalAttention

F64 = {"dtype": torch.float64}
# Maps that are no square, and with fewer positions along an axis than the local scope.
SIZE = (5, 3)
LAYERS = {
    "global": (GlobalAttention, {"size": SIZE, "num_heads": 2, "dim_head": 3}),
    "axial": (AxialAttention, {"size": SIZE, "num_heads": 2, "dim_head": 3}),
    "local": (LocalAttention, {"num_heads": 2, "dim_head": 3}),
    "augmented": (AugmentedConv, {"size": SIZE, "num_heads": 2, "value_share": 0.4}),
    "linear": (LinearAttentionConv, {"num_heads": 2, "dim_head": 3}),
}
FUSED = [name for name in LAYERS if name != "linear"]
WAYS = [(name, {}) for name in LAYERS] + [(name, {"fused": True}) for name in FUSED]


def build(name, dim=6, dim_out=8, **changes):
    kind, options = LAYERS[name]
    layer = kind(dim, dim_out, **{**options, **changes}, **F64)
    for parameter in layer.parameters():  # tables start small beside the projections
        nn.init.normal_(parameter)
    return layer


def image(size=SIZE, dim=6, b=2):
    return torch.randn(b, dim, *size, **F64)


def split(layer, x, heads):
    """Queries, keys and values as (b, h, depth, y, x)."""
    return [part.unflatten(1, (heads, -1)) for part in layer.qkv(x).split(layer.widths, dim=1)]


def attend(logits, values):
    """The weighted mean of values that a list of logits gives."""
    weights = torch.stack(logits).softmax(0)
    return sum(weight * value for weight, value in zip(weights, values, strict=True))


def per_query(query, value, seen):
    """Loop over examples, heads and positions; ``seen(q, k-index...)`` gives logits and values of the context."""
    b, h, v = value.shape[:3]
    out = torch.empty(b, h, v, *query.shape[3:], **F64)
    for i in range(b):
        for head in range(h):
            for y in range(query.shape[3]):
                for x in range(query.shape[4]):
                    out[i, head, :, y, x] = attend(*seen(i, head, y, x))
    return out.flatten(1, 2)


def global_loops(layer, x):
    layer.widths = [layer.dim_out_qk, layer.dim_out_qk, layer.dim_out_v]
    query, key, value = split(layer, x, layer.num_heads)
    (height, width), rows, columns = x.shape[2:], layer.pos_embed.height_rel, layer.pos_embed.width_rel
    scale = query.shape[2] ** -0.5

    def seen(i, head, y, x):
        q, logits, values = query[i, head, :, y, x], [], []
        for j in range(height):
            for l in range(width):  # noqa: E741
                position = q @ (rows[j - y + height - 1] + columns[l - x + width - 1])
                position = position * scale if layer.scale_pos_embed else position
                logits.append(q @ key[i, head, :, j, l] * scale + position)
                values.append(value[i, head, :, j, l])
        return logits, values

    return per_query(query, value, seen)


def axis_loops(axis, x):
    query, key, value = split(axis, x, axis.num_heads)
    scale = query.shape[2] ** -0.5

    def seen(i, head, y, x):
        q, logits, values = query[i, head, :, y, x], [], []
        for j in range(axis.length):
            where, offset = ((j, x), j - y) if axis.vertical else ((y, j), j - x)
            position = q @ axis.relative[offset + axis.length - 1]
            logits.append(q @ key[(i, head, slice(None), *where)] * scale + position)
            values.append(value[(i, head, slice(None), *where)])
        return logits, values

    return per_query(query, value, seen)


def local_loops(layer, x):
    query, key, value = split(layer, x, layer.num_heads)
    (height, width), reach, scale = x.shape[2:], layer.scope // 2, query.shape[2] ** -0.5

    def seen(i, head, y, x):
        q, logits, values = query[i, head, :, y, x], [], []
        for down in range(-reach, reach + 1):
            for right in range(-reach, reach + 1):
                position = q @ (layer.height_rel[down + reach] + layer.width_rel[right + reach])
                inside = 0 <= y + down < height and 0 <= x + right < width
                k, v = ((part[i, head, :, y + down, x + right] if inside else 0 * part[i, head, :, 0, 0])
                        for part in (key, value))  # fmt: skip
                logits.append(q @ k * scale + position)
                values.append(v)
        return logits, values

    return per_query(query, value, seen)


def augmented_loops(layer, x):
    return torch.cat([layer.conv(x), layer.mix(global_loops(layer.attention, x))], dim=1)


def linear_loops(layer, x):
    z = layer.conv(x)
    query, key, value = (part.flatten(3) for part in split(layer, z, layer.num_heads))
    out = torch.zeros_like(value)
    for i in range(len(x)):
        for head in range(layer.num_heads):
            weights = torch.stack([channel.softmax(0) for channel in key[i, head]])  # over positions
            lambdas = sum(torch.outer(weights[:, m], value[i, head, :, m]) for m in range(z.shape[2] * z.shape[3]))
            for n in range(z.shape[2] * z.shape[3]):
                out[i, head, :, n] = query[i, head, :, n].softmax(0) @ lambdas
    return z + layer.proj(out.flatten(1, 2).unflatten(2, z.shape[2:]))


LOOPS = {
    "global": global_loops,
    "axial": lambda layer, x: axis_loops(layer.rows, axis_loops(layer.columns, x)),
    "local": local_loops,
    "augmented": augmented_loops,
    "linear": linear_loops,
}


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", LAYERS)
def test_the_sum_by_loops(name):
    layer, x = build(name), image()
    with torch.no_grad():
        close(layer(x), LOOPS[name](layer, x))


@pytest.mark.parametrize(
    ("name", "size"), [*((name, SIZE) for name in FUSED), *(("local", size) for size in ((9, 17), (3, 12), (1, 1)))]
)
def test_fused_attention_computes_the_same(name, size):
    stored, x = build(name), image(size)
    fused = build(name, fused=True)
    fused.load_state_dict(stored.state_dict())
    results = []
    for layer in (stored, fused):
        leaf = x.clone().requires_grad_()
        out = layer(leaf)
        direction = torch.linspace(-1, 1, out.numel(), **F64).reshape(out.shape)
        results.append([out, *torch.autograd.grad(out, [leaf, *layer.parameters()], direction)])
    for one, other in zip(*results, strict=True):
        close(one, other)


@pytest.mark.parametrize("size", [(5, 3), (9, 4), (8, 8)])
def test_blocks_of_local_attention_are_no_larger_than_the_map(monkeypatch, size):
    sides, attend = [], torch.nn.functional.scaled_dot_product_attention

    def watched(query, key, *args, **kwargs):
        sides.append((query.shape[2], key.shape[2]))
        return attend(query, key, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    build("local", scope=3, fused=True)(image(size))
    height, width = (min(8, side) for side in size)
    assert sides == [(height * width, (height + 2) * (width + 2))]


def test_fused_attention_stores_no_maps():
    size = (16, 16)
    stored, fused = (GlobalAttention(8, size=size, num_heads=2, fused=fused) for fused in (False, True))
    kept = []
    for layer in (stored, fused):
        shapes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: shapes.append(t.numel()) or t, lambda t: t):  # noqa: B023
            layer(torch.randn(1, 8, *size))
        kept.append(max(shapes))
    assert kept[0] == 2 * 256**2
    # Queries with 16 + 16 further channels, and not the logits of all 31 + 31 offsets.
    assert kept[1] == 2 * 256 * (4 + 32)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("size", [(5, 3), (4, 6)])
def test_a_stride_rounds_up(name, size):
    options = {"size": size} if "size" in LAYERS[name][1] else {}
    assert build(name, stride=2, **options)(image(size)).shape == (2, 8, -(-size[0] // 2), -(-size[1] // 2))


def test_global_is_timms():
    theirs, ours = BottleneckAttn(6, 8, SIZE, num_heads=2, dim_head=3, **F64), build("global")
    theirs.load_state_dict(ours.state_dict())
    x = image()
    close(ours(x), theirs(x))


@pytest.mark.parametrize("fused", [False, True])
def test_local_is_timms_halo_attention_with_blocks_of_one_position(fused):
    theirs = HaloAttn(6, 8, num_heads=2, dim_head=3, block_size=1, halo_size=3, **F64)
    ours = build("local", fused=fused)
    with torch.no_grad():
        theirs.q.weight.copy_(ours.qkv.weight[:6])
        key, value = ours.qkv.weight[6:].split([6, 8])
        # It splits keys from values behind the heads.
        theirs.kv.weight.copy_(torch.cat([key.unflatten(0, (2, 3)), value.unflatten(0, (2, 4))], 1).flatten(0, 1))
        for axis in ("height_rel", "width_rel"):
            getattr(theirs.pos_embed, axis)[6:].copy_(getattr(ours, axis))
    x = image((8, 5))
    close(ours(x), theirs(x))


def test_axial_is_that_of_the_package_axial_attention():
    package = pytest.importorskip("axial_attention", reason="the package axial-attention is not installed")
    theirs = package.AxialAttention(6, num_dimensions=2, heads=2, dim_index=1, sum_axial_out=False).double()
    ours = build("axial", 6, 6)
    with torch.no_grad():
        for axis, step in zip((ours.columns, ours.rows), theirs.axial_attentions, strict=True):
            axis.relative.zero_()  # it has no positions
            weight = axis.qkv.weight[:, :, 0, 0]
            step.fn.to_q.weight.copy_(weight[:6])
            step.fn.to_kv.weight.copy_(weight[6:])
            nn.init.eye_(step.fn.to_out.weight)
            nn.init.zeros_(step.fn.to_out.bias)
    x = image()
    close(ours(x), theirs(x))


def test_global_is_that_of_the_package_self_attention_cv():
    """Without positions: there the logits of columns are added where those of rows belong."""
    package = pytest.importorskip(
        "self_attention_cv.bottleneck_transformer.bot_att", reason="the package self-attention-cv is not installed"
    )
    theirs = package.BottleneckAttention(6, SIZE, heads=2, content_positional_embedding=False).double()
    ours = build("global", 6, 6)
    with torch.no_grad():
        for table in (ours.pos_embed.height_rel, ours.pos_embed.width_rel):
            table.zero_()
        # Its channels are in the order depth, which of the three, head; ours which, head, depth.
        weight = ours.qkv.weight.unflatten(0, (3, 2, 3)).permute(2, 0, 1, 3, 4, 5).flatten(0, 2)
        theirs.to_qkv.weight.copy_(weight)
    x = image()
    ours_by_depth = ours(x)  # heads joined as (h, d), as theirs
    close(ours_by_depth, theirs(x))


@pytest.mark.parametrize(("name", "way"), WAYS)
def test_gradients_of_one_example_behind_a_norm(name, way):
    """One head gives a view whose channels are innermost, of which PyTorch's batch-norms misread one example."""
    layer, x = build(name, num_heads=1, **way), image(b=1)
    norm = nn.BatchNorm2d(8, **F64).eval()
    weights = list(layer.parameters())

    def gradients(x):
        return torch.autograd.grad(norm(layer(x)).square().sum(), weights)

    for grad, twice in zip(gradients(x), gradients(torch.cat([x, x])), strict=True):
        torch.testing.assert_close(grad, twice / 2, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("name", "way"), WAYS)
def test_autocast(name, way):
    layer, x = build(name, **way).float(), image().float()
    with torch.no_grad():
        expected = layer(x)
        with torch.autocast("cpu", torch.bfloat16):
            out = layer(x)
    assert out.dtype == torch.bfloat16
    assert (out - expected).abs().mean() < 0.05 * expected.abs().mean()


@pytest.mark.parametrize("name", LAYERS)
def test_bad_arguments_and_inputs(name):
    kind, options = LAYERS[name]
    layer = build(name)
    for changed, message in [
        ({"dim": 0}, "dim must be a positive int, got 0"),
        ({"stride": 0}, "stride must be a positive int, got 0"),
        ({"num_heads": 0}, "num_heads must be a positive int, got 0"),
        *([] if name == "augmented" else [({"num_heads": 5}, "num_heads must divide dim_out = 8.*4 heads would do")]),
        *([({"size": (3,)}, r"size must be an int or 2 of them.*got \(3,\)")] if "size" in options else []),
        *([({"scope": 4}, "scope must be odd and positive, got 4; 3 or 5 would do")] if name == "local" else []),
        *([({"value_share": 2}, "value_share must be a share .*got 2")] if name == "augmented" else []),
        *([({"num_heads": 8}, "num_heads=8 leaves the convolution none")] if name == "augmented" else []),
    ]:
        with pytest.raises(ValueError, match=message):
            kind(**{"dim": 6, "dim_out": 8, **options, **changed})
    if name in FUSED:
        with pytest.raises(TypeError, match="fused must be True or False, got 1"):
            kind(6, 8, **options, fused=1)
    for x, error, message in [
        (image(dim=5), ValueError, r"x must have shape \(batch, 6, height, width\) for \w+\(dim=6\)"),
        (image()[0], ValueError, "x must have shape"),
        (image()[:, :, :0], ValueError, "at least one example and one position"),
        (image(b=0), ValueError, "at least one example and one position"),
        (image().float(), TypeError, "dtype of the layer's weights"),
        (image().int(), TypeError, "floating-point"),
        ("x", TypeError, r"x must be a torch.Tensor, got str"),
    ]:
        with pytest.raises(error, match=message):
            layer(x)
    if "size" in options:
        with pytest.raises(ValueError, match=r"map of \(4, 4\), and this \w+ was made for size=\(5, 3\)"):
            layer(image((4, 4)))
