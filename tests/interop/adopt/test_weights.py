"""Checkpoints of other implementations in models of ours."""

import contextlib
import copy
import os
import zipfile
from pathlib import Path

import pytest
import timm
import torch
from lambda_networks import LambdaLayer as LucidrainsLayer
from safetensors.torch import save_file
from timm.layers.lambda_layer import LambdaLayer as TimmLayer
from timm.models import save_for_hf
from torch import nn

import lambdanets
from interop.peers import DLi14ResNet, LambdaConv, LeaderResNet, calibrate, randomise
from lambdanets import LambdaLayer, LambdaResNet

pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid")

BLOCKS = (1, 2, 1, 1)


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 64, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def peers(images):
    """Small models of the two, in evaluation mode, and ours of the same shape to copy."""
    torch.manual_seed(0)
    made = {
        "d-li14": DLi14ResNet(BLOCKS, num_classes=5, dk=4, r=5),
        "leaderj1001": LeaderResNet(BLOCKS, num_classes=5, k=4, m=5),
    }
    return {name: calibrate(randomise(model).double(), images).eval() for name, model in made.items()}


def ours(**args):
    lambda_args = {"scope": 5, "dim_key": 4, **args.pop("lambda_args", {})}
    return LambdaResNet(BLOCKS, lambda_args=lambda_args, **{"num_classes": 5, **args}).double().eval()


def assert_same(model, theirs, x):
    with torch.no_grad():
        expected = theirs(x)
        assert expected.std() > 0.1
        torch.testing.assert_close(model(x), expected, atol=1e-12 * max(1, float(expected.abs().max())), rtol=0)


def wrap_plain(state):
    return state


def wrap_training(state):
    return {
        "epoch": 3,
        "optimizer": {"state": {}, "lr": 0.1},
        "state_dict": {f"module.{n}": t for n, t in state.items()},
    }


def wrap_leader(state):
    return {"model_state_dict": state, "global_epoch": 4, "best_acc": 78.2}


def wrap_average(state):
    wrong = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    return {"model": wrong, "model_ema": {f"_orig_mod.module.{name}": tensor for name, tensor in state.items()}}


def wrap_lightning(state):
    return {"state_dict": {f"model.{name}": tensor for name, tensor in state.items()}, "pytorch-lightning_version": "2"}


