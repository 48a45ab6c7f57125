"""Layers and models of four other implementations, before and after adoption."""

import copy

import pytest
import timm
import torch
from lambda_networks import LambdaLayer as LucidrainsLayer
from timm.layers.lambda_layer import LambdaLayer as TimmLayer
from torch import nn

import lambdanets
from interop.peers import DLi14Layer, DLi14ResNet, LambdaConv, LeaderResNet, calibrate, randomise
from lambdanets import LambdaLayer
from lambdanets.interop import TwoOrderLambdaLayer

pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid")

GRID = (6, 6)

LAYERS = {
    "timm": lambda: TimmLayer(16, dim_head=4, r=3),
    "timm-bias": lambda: TimmLayer(16, dim_head=4, r=5, qkv_bias=True),
    "timm-stride": lambda: TimmLayer(16, dim_head=4, r=3, stride=2),
    "timm-global": lambda: TimmLayer(16, dim_head=4, r=None, feat_size=GRID),
    "timm-global-stride": lambda: TimmLayer(16, dim_head=4, r=None, feat_size=GRID, stride=2),
    "lucidrains": lambda: LucidrainsLayer(16, dim_k=4, r=5, heads=2),
    "lucidrains-u": lambda: LucidrainsLayer(16, dim_k=4, r=3, dim_u=3, dim_out=8),
    "lucidrains-global": lambda: LucidrainsLayer(16, dim_k=4, n=6),
    "lucidrains-global-u": lambda: LucidrainsLayer(16, dim_k=4, n=6, dim_u=2),
    "d-li14": lambda: DLi14Layer(16, dk=4, r=5),
    "d-li14-u": lambda: DLi14Layer(16, dk=4, r=3, du=3, heads=2),
    "d-li14-stride": lambda: DLi14Layer(16, dk=4, r=3, du=2, stride=2),
    "leaderj1001": lambda: LambdaConv(16, 24, k=4, m=5),
    "leaderj1001-u": lambda: LambdaConv(16, 24, k=4, m=3, u=3),
    "leaderj1001-pointwise": lambda: LambdaConv(16, 24, k=4, m=0),
    "leaderj1001-pointwise-u": lambda: LambdaConv(16, 24, k=4, m=0, u=3),
}


def pair(make, dtype=torch.float64, faithful=True):
    """A random layer of theirs and ours made of a copy."""
    theirs = randomise(make()).to(dtype)
    adoption = lambdanets.adopt(copy.deepcopy(theirs), faithful=faithful)
    return theirs, adoption.model, adoption


def close(actual, expected, dtype):
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    scale = max(1.0, float(expected.detach().abs().max()))
    torch.testing.assert_close(actual, expected, atol=tolerance * scale, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_have_the_same_outputs_and_gradients(name, training, dtype):
    theirs, ours, adoption = pair(LAYERS[name], dtype)
    theirs.train(training)
    ours.train(training)
    x = torch.randn(3, 16, *GRID, dtype=dtype)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    expected, actual = theirs(inputs[0]), ours(inputs[1])
    close(actual, expected, dtype)
    direction = torch.randn_like(expected)
    expected.backward(direction)
    actual.backward(direction)
    close(inputs[1].grad, inputs[0].grad, dtype)
    assert adoption.adopted[0].source == next(s for s in ("timm", "lucidrains", "d-li14", "leaderj1001") if s in name)
    assert adoption.adopted[0].difference < (1e-10 if dtype == torch.float64 else 1e-3)


@pytest.mark.parametrize("name", LAYERS)
def test_training_goes_on_as_there(name):
    """Each of our parameters is some of theirs in another order, so that equal gradients are equal steps."""
    theirs, ours, _ = pair(LAYERS[name])
    x = torch.randn(3, 16, *GRID, dtype=torch.float64)
    target = torch.randn(3, ours.dim_out, *ours.pool(x).shape[2:], dtype=torch.float64)
    for layer in (theirs, ours):
        optimizer = torch.optim.SGD(layer.parameters(), lr=1e-3)
        for _ in range(3):
            optimizer.zero_grad()
            (layer(x) - target).square().sum().mul(0.1).backward()
            optimizer.step()
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in ours.parameters())
    for training in (True, False):
        expected = theirs.train(training)(x)
        assert expected.std() > 0.05
        close(ours.train(training)(x), expected, torch.float64)


@pytest.mark.parametrize("name", ["timm-stride", "lucidrains-u", "d-li14-stride", "leaderj1001-pointwise-u"])
def test_settings_are_kept(name):
    theirs = randomise(LAYERS[name]()).to(torch.float64)
    norms = [module for module in theirs.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.eps, norm.momentum = 1e-2, 0.3
    norms[0].eval()
    for parameter in theirs.parameters():
        parameter.requires_grad_(parameter.ndim < 4)
    ours = lambdanets.adopt(copy.deepcopy(theirs)).model
    assert (ours.training, ours.norm_query.training, ours.norm_value.training) == (True, False, True)
    for norm in (ours.norm_query, ours.norm_value):
        assert (norm.eps, norm.momentum, norm.weight.requires_grad) == (1e-2, 0.3, True)
    assert not ours.qkv.weight.requires_grad
    assert ours.positions.requires_grad == ("pointwise" in name)
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.float64}


