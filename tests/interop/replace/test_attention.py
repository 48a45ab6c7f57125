"""Lambda layers in place of attention: in transformers of PyTorch, timm and torchvision."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from lambdanets import plan_attention, replace_attention
from lambdanets.interop import LambdaMultiheadAttention, LambdaViTAttention, TokenLambda


def quiet(model, **options):
    return replace_attention(model, verbose=False, **options)


def vit(**options):
    return timm.create_model("test_vit", img_size=32, **{"num_classes": 5, **options})


def hooked():
    model = vit()
    for block in model.blocks:
        block.attn.qkv.register_forward_hook(lambda *_: None)
    return model


def torchvision_vit():
    return torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=64, num_classes=5
    )


def encoder(layers=2, **options):
    options = {"batch_first": True, "dropout": 0.0, **options}
    layer = nn.TransformerEncoderLayer(16, 4, 32, **options)
    # Elsewhere the encoder says that it cannot make nested tensors.
    nested = options["batch_first"] and not options.get("norm_first")
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=nested)


def tokens_of(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, TokenLambda)}


@pytest.mark.parametrize(
    ("make", "prefix", "stand_in"),
    [
        (vit, 1, LambdaViTAttention),
        (lambda: vit(reg_tokens=2), 3, LambdaViTAttention),
        (lambda: vit(class_token=False, global_pool="avg"), 0, LambdaViTAttention),
        (torchvision_vit, 1, LambdaMultiheadAttention),
    ],
    ids=["timm", "timm-registers", "timm-no-class-token", "torchvision"],
)
def test_vision_transformers(make, prefix, stand_in):
    model = make()
    objects = dict(model.named_parameters())
    plan = plan_attention(model)
    assert plan.apply() is model
    found = tokens_of(model)
    assert len(found) == len(plan.changes)
    side = 2 if stand_in is LambdaViTAttention else 4
    for name, tokens in found.items():
        assert (tokens.ndim, tokens.prefix_tokens, tokens.size) == (2, prefix, (side, side))
        assert type(model.get_submodule(name.removesuffix(".tokens"))) is stand_in
    after = dict(model.named_parameters())
    for name in set(objects) & set(after):
        assert after[name] is objects[name]
    assert all(".qkv." in name or ".in_proj_" in name for name in set(objects) - set(after))
    assert all(".tokens." in name for name in set(after) - set(objects))
    assert plan.parameters_after == sum(p.numel() for p in model.parameters())
    model(torch.randn(2, 3, 32, 32)).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_vision_transformer_trains_on():
    torch.manual_seed(0)
    model = quiet(vit())
    x, y = torch.randn(10, 3, 32, 32), torch.arange(10) % 5
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(15):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_choice_by_name_and_dtype_mode_and_heads():
    model = vit().double().eval()
    quiet(model, names="blocks.[13].attn", lambda_args={"dim_key": 8, "num_heads": 2})
    assert list(tokens_of(model)) == ["blocks.1.attn.tokens", "blocks.3.attn.tokens"]
    for tokens in tokens_of(model).values():
        assert (tokens.dim_key, tokens.num_heads, tokens.training) == (8, 2, False)
        assert {p.dtype for p in tokens.parameters()} == {torch.float64}


def test_table_tells_what_was_replaced(capsys):
    replace_attention(encoder(1, dropout=0.1), size=12, causal=True)
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "1 module replaced" in text
    assert "2,224 -> " in text
    (change,) = plan_attention(encoder(1, dropout=0.1), size=12, causal=True).changes
    assert change.notes == (
        "causal",
        "bias of queries, keys and values dropped",
        "dropout 0.1 of weights dropped",
    )
    (change, *_) = plan_attention(vit(qkv_bias=False, qk_norm=True, dynamic_img_size=False)).changes
    assert change.notes == ("prefix tokens 1", "q_norm and k_norm dropped")


@pytest.mark.parametrize("batch_first", [True, False])
def test_multihead_attention_is_its_lambda_layer_and_projection(batch_first):
    attention = quiet(nn.MultiheadAttention(16, 4, batch_first=batch_first).double(), size=9)
    x = torch.randn(3, 7, 16, dtype=torch.float64)
    padding = torch.arange(7) >= torch.tensor([[7], [4], [5]])
    expected = attention.out_proj(attention.tokens(x, mask=~padding))
    given = x if batch_first else x.transpose(0, 1)
    for mask in (padding, torch.zeros(3, 7).masked_fill(padding, -torch.inf)):
        out, weights = attention(given, given, given, key_padding_mask=mask)
        assert weights is None
        torch.testing.assert_close(out if batch_first else out.transpose(0, 1), expected, atol=0, rtol=0)
    single, _ = attention(x[1], x[1], x[1], key_padding_mask=padding[1])
    torch.testing.assert_close(single, expected[1], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("options", [{}, {"norm_first": True}, {"batch_first": False}])
@pytest.mark.parametrize("padded", [False, True])
def test_encoder_layers_take_no_path_around_it_in_evaluation(options, padded):
    """PyTorch's fused path reads the weights of self_attn, in evaluation without gradients."""
    model = quiet(encoder(**options), size=6)
    x = torch.randn(2, 6, 16)
    padding = torch.tensor([[False] * 6, [False] * 4 + [True] * 2]) if padded else None
    given = x if options.get("batch_first", True) else x.transpose(0, 1)
    expected = model.train()(given, src_key_padding_mask=padding)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(given, src_key_padding_mask=padding), expected)
        mask = {} if padding is None else {"src_key_padding_mask": padding}
        layers = given
        for layer in model.layers:
            layers = layer(layers, **mask)
        torch.testing.assert_close(layers, expected)