class TestSources:
    @pytest.mark.parametrize(
        ("name", "wrap"),
        [
            ("d-li14", wrap_plain),
            ("d-li14", wrap_training),
            ("leaderj1001", wrap_leader),
            ("leaderj1001", wrap_average),
            ("leaderj1001", wrap_lightning),
        ],
    )
    def test_resnets_of_others(self, peers, images, tmp_path, name, wrap):
        torch.save(wrap(peers[name].state_dict()), tmp_path / "weights.pth")
        model = ours()
        loaded = lambdanets.load_weights(model, tmp_path / "weights.pth")
        assert_same(model, peers[name], images)
        assert loaded.source == name
        assert loaded.layers == (
            "layer1.0.conv2",
            "layer2.0.conv2",
            "layer2.1.conv2",
            "layer3.0.conv2",
            "layer4.0.conv2",
        )
        assert "weights.pth" in str(loaded)
        assert name in str(loaded)

    @pytest.mark.parametrize("name", ["d-li14", "leaderj1001"])
    def test_training_goes_on_as_there(self, peers, images, name):
        """Statistics too: the bias of leaderj1001's shortcut is gone into one of them."""
        theirs, model = copy.deepcopy(peers[name]), ours()
        lambdanets.load_weights(model, theirs.state_dict())
        for each in (theirs, model):
            each.train()
            for module in each.modules():
                if isinstance(module, nn.Dropout):
                    module.eval()
            each(images)
            each.eval()
        assert_same(model, theirs, images)

    def test_timm(self, images, tmp_path):
        theirs = calibrate(randomise(timm.create_model("lambda_resnet26t", num_classes=5)).double(), images).eval()
        save_file(theirs.state_dict(), tmp_path / "model.safetensors")
        model = timm.create_model("lambda_resnet26t", num_classes=5).double().eval()
        lambdanets.adopt(model)
        loaded = lambdanets.load_weights(model, str(tmp_path / "model.safetensors"), source="timm")
        assert (loaded.source, len(loaded.layers), loaded.adjusted) == ("timm", 3, ())
        assert_same(model, theirs, images)

    @pytest.mark.parametrize("where", [{"r": 3}, {"n": 6}])
    def test_lucidrains(self, where):
        theirs = nn.Sequential(nn.Conv2d(3, 8, 1), randomise(LucidrainsLayer(8, dim_k=4, dim_u=2, **where))).double()
        layer = LambdaLayer(8, dim_key=4, intra_depth=2, scope=where.get("r"), size=where.get("n"))
        model = nn.Sequential(nn.Conv2d(3, 8, 1), layer).double()
        assert lambdanets.load_weights(model, theirs.state_dict()).source == "lucidrains"
        assert_same(model.eval(), theirs.eval(), torch.randn(2, 3, 6, 6, dtype=torch.float64))

    def test_a_single_layer(self):
        theirs = randomise(LambdaConv(8, 8, k=4, m=3)).double().eval()
        model = LambdaLayer(8, dim_key=4, scope=3).double().eval()
        assert lambdanets.load_weights(model, theirs.state_dict()).layers == ("",)
        assert_same(model, theirs, torch.randn(2, 8, 6, 6, dtype=torch.float64))

    def test_our_own_file(self, peers, images, tmp_path):
        """What came from d-li14 and was saved carries position biases that a fresh model has no place for yet."""
        first, second = ours(), ours()
        lambdanets.load_weights(first, peers["d-li14"].state_dict())
        save_file(first.state_dict(), tmp_path / "ours.safetensors")
        loaded = lambdanets.load_weights(second, tmp_path / "ours.safetensors")
        assert (loaded.source, len(loaded.layers)) == ("lambdanets", 5)
        assert_same(second, first, images)

    def test_the_published_shape_of_d_li14(self):
        """Its ImageNet weights have 14.995 million numbers, and fit the model in this library's registry."""
        theirs = DLi14ResNet()
        assert sum(p.numel() for p in theirs.parameters()) == 14_995_848
        loaded = lambdanets.load_weights(timm.create_model("lambda_resnet50_llll"), theirs.state_dict())
        assert len(loaded.layers) == 16

    def test_adopted_models_read_the_files_of_the_originals(self, images):
        theirs = calibrate(randomise(LeaderResNet((1, 1, 1, 1), 5, k=4, m=5, u=2)).double(), images).eval()
        model = lambdanets.adopt(LeaderResNet((1, 1, 1, 1), 5, k=4, m=5, u=2).double(), faithful=True).model.eval()
        loaded = lambdanets.load_weights(model, theirs.state_dict())
        assert loaded.layers[0] == "layer1.0.conv2.0"
        assert_same(model, theirs, images)


class TestAdjustments:
    def test_a_bias_of_zeros_needs_no_parameter(self, peers):
        state = {
            n: torch.zeros_like(t) if "lambda_conv.bias" in n else t for n, t in peers["d-li14"].state_dict().items()
        }
        model = ours()
        assert lambdanets.load_weights(model, state).adjusted == ()
        assert all(m.position_bias is None for m in model.modules() if isinstance(m, LambdaLayer))

    def test_a_layer_with_a_bias_takes_it(self, peers, images):
        model = ours(lambda_args={"position_bias": True})
        assert lambdanets.load_weights(model, peers["d-li14"].state_dict()).adjusted == ()
        assert_same(model, peers["d-li14"], images)

    def test_they_are_told(self, peers):
        (told,) = lambdanets.load_weights(ours(), peers["d-li14"].state_dict()).adjusted
        assert told.startswith("layers that have a position bias now, as the weights do: 5 (layer1.0.conv2, ")
        (told,) = lambdanets.load_weights(ours(), peers["leaderj1001"].state_dict()).adjusted
        assert told.startswith(
            "layers with a 3x3 average pool of stride 1 behind them now, as there; a state dict does"
        )
        assert told.endswith("1 (layer1.0.conv2)")

    def test_a_model_that_took_biases_can_be_saved_and_made_again(self, tmp_path):
        model = timm.create_model("lambda_resnet_tiny", num_classes=5)
        biased = timm.create_model("lambda_resnet_tiny", num_classes=5, lambda_args={"position_bias": True})
        for layer in biased.modules():
            if isinstance(layer, LambdaLayer):
                nn.init.normal_(layer.position_bias)
        lambdanets.load_weights(model, dict(biased.state_dict()))
        save_for_hf(model, tmp_path, model_args=model._model_args)
        again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
        assert_untouched(again, biased.state_dict())

    def test_dtype_and_names_stay(self, peers):
        model = ours().float()
        names = list(model.state_dict())
        lambdanets.load_weights(model, peers["leaderj1001"].state_dict())
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert list(model.state_dict()) == names


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_untouched(model, before):
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