@pytest.mark.parametrize("norm", [lambda c: nn.GroupNorm(2, c), lambda c: nn.BatchNorm2d(c, track_running_stats=False)])
def test_other_norms_are_taken_over(norm):
    theirs = randomise(DLi14Layer(16, dk=4, r=3, du=2)).double()
    theirs.norm_q, theirs.norm_v = norm(16).double(), norm(8).double()
    ours = lambdanets.adopt(copy.deepcopy(theirs)).model
    x = torch.randn(2, 16, *GRID, dtype=torch.float64)
    close(ours.eval()(x), theirs.eval()(x), torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(
    ("name", "args", "layers"),
    [("lambda_resnet26t", {}, 3), ("lambda_resnet50ts", {}, 5), ("lambda_resnet26rpt_256", {"img_size": 64}, 3)],
)
def test_whole_models_of_timm(name, args, layers, dtype):
    x = torch.randn(2, 3, 64, 64, dtype=dtype)
    theirs = calibrate(randomise(timm.create_model(name, num_classes=7, **args)).to(dtype), x).eval()
    adoption = lambdanets.adopt(copy.deepcopy(theirs))
    assert len(adoption.adopted) == layers
    assert not any(isinstance(module, TimmLayer) for module in adoption.model.modules())
    compare_models(theirs, adoption.model, x, dtype)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("make", "faithful"), [(DLi14ResNet, None), (LeaderResNet, None), (LeaderResNet, True)])
def test_whole_models_of_others(make, faithful, training):
    args = {"layers": (1, 1, 1, 1), "num_classes": 5}
    model = make(**args, r=5, dk=4) if make is DLi14ResNet else make(**args, m=5, k=4, u=2 if faithful else 1)
    x = torch.randn(3, 3, 64, 48, dtype=torch.float64)
    theirs = calibrate(randomise(model).double(), x).train(training)
    for module in theirs.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    adoption = lambdanets.adopt(copy.deepcopy(theirs), faithful=faithful)
    assert len(adoption.adopted) == 4
    compare_models(theirs, adoption.model, x, torch.float64)


def compare_models(theirs, ours, x, dtype):
    """Outputs and the gradient of the input, which has passed through every layer."""
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    expected, actual = theirs(inputs[0]), ours(inputs[1])
    assert expected.std() > 0.1
    close(actual, expected, dtype)
    if dtype == torch.float32:
        return  # a whole model's gradient amplifies rounding: an activation at its kink falls on either side
    expected.square().sum().backward()
    actual.square().sum().backward()
    close(inputs[1].grad, inputs[0].grad, dtype)


class TestTwoOrders:
    """leaderj1001 at u > 1."""

    def make(self):
        return randomise(LambdaConv(16, 24, k=4, m=3, u=3)).double()

    def test_must_be_chosen(self):
        model = nn.Sequential(randomise(LambdaConv(16, 16, k=4, m=3)).double(), self.make())
        with pytest.raises(ValueError, match=r"u = 3.*\(v, u\).*\(u, v\).*faithful=True.*faithful=False"):
            lambdanets.adopt(model)
        assert not any(isinstance(module, LambdaLayer) for module in model.modules())

    def test_faithful_says_so(self):
        adoption = lambdanets.adopt(self.make(), faithful=True)
        assert type(adoption.model) is TwoOrderLambdaLayer
        assert "(v, u)" in str(adoption)

    def test_the_papers_layer_differs_in_the_content_term_alone(self):
        theirs = self.make()
        adoption = lambdanets.adopt(copy.deepcopy(theirs), faithful=False)
        ours = adoption.model
        assert type(ours) is LambdaLayer
        assert "OUTPUTS CHANGE" in str(adoption)
        x = torch.randn(2, 16, *GRID, dtype=torch.float64)
        theirs.eval()
        ours.eval()
        assert (ours(x) - theirs(x)).abs().max() > 1e-3
        # Without the content: keys do not matter to the position term, and a softmax over one position is 1.
        with torch.no_grad():
            theirs.values[1].weight.zero_()
            theirs.values[1].bias.fill_(0.7)
        same = lambdanets.adopt(copy.deepcopy(theirs), faithful=False).model
        close(same.eval()(x), theirs(x), torch.float64)

    def test_trains_and_takes_masks(self):
        layer = lambdanets.adopt(self.make(), faithful=True).model.train()
        x = torch.randn(2, 16, *GRID, dtype=torch.float64)
        mask = torch.rand(2, *GRID) > 0.3
        layer(x, mask=mask).sum().backward()
        assert all(parameter.grad is not None for parameter in layer.parameters())
        changed = x.masked_fill(~mask[:, None], 3.0)
        layer.eval()
        visible = mask[:, None].expand_as(layer(x, mask=mask))
        torch.testing.assert_close(layer(changed, mask=mask)[visible], layer(x, mask=mask)[visible])
        with pytest.raises(ValueError, match="context must be None"):
            layer(x, context=x)


