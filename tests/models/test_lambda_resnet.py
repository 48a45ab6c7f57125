"""LambdaResNets: placements, global layers, stems, squeeze-and-excitation, arguments."""

import shutil

import pytest
import timm
import torch
from timm.layers import BlurPool2d
from timm.models import is_model

import lambdanets
from helpers import assert_same_weights, random_norms
from lambdanets import LambdaLayer, LambdaResNet
from lambdanets.layers.scriptable import ScriptableLambdaLayer
from lambdanets.models import LambdaBottleneck

# timm's own; ours must never stand in their place.
TIMMS = ["lambda_resnet26t", "lambda_resnet50ts", "lambda_resnet26rpt_256"]
NARROW = {"layers": (1, 2, 2, 1), "channels": (16, 32, 32, 64)}


def millions(model):
    return sum(p.numel() for p in model.parameters()) / 1e6


def sizes(model):
    return [module.size for module in model.modules() if isinstance(module, LambdaLayer)]


@pytest.mark.smoke
@pytest.mark.parametrize("name", TIMMS)
def test_names_of_timm_are_not_shadowed(name):
    assert is_model(name)
    assert timm.models.model_entrypoint(name).__module__.startswith("timm.")
    assert name not in timm.list_models(module="lambda_resnet")


def test_public_names():
    assert lambdanets.LambdaResNet is LambdaResNet


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("stages", "short", "words"),
    [
        ("CLLL", "CLLL", ("C", "LL", "LL", "L")),
        ("C-CL-LC-L", "C-CL-LC-L", ("C", "CL", "LC", "L")),
        (["C", "CL", "L", "CL"], "C-CL-L-C", ("C", "CL", "LL", "C")),
    ],
)
def test_placement(stages, short, words):
    model = timm.create_model("lambda_resnet50", **NARROW, stages=stages)
    assert model.stages == short
    found = tuple(
        "".join("L" if isinstance(block, LambdaBottleneck) else "C" for block in getattr(model, f"layer{i}"))
        for i in (1, 2, 3, 4)
    )
    assert found == model.placement == words
    assert timm.create_model("lambda_resnet50", **NARROW, stages=model.stages).placement == words


def test_squeeze_and_excitation_in_convolution_blocks_only():
    model = timm.create_model("lambda_resnet50", **NARROW, stages="C-CL-L-L")
    for block in [*model.layer1, *model.layer2, *model.layer3, *model.layer4]:
        assert (block.se is None) == isinstance(block, LambdaBottleneck)
    se = model.layer2[0].se
    assert (se.fc1.in_channels, se.fc1.out_channels) == (128, 32)


def test_stem_of_the_family():
    """A 3x3 stride-2 convolution in place of the max-pool; the layer comparison keeps the pool."""
    pool = timm.create_model("lambda_resnet50", **NARROW).maxpool[0]
    assert (pool.kernel_size, pool.stride) == ((3, 3), (2, 2))
    assert isinstance(timm.create_model("lambda_resnet50_llll", **NARROW).maxpool, torch.nn.MaxPool2d)


def test_lambda_layers_keep_their_own_initialisation():
    """timm's init_weights fills every convolution, the projections of lambda layers too."""
    layer = timm.create_model("lambda_resnet50_llll", layers=(1, 1, 1, 1)).layer4[0].conv2
    query_width = layer.num_heads * layer.dim_key
    query, rest = layer.qkv.weight[:query_width], layer.qkv.weight[query_width:]
    assert query.std().item() == pytest.approx((layer.dim_key * layer.dim) ** -0.5, rel=0.05)
    assert rest.std().item() == pytest.approx(layer.dim**-0.5, rel=0.05)
    assert layer.positions.std().item() == pytest.approx((layer.dim_key * 23 * 23) ** -0.5, rel=0.05)


@pytest.mark.parametrize("name", ["lambda_resnet50", "lambda_resnet50_llll"])
def test_a_step_at_full_size(name):
    model = timm.create_model(name).train()
    out = model(torch.randn(2, 3, 64, 64))
    assert 0.01 < out.std() < 5
    out.logsumexp(1).sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_a_stride_is_not_taken_twice_with_anti_aliasing():
    model = timm.create_model("lambda_resnet50_llll", **NARROW, aa_layer=BlurPool2d, num_classes=0, global_pool="")
    assert model.eval()(torch.randn(1, 3, 64, 64)).shape[2:] == (2, 2)