class TestWrongWeights:
    @pytest.mark.parametrize(
        ("model", "message"),
        [
            (lambda: ours(num_classes=7), r"fc.weight is \(5, 2048\), the model's \(7, 2048\).*num_classes=5"),
            (
                lambda: ours(lambda_args={"scope": 7}),
                r"5 of other shapes \(layer1.0.conv2.positions is \(1, 4, 5, 5\), the .* \(1, 4, 7, 7\).*2 more.*scope",
            ),
            (
                lambda: ours(stages="CLLL"),
                r"182 .* 1 missing \(layer1.0.conv2.weight\), 13 unknown to the model \(layer1.0.conv2.qkv",
            ),
            (lambda: timm.create_model("resnet18"), r"call lambdanets.adopt\(model\) first"),
        ],
    )
    def test_weights_of_another_model(self, peers, model, message):
        model = model()
        before = snapshot(model)
        with pytest.raises(ValueError, match=message) as error:
            lambdanets.load_weights(model, peers["d-li14"].state_dict())
        assert "already" not in str(error.value)
        assert "the weights of another model" in str(error.value)
        assert "Nothing was loaded" in str(error.value)
        assert_untouched(model, before)

    def test_a_model_that_is_not_adopted_yet(self, peers):
        with pytest.raises(ValueError, match=r"call lambdanets.adopt\(model\) first"):
            lambdanets.load_weights(DLi14ResNet(BLOCKS, 5, dk=4, r=5), peers["d-li14"].state_dict())

    @pytest.mark.parametrize(
        ("model", "remedy"),
        [
            (lambda: DLi14ResNet(BLOCKS, 5, dk=4, r=5), r"lambdanets.load_weights\(lambdanets.adopt\(model\).model"),
            (lambda: timm.create_model("resnet18"), "the model has no lambda layer"),
        ],
        ids=["theirs", "without lambda layers"],
    )
    def test_weights_that_are_adopted_already(self, model, remedy):
        with pytest.raises(ValueError, match=f"in this library's form already, .*{remedy}"):
            lambdanets.load_weights(model(), ours().state_dict())

    def test_not_strict(self, peers):
        state = peers["leaderj1001"].state_dict()
        del state["conv1.weight"]
        model = ours()
        kept = model.conv1.weight.clone()
        loaded = lambdanets.load_weights(model, {**state, "extra": torch.zeros(1)}, strict=False)
        assert (loaded.missing, loaded.unexpected) == (("conv1.weight",), ("extra",))
        assert "missing: conv1.weight" in str(loaded)
        assert torch.equal(model.conv1.weight, kept)
        with pytest.raises(ValueError, match="the weights of another model"):
            lambdanets.load_weights(model, {"a.weight": torch.zeros(2)}, strict=False)

    def test_two_orders(self):
        theirs = randomise(LambdaConv(8, 8, k=4, m=3, u=2))
        with pytest.raises(ValueError, match=r"u = 2.*two orders.*adopt\(model, faithful=True\)"):
            lambdanets.load_weights(LambdaLayer(8, dim_key=4, scope=3, intra_depth=2), theirs.state_dict())

    def test_layers_without_an_equal(self):
        theirs = LambdaConv(8, 8, k=4, m=3)
        theirs.keys.append(nn.BatchNorm2d(4))
        with pytest.raises(ValueError, match=r"the layer '0' looks like one of leaderj1001, but its keys pass"):
            lambdanets.load_weights(nn.Sequential(LambdaLayer(8, scope=3)), nn.Sequential(theirs).state_dict())