def test_an_encoder_of_which_one_layer_was_replaced():
    model = quiet(encoder(), names="layers.1.self_attn", size=6)
    x, padding = torch.randn(2, 6, 16), torch.tensor([[False] * 6, [False] * 4 + [True] * 2])
    expected = model.train()(x, src_key_padding_mask=padding)
    with torch.no_grad():
        out = model.eval()(x, src_key_padding_mask=padding)
    torch.testing.assert_close(out[~padding], expected[~padding])


def test_causal_encoder():
    model = quiet(encoder(), size=6, causal=True).eval()
    mask = nn.Transformer.generate_square_subsequent_mask(6)
    x = torch.randn(1, 6, 16)
    changed = x.clone()
    changed[:, 4:] += 1
    torch.testing.assert_close(model(x, mask)[:, :4], model(changed, mask)[:, :4])
    # The mask itself, without the word that it is causal, and no mask: the layer's order is its own.
    layer = model.layers[0]
    torch.testing.assert_close(layer(x, mask), layer(x))
    torch.testing.assert_close(layer(x, mask.isinf()), layer(x))


def test_cross_attention_stays_but_for_content_alone():
    decoder = nn.TransformerDecoderLayer(16, 4, 32, batch_first=True, dropout=0.0)
    plan = plan_attention(decoder, size=8)
    assert [change.name for change in plan.changes] == ["self_attn"]
    assert "attends to the encoder's sequence" in plan.kept[0].reason
    quiet(decoder, positions="none")
    assert len(tokens_of(decoder)) == 2
    assert decoder(torch.randn(2, 5, 16), torch.randn(2, 9, 16)).shape == (2, 5, 16)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f, x: f(x, x, x, need_weights=True), "no attention weights; call it with need_weights=False"),
        (lambda f, x: f(x, x, x.clone()), "value must be the same tensor as key"),
        (lambda f, x: f(x, *[x[:, :3]] * 2), r'another key \(2, 3, 16\); for cross-attention use positions="none"'),
        (lambda f, x: f(x, x, x, is_causal=True), "causal=True"),
        (lambda f, x: f(x, x, x, attn_mask=torch.eye(6).bool()), "cannot mask pairs of tokens.*causal=True at the"),
        (lambda f, x: f(x, x, x, attn_mask=torch.randn(6, 6)), "must hold 0 and -inf alone"),
        (lambda f, x: f(x, x, x, key_padding_mask=torch.ones(2, 6)), "must hold 0 and -inf alone"),
    ],
)
def test_calls_that_a_lambda_layer_cannot_answer(call, message):
    attention = quiet(nn.MultiheadAttention(16, 4, batch_first=True), size=6)
    with pytest.raises(ValueError, match=message):
        call(attention, torch.randn(2, 6, 16))