def test_global_layers_have_the_size_of_their_map():
    model = timm.create_model("lambda_resnet50_llll", **NARROW, lambda_args={"scope": None}, img_size=(72, 50)).eval()
    # The pooling of a strided block comes after its layer, which sees the larger map.
    assert sizes(model) == [(18, 13), (18, 13), (9, 7), (9, 7), (5, 4), (5, 4)]
    assert model(torch.randn(2, 3, 72, 50)).shape == (2, 1000)
    assert model(torch.randn(2, 3, 40, 50)).shape == (2, 1000)
    with pytest.raises(ValueError, match="larger than size"):
        model(torch.randn(2, 3, 96, 50))


def test_global_layers_with_dilation_and_small_stems():
    model = timm.create_model(
        "lambda_resnet50_llll", **NARROW, lambda_args={"scope": None}, img_size=64, output_stride=16
    )
    assert sizes(model)[-2:] == [(4, 4), (4, 4)]
    tiny = timm.create_model("lambda_resnet_tiny", stages="LLLL", lambda_args={"scope": None}, img_size=32)
    assert sizes(tiny) == [(32, 32), (32, 32), (16, 16), (8, 8)]


def test_arguments_by_stage():
    model = timm.create_model(
        "lambda_resnet50_llll",
        **NARROW,
        lambda_args=[{"scope": 3}, {"scope": 5}, None, {"scope": None, "dim_key": 8}],
        img_size=64,
    )
    layers = [getattr(model, f"layer{i}")[0].conv2 for i in (1, 2, 3, 4)]
    assert [layer.scope for layer in layers] == [(3, 3), (5, 5), (23, 23), None]
    assert (layers[3].size, layers[3].dim_key) == ((4, 4), 8)


def test_a_global_model_through_a_folder(tmp_path):
    from timm.models._hub import load_model_config_from_path, save_for_hf

    model = timm.create_model(
        "lambda_resnet50", **NARROW, stages="C-C-CL-L", lambda_args={"scope": None}, img_size=64, num_classes=3
    )
    random_norms(model).eval()
    save_for_hf(model, str(tmp_path), safe_serialization=True)
    _, architecture, arguments = load_model_config_from_path(tmp_path)
    assert architecture == "lambda_resnet50"
    assert arguments["stages"] == "C-C-CL-L"
    x = torch.randn(2, 3, 64, 64)
    back = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert_same_weights(back, model)
    assert torch.equal(back(x), model(x))
    # At another size timm's loading resamples the tables, as resize_positions does.
    larger = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, img_size=96).eval()
    lambdanets.resize_positions(model, 96)
    x = torch.randn(2, 3, 96, 96)
    assert_same_weights(larger, model)
    assert torch.equal(larger(x), model(x))


def test_the_hub(tmp_path, monkeypatch):
    """timm's push_to_hf_hub and its names for the hub, with a folder in the hub's place."""
    from huggingface_hub.errors import EntryNotFoundError
    from timm.models import _hub

    class Hub:
        repo_id = "someone/digits"

        def __init__(self, **kwargs):
            pass

        def create_repo(self, repo_id, **kwargs):
            return self

        def file_exists(self, **kwargs):
            return False

        def upload_folder(self, folder_path, **kwargs):
            shutil.copytree(folder_path, tmp_path / "hub")

    def download(repo_id, filename, **kwargs):
        if not (tmp_path / "hub" / filename).exists():
            raise EntryNotFoundError(filename)
        return str(tmp_path / "hub" / filename)

    monkeypatch.setattr(_hub, "HfApi", Hub)
    monkeypatch.setattr(_hub, "hf_hub_download", download)
    model = random_norms(timm.create_model("lambda_resnet_tiny", in_chans=1)).eval()
    timm.models.push_to_hf_hub(model, "someone/digits", safe_serialization=True)
    assert timm.models.load_model_config_from_hf("someone/digits")[1] == "lambda_resnet_tiny"
    back = timm.create_model("hf-hub:someone/digits", pretrained=True).eval()
    x = torch.randn(2, 1, 16, 16)
    assert_same_weights(back, model)
    assert torch.equal(back(x), model(x))