class TestBadInput:
    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ("lucidrain", "got 'lucidrain'; did you mean 'lucidrains'"),
            ("dli14", "did you mean 'd-li14'"),
            ("?", "known are timm, lucidrains, d-li14, leaderj1001, lambdanets, auto"),
        ],
    )
    def test_unknown_source(self, source, message):
        with pytest.raises(ValueError, match=message):
            lambdanets.load_weights(ours(), {}, source=source)

    def test_another_source(self, peers):
        with pytest.raises(ValueError, match="no lambda layer of timm: it has those of d-li14"):
            lambdanets.load_weights(ours(), peers["d-li14"].state_dict(), source="timm")
        with pytest.raises(ValueError, match=r"no lambda layer of timm: names begin a\.weight"):
            lambdanets.load_weights(ours(), {"a.weight": torch.zeros(1)}, source="timm")

    def test_untrusted_pickles_run_nothing(self, peers, tmp_path):
        ran = tmp_path / "ran"

        class Trap:
            def __reduce__(self):
                return Path.touch, (ran,)

        torch.save({"state_dict": peers["d-li14"].state_dict(), "args": Trap()}, tmp_path / "trap.pth")
        with pytest.raises(ValueError, match=r"trap.pth is a pickle.*refused.*save_file.*add_safe_globals"):
            lambdanets.load_weights(ours(), tmp_path / "trap.pth")
        assert not ran.exists()

    @pytest.mark.parametrize("text", ["<!DOCTYPE html>not found", "import torch", "hello"])
    def test_text_is_no_untrusted_pickle(self, tmp_path, text):
        (tmp_path / "page.pth").write_text(text)
        with pytest.raises(ValueError, match=r"page.pth is damaged or no file of weights") as error:
            lambdanets.load_weights(ours(), tmp_path / "page.pth")
        assert "pickle" not in str(error.value)

    def test_a_pointer_is_no_file(self, tmp_path):
        (tmp_path / "model.safetensors").write_text(
            "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
        )
        with pytest.raises(ValueError, match=r"pointer of Git LFS.*git lfs pull"):
            lambdanets.load_weights(ours(), tmp_path / "model.safetensors")

    def test_a_model_without_memory_is_refused(self, peers):
        with pytest.raises(ValueError, match=r"on the meta device.*to_empty"):
            lambdanets.load_weights(ours().to("meta"), peers["d-li14"].state_dict())

    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    @pytest.mark.parametrize("cut", [0, 5, 1000, -1000])
    def test_damaged_files(self, peers, tmp_path, suffix, cut):
        path = tmp_path / f"weights{suffix}"
        (torch.save if suffix == ".pth" else save_file)(peers["d-li14"].state_dict(), path)
        path.write_bytes(path.read_bytes()[:cut])
        with pytest.raises(ValueError, match=f"the checkpoint {path} is damaged"):
            lambdanets.load_weights(ours(), path)

    def test_files_of_something_else(self, tmp_path):
        (tmp_path / "words.pth").write_bytes(b"hello world")
        with pytest.raises(ValueError, match=r"words.pth is damaged or no file of weights \(KeyError: 101\)"):
            lambdanets.load_weights(ours(), tmp_path / "words.pth")

    def test_a_packed_archive_does_not_fill_the_memory(self, tmp_path):
        """A few bytes of a zip file can unpack to gigabytes; torch.save packs nothing."""
        torch.save({"fc.weight": torch.zeros(100_000)}, tmp_path / "plain.pt")
        with (
            zipfile.ZipFile(tmp_path / "plain.pt") as plain,
            zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
        ):
            for name in plain.namelist():
                bomb.writestr(name, plain.read(name))
        with pytest.raises(ValueError, match=r"bomb\.pt has packed entries, of 4\d\d,\d+ bytes unpacked"):
            lambdanets.load_weights(ours(), tmp_path / "bomb.pt")

    def test_a_pipe(self, tmp_path):
        os.mkfifo(tmp_path / "pipe.pt")
        with pytest.raises(ValueError, match=r"pipe\.pt is a pipe or a device; give a file"):
            lambdanets.load_weights(ours(), tmp_path / "pipe.pt")

    def test_files_without_weights(self, tmp_path):
        torch.save([1, 2], tmp_path / "list.pt")
        with pytest.raises(ValueError, match="holds a list, not weights by name"):
            lambdanets.load_weights(ours(), tmp_path / "list.pt")
        with pytest.raises(ValueError, match="the state dict holds no weights by name; it holds 'epoch'"):
            lambdanets.load_weights(ours(), {"epoch": 3})
        with pytest.raises(FileNotFoundError, match=r"no\.pth does not exist"):
            lambdanets.load_weights(ours(), tmp_path / "no.pth")
        with pytest.raises(FileNotFoundError, match="is a folder"):
            lambdanets.load_weights(ours(), tmp_path)
        with pytest.raises(TypeError, match="a path or a state dict, got int"):
            lambdanets.load_weights(ours(), 3)
        with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got str"):
            lambdanets.load_weights("lambda_resnet50_llll", {})