class Transposed(nn.Module):
    """Gives its attention three views of one tensor, as models that turn their axes do."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4)

    def forward(self, x):
        return self.attention(x.transpose(0, 1), x.transpose(0, 1), x.transpose(0, 1), need_weights=False)[0]


def test_views_of_one_tensor_are_one_without_numbers_too():
    x = torch.randn(2, 6, 16)
    model = quiet(Transposed(), size=6, example=x).eval()
    expected = model(x)
    torch.testing.assert_close(torch.export.export(model, (x,), strict=False).module()(x), expected)
    assert model.to("meta")(x.to("meta")).shape == expected.shape


def test_masks_of_timms_attention():
    model = quiet(vit())
    attention, x = model.blocks[0].attn, torch.randn(1, 5, model.embed_dim)
    torch.testing.assert_close(attention(x, attn_mask=torch.ones(5, 5, dtype=torch.bool)), attention(x))
    torch.testing.assert_close(attention(x, attn_mask=torch.zeros(1, 1, 5, 5)), attention(x))
    with pytest.raises(ValueError, match=r"cannot mask pairs of tokens.*replacement, other masks need attention"):
        attention(x, attn_mask=torch.eye(5, dtype=torch.bool))
    with pytest.raises(ValueError, match="is_causal=True needs a causal layer"):
        attention(x, is_causal=True)


def test_is_causal_does_not_hide_a_mask_of_timms_attention():
    attention = quiet(vit(class_token=False, global_pool="avg"), positions="1d", causal=True).blocks[0].attn
    x, causal = torch.randn(1, 4, 64), torch.ones(4, 4, dtype=torch.bool).tril()
    torch.testing.assert_close(attention(x, attn_mask=causal, is_causal=True), attention(x))
    with pytest.raises(ValueError, match="which is causal order"):
        attention(x, attn_mask=torch.eye(4, dtype=torch.bool), is_causal=True)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda: timm.create_model("resnet18"), {}, "ResNet has no attention that can be replaced"),
        (vit, {"positions": ["2d"]}, r"positions must be one of .*, got \['2d'\]"),
        (vit, {"names": "block.*.attn"}, "matches no module; the nearest are blocks"),
        (vit, {"names": "blocks.0.mlp"}, "blocks.0.mlp is a Mlp"),
        (vit, {"where": lambda *_: False}, "false for all"),
        (vit, {"where": lambda *_: True, "names": "*"}, "must not both"),
        (vit, {"positions": "3d"}, "'none', '1d', '2d', got '3d'"),
        (vit, {"size": 1}, r"put back: .*module 'blocks.0.attn.tokens' .*larger than size=\(1, 1\)"),
        (vit, {"names": ()}, "names must be a glob or several of them, got none"),
        (vit, {"prefix_tokens": -1}, "prefix_tokens must be a whole number from 0 on, got -1"),
        (vit, {"prefix_tokens": 2}, "3 tokens after 2 prefix tokens"),
        (vit, {"lambda_args": {"heads": 2}}, "'heads'; did you mean 'num_heads'"),
        (vit, {"lambda_args": {"num_heads": 7}}, "blocks.0.attn cannot be made: num_heads must divide"),
        (encoder, {}, 'layers.0.self_attn cannot be made: positions="1d" needs size=the longest sequence'),
        (lambda: nn.MultiheadAttention(8, 2, kdim=4), {"size": 4}, "attends to another sequence"),
        (lambda: nn.MultiheadAttention(8, 2, add_bias_kv=True), {"size": 4}, "adds a key of its own"),
        (lambda: vit(patch_drop_rate=0.5), {}, "drops patches in training, and those that are left are no grid"),
        (hooked, {}, "or a module in it has, which would be lost"),
    ],
)
def test_bad_input(make, options, message):
    model = make()
    with pytest.raises(ValueError, match=message):
        replace_attention(model, **options)
    assert not tokens_of(model)


def test_a_given_example_with_masks_is_run():
    model = encoder()
    x, padding = torch.randn(2, 6, 16), torch.zeros(2, 6, dtype=torch.bool)
    quiet(model, size=6, example=(x, None, padding))
    assert len(tokens_of(model)) == 2
    with pytest.raises(ValueError, match=r"put back: .*'layers.0.self_attn.tokens'.*larger than size=\(5,\)"):
        quiet(encoder(), size=5, example=x)


def test_not_a_module():
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module"):
        replace_attention("vit")


@pytest.mark.parametrize(
    ("make", "options"),
    [(lambda: vit(depth=2), {}), (torchvision_vit, {"scope": 3})],
    ids=["timm-global", "torchvision-local"],
)
def test_compiled_in_one_graph(make, options):
    model = quiet(make(), **options).double()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    weights = list(model.parameters())
    actual, expected = compiled(images), model(images)
    torch.testing.assert_close(actual, expected, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(
        torch.autograd.grad(actual.square().sum(), weights), torch.autograd.grad(expected.square().sum(), weights)
    )


def test_a_model_that_is_not_run_says_so():
    plan = plan_attention(encoder(), scope=5)
    assert plan.not_run == "what the model takes is not known"
    assert "not run: what the model takes is not known; give example=... to check it" in " ".join(str(plan).split())
    assert plan_attention(encoder(), scope=5, example=torch.randn(2, 9, 16)).not_run is None
    assert plan_attention(vit()).not_run is None