@pytest.mark.parametrize("size", [(8, 8), (9, 13), (32, 32), (28, 8)])
def test_tiny_takes_any_small_image(size):
    model = timm.create_model("lambda_resnet_tiny", in_chans=1).eval()
    assert model(torch.randn(2, 1, *size)).shape == (2, 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": "CCL"}, "one letter a stage.* as \"CCLL\".*got 'CCL', which has 3 stages, not 4"),
        ({"stages": "CCQL"}, "got 'CCQL'"),
        ({"stages": "C-C--L"}, "got 'C-C--L'"),
        ({"stages": ("C", "C", 3, "L")}, r"got \('C', 'C', 3, 'L'\)"),
        ({"layers": (1, 1, 1)}, r"layers must be four whole numbers of blocks.* got \(1, 1, 1\)"),
        ({"layers": (0, 1, 1, 1)}, r"layers must be four whole numbers of blocks from 1 on.* got \(0, 1, 1, 1\)"),
        ({"layers": "1111"}, "layers must be four whole numbers of blocks.* got '1111'"),
        ({"layers": (1, 1, 1, 1.0)}, r"layers must be four whole numbers of blocks"),
        ({"stem_stride": 1.0}, r"stem_stride must be 1 or 2 .*, got 1\.0"),
        ({"stem_stride": 3}, "stem_stride must be 1 or 2 .* got 3"),
        ({"se_ratio": 4}, "se_ratio must be between 0 .none. and 1.* got 4"),
        ({"lambda_args": {"scope": None}}, "img_size must be given where lambda layers are global"),
        ({"lambda_args": [{}, {}]}, r"lambda_args must be keyword arguments.* or four.* got \[\{\}, \{\}\]"),
        ({"lambda_args": {"scop": 7}}, "lambda_args has 'scop', which LambdaLayer does not take; did you mean 'scope'"),
        ({"lambda_args": [None, None, {"stride": 1}, None]}, "must not have 'stride': it is taken from each block"),
        ({"lambda_args": {"scope": 4}}, "scope must be odd and positive, got 4; 3 or 5 would do"),
        ({"img_size": (3, 4, 5)}, r"img_size must be an int or 2 of them, .* got \(3, 4, 5\)"),
        ({"img_size": True}, "img_size must be positive ints, got True"),
        ({"lambda_args": 5}, r"lambda_args must be keyword arguments.* or four.* got 5"),
        ({"se_ratio": "a"}, "se_ratio must be between 0 .none. and 1.* got 'a'"),
        ({"stages": "CCLE", "scriptable": True}, r"torch\.jit\.script takes no .*; use the letters C, L, S"),
        ({"img_size": 0}, "img_size must be .* got 0"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model("lambda_resnet_tiny", **options)


def test_an_unknown_argument_gives_the_nearest():
    with pytest.raises(TypeError, match=r"LambdaResNet has no argument 'stges'; did you mean 'stages'\?"):
        timm.create_model("lambda_resnet_tiny", stges="CLLL")
    with pytest.raises(TypeError, match=r"no argument 'xyz'; known are .*drop_path_rate.*lambda_args"):
        timm.create_model("lambda_resnet_tiny", xyz=3)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_scripted_model_with_global_layers_and_biases():
    args = {"scope": None, "intra_depth": 2, "position_bias": True, "qkv_bias": True}
    options = {
        **NARROW,
        "lambda_args": args,
        "img_size": (64, 48),
        "stages": "SCLL",
        "scriptable": True,
        "zero_init_last": False,
    }
    model = timm.create_model("lambda_resnet50", **options).double().train()
    x = torch.randn(3, 3, 64, 48, dtype=torch.float64)
    model(x)  # statistics
    for module in model.modules():
        if isinstance(module, LambdaLayer):
            torch.nn.init.normal_(module.position_bias)
    scripted = torch.jit.script(model)
    scripted(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in scripted.parameters())
    model.eval()
    scripted.eval()
    for size in ((64, 48), (40, 33)):
        x = torch.randn(2, 3, *size, dtype=torch.float64)
        torch.testing.assert_close(scripted(x), model(x))
    with pytest.raises(
        torch.jit.Error, match="x must have at most 8x6 positions, the size of this global layer, got 12x6"
    ):
        scripted(torch.randn(1, 3, 96, 48, dtype=torch.float64))


def test_a_causal_layer_cannot_be_scripted():
    with pytest.raises(ValueError, match="must be for images and not causal, got ndim=2 and causal=True"):
        ScriptableLambdaLayer(8, scope=3, causal=True)


@pytest.mark.parametrize(
    ("args", "key", "scope"),
    [
        (None, 16, (7, 7)),
        ({"dim_key": 8}, 8, (7, 7)),
        ([{"dim_key": 8}, None, None, None], 8, (7, 7)),
        ([None] * 4, 16, (7, 7)),
        ({"scope": 9}, 16, (9, 9)),
        ({"size": 32}, 16, None),  # in place of the variant's scope
    ],
)
def test_arguments_of_layers_add_to_those_of_the_variant(args, key, scope):
    model = timm.create_model("lambda_resnet50_llll_u4", **NARROW, lambda_args=args)
    layer = next(module for module in model.modules() if isinstance(module, LambdaLayer))
    assert (layer.dim_key, layer.intra_depth, layer.scope) == (key, 4, scope)