class Trainer(nn.Module):
    """As training frameworks wrap a model."""

    def __init__(self, model):
        super().__init__()
        self.model = model


@pytest.mark.parametrize(
    "wrap", [Trainer, nn.DataParallel, torch.compile, lambda model: Trainer(nn.DataParallel(model))]
)
@pytest.mark.parametrize("prefix", ["", "model.", "module.model."])
def test_models_whose_names_all_have_a_prefix(wrap, prefix):
    source, target = ours(), ours()
    weights = {
        prefix + name: torch.rand_like(t) if t.is_floating_point() else t for name, t in source.state_dict().items()
    }
    loaded = lambdanets.load_weights(wrap(target), weights)
    assert loaded.loaded == len(weights)
    for name, tensor in target.state_dict().items():
        assert torch.equal(tensor, weights[prefix + name]), name


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8), "has 1 tensor that is quantised, spar"),
        (lambda t: t.to_sparse(), "has 1 tensor that is quantised, sparse, nested or without memory, fc.weight the"),
        (lambda t: t.to("meta"), "has 1 tensor that is quantised, sparse, nested or without memory, fc.weight the"),
        (lambda t: torch.nested.nested_tensor([t]), "has 1 tensor that is quantised, sparse, nested or without"),
        (lambda t: t.to(torch.complex128), "numbers that the model's type cannot hold: fc.weight is torch.complex128"),
        (
            lambda t: t.int(),
            "numbers that the model's type cannot hold: fc.weight is torch.int32, the model's torch.float",
        ),
        (lambda t: t.double() + 1e300, "numbers that the model's type cannot hold: fc.weight is torch.float64"),
    ],
    ids=["quantised", "sparse", "meta", "nested", "complex", "whole numbers", "too large"],
)
@pytest.mark.filterwarnings("ignore:.*quantize", "ignore:.*[Ss]parse", "ignore:.*nested")
def test_weights_that_cannot_be_copied_change_nothing(spoil, message):
    model = ours().float()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights = {name: torch.zeros_like(tensor) for name, tensor in before.items()}
    weights["fc.weight"] = spoil(weights["fc.weight"])
    with pytest.raises(ValueError, match=message):
        lambdanets.load_weights(model, weights)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_weights_of_eight_bits_are_converted():
    """PyTorch has no test for finite numbers of this type."""
    model = ours().float()
    weights = {**model.state_dict(), "fc.weight": model.fc.weight.to(torch.float8_e4m3fn)}
    assert lambdanets.load_weights(model, weights).loaded == len(weights)


def test_weights_of_another_precision_are_converted():
    model = ours().float()
    weights = {
        name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in ours().state_dict().items()
    }
    assert lambdanets.load_weights(model, weights).loaded == len(weights)


def test_a_file_that_holds_itself_or_has_no_names_is_refused():
    inside = {}
    inside["state_dict"] = {"model": inside}
    with pytest.raises(ValueError, match="holds itself under 'model'"):
        lambdanets.load_weights(ours(), inside)
    with pytest.raises(ValueError, match="holds a tensor under 1, which is no name"):
        lambdanets.load_weights(ours(), {1: torch.ones(1), **ours().state_dict()})


def copies(module, state, prefix, metadata):
    for name in state:
        state[name] = state[name].detach().clone()