class TestTrees:
    def test_anywhere_in_a_tree(self):
        inner = nn.ModuleDict({"a": nn.ModuleList([nn.ReLU(), LAYERS["d-li14"]()]), "b": LAYERS["lucidrains"]()})
        model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Sequential(inner))
        adoption = lambdanets.adopt(model)
        assert [layer.path for layer in adoption.adopted] == ["1.0.a.1", "1.0.b"]
        assert isinstance(inner["a"][1], LambdaLayer)
        assert isinstance(inner["b"], LambdaLayer)
        text = str(adoption)
        for word in ("Adopted 2", "1.0.a.1: DLi14Layer of d-li14", "1.0.b: LambdaLayer of lucidrains"):
            assert word in text

    def test_shared_layers_stay_shared(self):
        layer = randomise(LAYERS["timm"]()).double()
        model = nn.Sequential(layer, nn.Sequential(layer), layer).eval()
        x = torch.randn(1, 16, *GRID, dtype=torch.float64)
        expected = model(x)
        assert len(lambdanets.adopt(model).adopted) == 1
        assert model[0] is model[1][0] is model[2]
        close(model(x), expected, torch.float64)

    def test_tied_parameters_stay_tied(self):
        layers = [LAYERS["lucidrains"](), LAYERS["lucidrains"]()]
        layers[1].pos_conv.weight = layers[0].pos_conv.weight
        layers[1].norm_q = layers[0].norm_q
        model = nn.Sequential(*layers)
        lambdanets.adopt(model)
        assert model[0].positions is model[1].positions
        assert model[0].norm_query is model[1].norm_query
        assert model[0].qkv.weight is not model[1].qkv.weight

    def test_parameters_of_the_same_shape_stay_the_same_objects(self):
        layer = LAYERS["d-li14"]()
        kept = layer.conv_qkv.weight, layer.lambda_conv.bias
        ours = lambdanets.adopt(layer).model
        assert (ours.qkv.weight is kept[0], ours.position_bias is kept[1]) == (True, True)

    def test_hooks_go_along(self):
        model = nn.Sequential(LAYERS["timm"]())
        seen = []
        handle = model[0].register_forward_hook(lambda *_: seen.append("forward"))
        model[0].register_forward_pre_hook(lambda *_: seen.append("before"))
        lambdanets.adopt(model)
        assert seen == []
        model(torch.randn(1, 16, *GRID))
        assert seen == ["before", "forward"]
        handle.remove()
        model(torch.randn(1, 16, *GRID))
        assert seen == ["before", "forward", "before"]

    def test_other_grids_than_square_ones(self):
        theirs, ours, _ = pair(LAYERS["d-li14-stride"])
        x = torch.randn(2, 16, 5, 9, dtype=torch.float64)
        close(ours.eval()(x), theirs.eval()(x), torch.float64)

    def test_a_layer_that_takes_no_small_input_is_adopted_unseen(self):
        class Picky(DLi14Layer):
            def forward(self, x):
                return super().forward(x.view(-1, 16, 9, 9))

        theirs = randomise(Picky(16, dk=4, r=3)).double().eval()
        adoption = lambdanets.adopt(copy.deepcopy(theirs))
        assert adoption.adopted[0].difference is None
        assert "not compared: it raised RuntimeError on an input of (2, 16, 7, 6)" in str(adoption)
        x = torch.randn(2, 16, 9, 9, dtype=torch.float64)
        close(adoption.model(x), theirs(x), torch.float64)

    @pytest.mark.parametrize("training", [True, False])
    def test_training_mode(self, training):
        model = nn.Sequential(LAYERS["lucidrains"](), LAYERS["timm-stride"]()).train(training)
        lambdanets.adopt(model)
        assert all(module.training is training for layer in model for module in layer.modules())

    def test_randomness_and_modes_are_left_alone(self):
        model = nn.Sequential(LAYERS["timm"](), nn.Dropout()).train()
        before = copy.deepcopy(model[0].norm_q.state_dict())
        state = torch.get_rng_state()
        lambdanets.adopt(model)
        assert torch.equal(state, torch.get_rng_state())
        assert all(module.training for module in model.modules())
        assert all(torch.equal(tensor, before[name]) for name, tensor in model[0].norm_query.state_dict().items())


