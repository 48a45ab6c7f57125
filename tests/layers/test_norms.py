"""Norms by name and by class, and causal layers: no output depends on a later position, in training or evaluation."""

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from lambdanets import GraphLambdaLayer, LambdaLayer
from lambdanets.layers import PositionNorm, TokenLambda
from lambdanets.layers.norms import check_enough_values

NDIM_SHAPES = {1: (12,), 2: (4, 5), 3: (2, 3, 4)}
BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class ChannelRMS(nn.Module):
    """A norm of each position that is none of PyTorch's."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        scaled = x * x.square().mean(1, keepdim=True).add(1e-6).rsqrt()
        return scaled * self.weight.reshape(-1, *[1] * (x.ndim - 2))


class Dropped(PositionNorm):
    """A norm of each position that draws random numbers in training."""

    def forward(self, x):
        return nn.functional.dropout(super().forward(x), 0.5, self.training)


class MeanInEvaluation(nn.Module):
    """Mixes positions in evaluation, not in training."""

    def __init__(self, width):
        super().__init__()

    def forward(self, x):
        return x if self.training else x - x.flatten(2).mean(2).reshape(*x.shape[:2], *[1] * (x.ndim - 2))


KEEPING = {"default": None, "layer": "layer", "none": "none", "LayerNorm": nn.LayerNorm, "own": ChannelRMS}
MIXING = {
    "BatchNorm": lambda ndim: BATCH_NORMS[ndim],
    "without statistics": lambda ndim: lambda width: BATCH_NORMS[ndim](width, track_running_stats=False),
    "in evaluation": lambda ndim: MeanInEvaluation,
    "GroupNorm": lambda ndim: lambda width: nn.GroupNorm(1, width),
    "InstanceNorm": lambda ndim: (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)[ndim - 1],
}


def assert_blind_to_what_follows(layer, x, flat):
    """Changing positions from each one on leaves the outputs at all earlier ones, and changes those from there on."""
    with torch.no_grad():
        out = flat(layer(x))
        for first in (1, flat(x).shape[1] // 2, flat(x).shape[1] - 1):
            changed = x.clone()
            flat(changed)[:, first:] *= -3
            after = flat(layer(changed))
            torch.testing.assert_close(after[:, :first], out[:, :first], rtol=1e-10, atol=1e-10)
            assert not torch.allclose(after[:, first], out[:, first])


def grid_flat(x):
    """(b, c, *grid) as a view (b, n, c)."""
    return x.flatten(2).transpose(1, 2)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("context", ["scope", "size"])
@pytest.mark.parametrize("ndim", NDIM_SHAPES)
@pytest.mark.parametrize("norm", KEEPING)
def test_causal_layer(norm, ndim, context, training):
    size = {"scope": 3} if context == "scope" else {"size": NDIM_SHAPES[ndim]}
    options = {"position_bias": True, "qkv_bias": True, "intra_depth": 2, **size}
    layer = LambdaLayer(8, ndim=ndim, dim_key=4, causal=True, norm_layer=KEEPING[norm], **options).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 8, *NDIM_SHAPES[ndim], dtype=torch.float64)
    assert_blind_to_what_follows(layer.train(training), x, grid_flat)


@pytest.mark.parametrize("ndim", NDIM_SHAPES)
def test_causal_layer_with_batch_norm_is_for_evaluation(ndim):
    layer = LambdaLayer(8, ndim=ndim, dim_key=4, scope=3, causal=True, norm_layer="batch").double()
    assert isinstance(layer.norm_query, BATCH_NORMS[ndim])
    x = torch.randn(2, 8, *NDIM_SHAPES[ndim], dtype=torch.float64)
    with pytest.raises(ValueError, match=r'norm_layer="batch" mixes positions in training.*norm_layer="layer"'):
        layer(x)
    assert_blind_to_what_follows(layer.eval(), x, grid_flat)
    # Frozen norms in a layer that is trained.
    layer.train()
    layer.norm_query.eval()
    layer.norm_value.eval()
    assert_blind_to_what_follows(layer, x, grid_flat)


@pytest.mark.parametrize("ndim", NDIM_SHAPES)
@pytest.mark.parametrize("norm", MIXING)
def test_causal_layer_refuses_norms_that_mix_positions(norm, ndim):
    make = MIXING[norm](ndim)
    with pytest.raises(ValueError, match=r'norm_layer made .*later positions.*causal=True.*norm_layer="layer"'):
        LambdaLayer(8, ndim=ndim, scope=3, causal=True, norm_layer=make)
    LambdaLayer(8, ndim=ndim, scope=3, norm_layer=make)


def starts_at_zero(width):
    norm = nn.GroupNorm(1, width)
    nn.init.zeros_(norm.weight)
    return norm


def test_causal_layer_refuses_a_norm_whose_weights_are_zero_at_first():
    with pytest.raises(ValueError, match=r"norm_layer made GroupNorm, .* depends on later positions"):
        LambdaLayer(8, scope=3, causal=True, norm_layer=starts_at_zero)


class InGroups(nn.GroupNorm):
    """Normalises groups of channels of each position by itself."""

    def forward(self, x):
        return super().forward(x.movedim(1, -1).flatten(0, -2)).reshape(x.movedim(1, -1).shape).movedim(-1, 1)


@pytest.mark.parametrize("name", ["norm_query", "norm_value"])
@pytest.mark.parametrize("training", [True, False])
def test_causal_layer_refuses_norms_that_are_put_in_later(name, training):
    x = torch.randn(2, 8, 4, 4)
    layer = LambdaLayer(8, scope=3, dim_key=4, causal=True)
    width = layer._widths()[0 if name == "norm_query" else 2]
    for norm in (nn.GroupNorm(1, width), nn.InstanceNorm2d(width)):
        setattr(layer, name, norm)
        with pytest.raises(ValueError, match=rf'since causal=True, got {type(norm).__name__}; norm_layer="layer"'):
            layer.train(training)(x)
    setattr(layer, name, nn.InstanceNorm2d(width, track_running_stats=True))
    if training:
        with pytest.raises(ValueError, match="got InstanceNorm2d"):
            layer.train()(x)
    else:
        layer.eval()(x)
    setattr(layer, name, InGroups(2, width))
    layer.train(training)(x)


@pytest.mark.parametrize("training", [True, False])
def test_causal_tokens_refuse_norms_that_are_put_in_later(training):
    layer = TokenLambda(8, size=4, causal=True).train(training)
    layer.norm_value = nn.GroupNorm(1, 4)
    with pytest.raises(ValueError, match=r"norm_query and norm_value must keep positions apart.*got GroupNorm"):
        layer(torch.randn(2, 4, 8))
    layer.causal = False
    layer(torch.randn(2, 4, 8))


@pytest.mark.parametrize(
    ("layer", "args"),
    [
        (lambda **norm: LambdaLayer(8, scope=3, **norm), (torch.randn(1, 8, 1, 1),)),
        (lambda **norm: GraphLambdaLayer(8, **norm), (torch.randn(1, 8), torch.zeros(2, 0, dtype=torch.long))),
    ],
)
def test_batch_norm_of_one_value(layer, args):
    message = r'x of .*batch-norm can take no statistics .*; train with more than one, call \.eval\(\).*"layer"'
    with pytest.raises(ValueError, match=message):
        layer()(*args)
    layer().eval()(*args)
    layer(norm_layer="layer")(*args)


def ahead(offsets):
    """A norm that adds the position so many further on along each axis."""

    class Ahead(nn.Identity):
        def forward(self, x):
            moved = nn.functional.pad(x, [pad for offset in reversed(offsets) for pad in (0, offset)])
            return x + moved[(..., *(slice(offset, None) for offset in offsets))]

    return lambda width: Ahead()


def test_of_one_value_a_norm_over_processes_is_left_to_pytorch():
    """Other processes have values too."""
    check_enough_values("a graph of one node", nn.SyncBatchNorm(8))


@pytest.mark.parametrize("offsets", [(5,), (15,), (0, 5), (5, 0), (7, 7), (0, 0, 4), (4, 0, 0)])
def test_causal_layer_refuses_norms_that_look_ahead(offsets):
    with pytest.raises(ValueError, match=r"norm_layer made Ahead, .* depends on later positions"):
        LambdaLayer(8, ndim=len(offsets), scope=3, causal=True, norm_layer=ahead(offsets))


def test_a_norm_of_another_shape_is_named_by_a_causal_layer():
    with pytest.raises(
        ValueError, match=r"norm_layer made LayerNorm, which does not take an input of shape \(2, 64, 16\)"
    ):
        LambdaLayer(8, ndim=1, scope=3, causal=True, norm_layer=lambda width: nn.LayerNorm(width))


def test_causal_layer_refuses_strides():
    with pytest.raises(ValueError, match="causal=True excludes stride=2: the 3-wide average"):
        LambdaLayer(8, scope=3, causal=True, stride=2)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "options", [{"size": 12}, {"scope": 3}, {"positions": "none"}, {"positions": "2d", "size": (3, 4)}]
)
@pytest.mark.parametrize("norm", [None, "layer", "none", nn.RMSNorm])
def test_causal_tokens(norm, options, training):
    layer = TokenLambda(8, dim_key=4, causal=True, norm_layer=norm, **options).double().train(training)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    assert_blind_to_what_follows(layer, torch.randn(2, 12, 8, dtype=torch.float64), lambda x: x)


def tokens_batch_norm(width):
    class Norm(nn.BatchNorm1d):
        def forward(self, x):
            return super().forward(x.transpose(1, 2)).transpose(1, 2)

    return Norm(width)


def test_causal_tokens_refuse_norms_that_mix_tokens():
    with pytest.raises(ValueError, match=r"norm_layer made Norm, in whose training .* depends on later positions"):
        TokenLambda(8, size=4, causal=True, norm_layer=tokens_batch_norm)
    TokenLambda(8, size=4, norm_layer=tokens_batch_norm)


@pytest.mark.parametrize("default", ["cpu", "meta"])
def test_the_check_of_a_norm_leaves_everything_as_it_is(default):
    made = []

    def count_call(module, inputs):
        module.calls.add_(1)

    def make(width):
        made.append(Dropped(width))
        made[-1].register_buffer("calls", torch.zeros(()))
        made[-1].register_forward_pre_hook(count_call)
        return made[-1]

    torch.manual_seed(3)
    with torch.device(default):
        LambdaLayer(8, scope=3, causal=True, norm_layer="layer")
    expected = torch.rand(3)
    torch.manual_seed(3)
    with torch.device(default):
        layer = LambdaLayer(8, scope=3, causal=True, norm_layer=make)
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)
    assert len(made) == 2
    assert all(norm.training for norm in made)
    assert layer.norm_value is made[1]
    if default == "cpu":
        assert [norm.calls.item() for norm in made] == [0, 0]


def test_the_check_passes_fake_tensors_and_other_dtypes():
    with FakeTensorMode():
        LambdaLayer(8, scope=3, causal=True, norm_layer=ChannelRMS)
    layer = LambdaLayer(8, scope=3, causal=True, norm_layer=ChannelRMS, dtype=torch.bfloat16)
    assert layer.norm_query.weight.dtype == torch.bfloat16
    assert layer(torch.randn(2, 8, 4, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("ndim", NDIM_SHAPES)
def test_position_norm_is_layer_norm_of_the_channels(ndim):
    norm, x = PositionNorm(6).double(), torch.randn(2, 6, *NDIM_SHAPES[ndim], dtype=torch.float64)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    expected = torch.empty_like(x)
    for example in range(2):
        for place, column in enumerate(x[example].flatten(1).unbind(1)):
            scaled = (column - column.mean()) / (column.var(correction=0) + 1e-5).sqrt()
            expected[example].flatten(1)[:, place] = scaled * norm.weight + norm.bias
    torch.testing.assert_close(norm(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("given", "causal", "kind"),
    [
        (None, False, nn.BatchNorm2d),
        ("batch", False, nn.BatchNorm2d),
        ("layer", False, PositionNorm),
        (nn.LayerNorm, False, PositionNorm),
        ("none", False, nn.Identity),
        (nn.Identity, False, nn.Identity),
        (None, True, PositionNorm),
    ],
)
def test_norms_by_name(given, causal, kind):
    layer = LambdaLayer(8, scope=3, dim_key=4, causal=causal, norm_layer=given)
    assert type(layer.norm_query) is type(layer.norm_value) is kind
    assert layer(torch.randn(2, 8, 4, 4)).shape == (2, 8, 4, 4)


@pytest.mark.parametrize("name", ["batch", "layer", "none"])
def test_norms_of_graphs_by_name(name):
    layer = GraphLambdaLayer(8, norm_layer=name)
    kind = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm, "none": nn.Identity}[name]
    assert type(layer.norm_query) is kind
    assert layer(torch.randn(5, 8), torch.zeros(2, 0, dtype=torch.int64)).shape == (5, 8)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("", ValueError, "norm_layer must be one of .* got ''"),
        (False, TypeError, "norm_layer must be a name or make a norm .* got False"),
        ("layr", ValueError, "norm_layer must be one of .*'layer', 'none'.* got 'layr'"),
        (3, TypeError, "norm_layer must be a name or make a norm .* got 3"),
        (lambda width: None, TypeError, "norm_layer must make a torch.nn.Module .* got None"),
        (nn.BatchNorm2d(8), TypeError, r"got the module BatchNorm2d\(.*norm_layer=BatchNorm2d, or a function.*lambda"),
    ],
)
def test_bad_norms_are_named(given, error, message):
    for make in (LambdaLayer, TokenLambda, GraphLambdaLayer):
        with pytest.raises(error, match=message):
            make(8, norm_layer=given, **({} if make is GraphLambdaLayer else {"scope": 3}))