class WithExtra(nn.Linear):
    def get_extra_state(self):
        return torch.ones(1)

    def set_extra_state(self, state):
        pass


@pytest.mark.parametrize("how", ["hook", "extra"])
def test_a_state_dict_that_is_not_the_models_own_tensors_is_refused(how):
    """What is copied into it never reaches the model."""
    model = nn.Linear(2, 2) if how == "hook" else WithExtra(2, 2)
    weights = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    if how == "hook":
        model.register_state_dict_post_hook(copies)
    with pytest.raises(ValueError, match=r"the state dict of .* has '(weight|_extra_state)', which is no parameter or"):
        lambdanets.load_weights(model, weights)


def test_tensors_that_cannot_be_written_change_nothing():
    model = nn.Linear(2, 2)
    model.register_buffer("scale", torch.ones(1).expand(3))
    weights = {"weight": torch.zeros(2, 2), "bias": torch.zeros(2), "scale": torch.zeros(3)}
    before = model.weight.clone()
    with pytest.raises(ValueError, match="got scale, which is expanded or was made in inference mode"):
        lambdanets.load_weights(model, weights)
    assert torch.equal(model.weight, before)
    with torch.inference_mode():
        fixed = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="got weight, which is expanded or was made in inference mode"):
        lambdanets.load_weights(fixed, {"weight": torch.zeros(2, 2), "bias": torch.zeros(2)})


@pytest.mark.parametrize(("dtype", "values"), [(torch.uint8, [300, -1]), (torch.bool, [2, 0])])
def test_whole_numbers_that_a_type_cannot_hold_are_refused(dtype, values):
    model = nn.Module()
    model.register_buffer("marks", torch.zeros(2, dtype=dtype))
    with pytest.raises(ValueError, match=r"1 tensor with numbers that the model's type cannot hold: marks is"):
        lambdanets.load_weights(model, {"marks": torch.tensor(values)})
    assert lambdanets.load_weights(model, {"marks": torch.tensor([1, 0])}).loaded == 1
    assert model.marks.tolist() == [1, 0]


def test_a_layer_of_timm_with_a_stride_does_not_fit_one_that_averages_more():
    """timm's averages 2x2 positions, ours 3x3; an adopted one keeps timm's."""
    theirs = nn.Sequential(TimmLayer(16, stride=2, r=3, dim_head=4))
    model = nn.Sequential(LambdaLayer(16, stride=2, scope=3, dim_key=16, position_bias=True))
    with pytest.raises(ValueError, match=r"the layer '0' of timm, .* averages 2x2 positions, and the model's .* 3x3"):
        lambdanets.load_weights(model, theirs.state_dict())
    adopted = lambdanets.adopt(nn.Sequential(TimmLayer(16, stride=2, r=3, dim_head=4))).model
    assert lambdanets.load_weights(adopted, theirs.state_dict()).source == "timm"


def test_a_part_of_a_layer_of_leaderj1001_is_none():
    weights = {f"a.{name}.0.weight": torch.zeros(4, 4, 1, 1) for name in ("queries", "keys", "values")}
    with pytest.raises(ValueError, match=r"its embedding is no parameter of its own|unknown to the model"):
        lambdanets.load_weights(nn.Linear(2, 2), weights | {"a.embedding.weight": torch.zeros(4, 4)})


@pytest.mark.parametrize("zipped", [True, False])
def test_every_changed_byte_is_damage_or_harmless(tmp_path, zipped):
    """What the unpickler makes of it may be any error."""
    file = tmp_path / "a.pth"
    torch.save({"weight": torch.zeros(2, 2), "bias": torch.zeros(2)}, file, _use_new_zipfile_serialization=zipped)
    content = file.read_bytes()
    for place in range(0, min(len(content), 420), 3):
        file.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        with contextlib.suppress(ValueError):
            lambdanets.load_weights(nn.Linear(2, 2), file)


def test_an_entry_without_tensors_does_not_hide_the_weights():
    weights = {"weight": torch.zeros(2, 2), "bias": torch.zeros(2)}
    loaded = lambdanets.load_weights(nn.Linear(2, 2), {"model_ema": {"decay": 0.9}, "state_dict": weights})
    assert loaded.entry == ("state_dict",)