def grouped():
    layer = LAYERS["d-li14"]()
    layer.conv_qkv = nn.Conv2d(16, 24, 1, groups=2, bias=False)
    return layer


def with_key_norm():
    layer = LAYERS["leaderj1001"]()
    layer.keys.append(nn.BatchNorm2d(4))
    return layer


def half_biased():
    layer = LAYERS["lucidrains"]()
    layer.to_k = nn.Conv2d(16, 4, 1)
    return layer


def half_frozen():
    layer = LAYERS["lucidrains"]()
    layer.to_k.weight.requires_grad_(False)
    return layer


def circular():
    layer = LAYERS["timm"]()
    layer.conv_lambda.padding_mode = "circular"
    return layer


def even():
    return DLi14Layer(16, dk=4, r=4)


def parametrised():
    layer = LAYERS["timm"]()
    nn.utils.parametrizations.weight_norm(layer.qkv)
    return layer


def no_norm():
    layer = LAYERS["timm"]()
    layer.norm_q = nn.Identity()
    return layer


def early_lucidrains():
    layer = LAYERS["lucidrains"]()
    del layer.pos_conv
    return layer


class Otherwise(DLi14Layer):
    """A little more than the layer that it looks like."""

    def forward(self, x):
        return 1.000001 * super().forward(x)


def with_dropout():
    layer = LAYERS["timm"]()
    layer.drop = nn.Dropout(0.5)
    return layer


def with_hook():
    layer = LAYERS["timm"]()
    layer.qkv.register_forward_hook(lambda *_: None)
    return layer


def copying():
    layer = LAYERS["timm"]()
    layer.register_state_dict_post_hook(lambda module, state, *_: state.update(copy.deepcopy(state)))
    return layer


def test_outputs_that_are_all_zero_tell_nothing():
    model = nn.Sequential(LAYERS["timm"]())
    for norm in (model[0].norm_q, model[0].norm_v):
        nn.init.zeros_(norm.weight)
    (layer,) = lambdanets.adopt(model).adopted
    assert layer.difference is None
    assert "all of its outputs are 0" in layer.notes[0]


def test_weights_that_are_not_finite_are_not_said_to_agree():
    model = nn.Sequential(TimmLayer(16, r=3, dim_head=4))
    model[0].qkv.weight.data[0, 0] = float("nan")
    (layer,) = lambdanets.adopt(model).adopted
    assert layer.difference is None
    assert "not finite" in layer.notes[0]


class TestLookAlikes:
    """What ours has no equal for stays, with its reason."""

    @pytest.mark.filterwarnings("ignore:.*torch.jit.script")
    @pytest.mark.parametrize(
        ("make", "reason"),
        [
            (grouped, "grouped"),
            (with_key_norm, "keys pass a batch-norm"),
            (half_biased, "no place for to_k.bias"),
            (half_frozen, "differ in requires_grad"),
            (circular, "keeps no grid with zeros around it"),
            (even, "even extents"),
            (parametrised, "no qkv.weight"),
            (no_norm, "norm_q has no numbers by channel"),
            (early_lucidrains, "neither pos_conv nor rel_pos_emb"),
            (lambda: randomise(Otherwise(16, dk=4, r=3)), "computes something else"),
            (lambda: randomise(Otherwise(16, dk=4, r=3)).half(), "computes something else"),
            (with_dropout, "it has drop (Dropout), which our layer has no place for"),
            (with_hook, "qkv has hooks"),
            (copying, "'qkv.weight', which is no parameter or buffer of it"),
            (lambda: torch.jit.script(nn.Sequential(LAYERS["timm"]())), "TorchScript"),
        ],
    )
    def test_reason(self, make, reason):
        model = nn.Sequential(make(), LAYERS["timm"]())
        old = model[0]
        adoption = lambdanets.adopt(model)
        assert model[0] is old
        assert isinstance(model[1], LambdaLayer)
        (skipped,) = adoption.skipped
        assert reason in skipped.reason
        assert skipped.reason in str(adoption)

    def test_none_that_fits_is_an_error(self):
        with pytest.raises(ValueError, match=r"2 modules like lambda layers.*0: DLi14Layer.*grouped"):
            lambdanets.adopt(nn.Sequential(grouped(), even()))


@pytest.mark.smoke
def test_nothing_found():
    with pytest.raises(ValueError, match=r"Sequential has no lambda layer.*Looked for.*conv_lambda.*to_k.*lambda_conv"):
        lambdanets.adopt(nn.Sequential(nn.Conv2d(3, 3, 1)))
    with pytest.raises(ValueError, match="It has 1 of this library's already, and needs no adopting"):
        lambdanets.adopt(LambdaLayer(16, scope=3))
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got str"):
        lambdanets.adopt("lambda_resnet26t")
