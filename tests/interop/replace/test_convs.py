"""Lambda layers in place of convolutions: which, with what, and what stays as it was."""

import io

import pytest
import timm
import torch
import torchvision
from rich.console import Console
from torch import nn

from lambdanets import LambdaLayer, plan_convs, replace_convs
from lambdanets.interop.tree import is_lambda

SMALL = {"scope": 7}


def lambda_names(model):
    return [name for name, module in model.named_modules() if isinstance(module, LambdaLayer)]


def millions(model):
    return sum(p.numel() for p in model.parameters()) / 1e6


def meta(make, *args, **options):
    with torch.device("meta"):
        return make(*args, **options)


def tiny_resnet(**options):
    return timm.create_model("test_resnet", num_classes=5, **options)


@pytest.mark.parametrize(
    ("stages", "expected"), [("LLLL", 14.995592), ("CCLL", 15.56), ("CLLL", 15.06), ("CCCL", 18.83), ("LLLC", 21.73)]
)
def test_the_papers_models_are_one_line(stages, expected, capsys):
    model = replace_convs(meta(timm.create_model, "resnet50"), stages=stages)
    assert millions(model) == pytest.approx(expected, abs=1e-6 if stages == "LLLL" else 0.005)
    assert f"25.56 M -> {expected:.2f} M" in capsys.readouterr().out


def test_torchvisions_resnet_counts_the_same():
    assert plan_convs(meta(torchvision.models.resnet50), stages="LLLL").parameters_after == 14_995_592


def test_all_lambda_has_the_weights_of_our_own_model():
    ours = meta(timm.create_model, "lambda_resnet50_llll").state_dict()
    swapped = replace_convs(meta(timm.create_model, "resnet50"), stages="LLLL", verbose=False).state_dict()
    assert {n: t.shape for n, t in swapped.items()} == {n: t.shape for n, t in ours.items()}


def test_a_pattern_within_a_stage_repeats_over_its_blocks():
    model = meta(timm.create_model, "resnet50")
    replace_convs(model, stages="C-C-CL-L", verbose=False)
    places = [f"layer3.{i}.conv2" for i in (1, 3, 5)] + [f"layer4.{i}.conv2" for i in (0, 1, 2)]
    assert lambda_names(model) == places


@pytest.mark.parametrize(
    "choice",
    [
        {"names": "layer4.*.conv2"},
        {"names": ["layer4.0.conv2", "layer4.[1-9].conv2"]},
        {"where": lambda name, conv: conv.out_channels == 512 and "layer4" in name and name.endswith("conv2")},
    ],
    ids=["glob", "globs", "where"],
)
def test_choice_by_name_and_by_function(choice):
    model = meta(timm.create_model, "resnet18")
    replace_convs(model, verbose=False, **choice)
    assert lambda_names(model) == ["layer4.0.conv2", "layer4.1.conv2"]


def test_everything_else_stays_the_same_object_with_the_same_numbers():
    model = tiny_resnet()
    for statistic in model.buffers():
        if statistic.is_floating_point():
            nn.init.uniform_(statistic, 0.5, 1.5)
    objects = dict(model.named_parameters()) | dict(model.named_buffers())
    numbers = {name: tensor.detach().clone() for name, tensor in objects.items()}
    plan = plan_convs(model, stages="CCLL", lambda_args=SMALL)
    assert not lambda_names(model)
    assert plan.apply() is model
    after = dict(model.named_parameters()) | dict(model.named_buffers())
    gone = {f"{change.name}.weight" for change in plan.changes}
    assert set(objects) - set(after) == gone
    for name in set(objects) - gone:
        assert after[name] is objects[name]
        assert torch.equal(after[name], numbers[name])
    assert plan.parameters_after == sum(p.numel() for p in model.parameters())
    assert plan.parameters_before == sum(t.numel() for n, t in numbers.items() if isinstance(objects[n], nn.Parameter))


@pytest.mark.parametrize("training", [True, False])
def test_device_dtype_mode_stride_and_widths(training):
    model = tiny_resnet().double().train(training)
    old = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    replace_convs(model, stages="CLLL", lambda_args=SMALL, verbose=False)
    strides = set()
    for name in lambda_names(model):
        layer, conv = model.get_submodule(name), old[name]
        assert (layer.dim, layer.dim_out, layer.stride) == (conv.in_channels, conv.out_channels, conv.stride[0])
        assert {p.dtype for p in layer.parameters()} == {torch.float64}
        assert all(module.training is training for module in layer.modules())
        strides.add(layer.stride)
    assert strides == {1, 2}


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [(1, 1), (7, 10), (8, 9)])
@pytest.mark.parametrize("kernel", [3, 5])
def test_output_has_the_size_of_the_convolutions(stride, size, kernel):
    conv = nn.Conv2d(4, 8, kernel, stride=stride, padding=2 * (kernel // 2), dilation=2, groups=2)
    x = torch.randn(2, 4, *size)
    expected = conv(x).shape
    layer = replace_convs(conv, names="*", verbose=False)
    assert isinstance(layer, LambdaLayer)
    assert layer(x).shape == expected


def test_one_and_three_dimensions():
    for conv, ndim in ((nn.Conv1d(4, 8, 3, padding=1), 1), (nn.Conv3d(4, 8, 3, padding="same"), 3)):
        layer = replace_convs(conv, names="*", verbose=False)
        assert layer.ndim == ndim
        assert layer(torch.randn(2, 4, *[5] * ndim)).shape == (2, 8, *[5] * ndim)


def test_global_layers_of_each_maps_size():
    model = replace_convs(
        timm.create_model("resnet18"), stages="CCLL", lambda_args={"size": "auto"}, img_size=(64, 96), verbose=False
    )
    sizes = {name: model.get_submodule(name).size for name in lambda_names(model)}
    assert sizes["layer3.0.conv1"] == (8, 12)  # before its stride
    assert sizes["layer3.0.conv2"] == sizes["layer4.0.conv1"] == (4, 6)
    assert sizes["layer4.1.conv2"] == (2, 3)
    assert model(torch.randn(2, 3, 64, 96)).shape == (2, 1000)


def test_a_shared_convolution_is_made_for_its_largest_map():
    conv = nn.Conv2d(4, 4, 3, padding=1)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AvgPool2d((2, 1)), conv, nn.Upsample(scale_factor=(2, 0.5)), conv)
    replace_convs(model, names="2", lambda_args={"size": "auto"}, example=torch.randn(1, 3, 8, 8), verbose=False)
    assert model[2].size == (8, 8)


def test_a_plan_serves_once():
    plan = plan_convs(tiny_resnet(), stages="CCLL")
    plan.apply()
    with pytest.raises(ValueError, match="make a new plan"):
        plan.apply()


def test_planning_changes_nothing_of_a_model_in_training():
    """Running without numbers moves no statistics and takes no random number."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(), nn.Conv2d(4, 4, 3, padding=1))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    plan_convs(model, names="3", lambda_args={"size": "auto"}, img_size=9)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_shared_convolution_stays_shared():
    conv = nn.Conv2d(4, 4, 3, padding=1)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), conv, nn.ReLU(), conv)
    plan = plan_convs(model, names="3")
    plan.apply()
    assert isinstance(model[1], LambdaLayer)
    assert model[1] is model[3]
    assert "also 3" in plan.changes[0].notes


class CallsFromElsewhere(nn.Module):
    """Registers convolutions, and calls them from a list, a dict and an attribute that PyTorch does not know."""

    def __init__(self):
        super().__init__()
        convs = [nn.Conv2d(4, 4, 3, padding=1) for _ in range(3)]
        self.convs = nn.ModuleList(convs)
        self.listed, self.named = convs[:1], {"second": convs[1]}
        object.__setattr__(self, "third", convs[2])

    def forward(self, x):
        return self.third(self.named["second"](self.listed[0](x)))


def test_convolutions_that_are_called_from_elsewhere_are_replaced_there():
    model = CallsFromElsewhere()
    replace_convs(model, names="convs.*", lambda_args=SMALL, verbose=False)
    assert [model.listed[0], model.named["second"], model.third] == list(model.convs)
    model(torch.randn(2, 4, 8, 8)).sum().backward()
    assert all(layer.positions.grad is not None for layer in model.convs)


def test_a_weight_that_another_convolution_shares_is_counted_on():
    model = nn.Sequential(*[nn.Conv2d(4, 4, 3, padding=1) for _ in range(2)])
    model[1].weight = model[0].weight
    plan = plan_convs(model, names="1", lambda_args=SMALL)
    assert plan.parameters_before == sum(p.numel() for p in model.parameters())
    assert plan.parameters_after == sum(p.numel() for p in plan.apply().parameters())


def test_notes_of_what_has_no_counterpart():
    model = nn.Sequential(
        nn.Conv2d(6, 6, 3, padding=4, dilation=4, groups=6, padding_mode="reflect").requires_grad_(False)
    )
    (change,) = plan_convs(model, names="0", lambda_args={"scope": 3}).changes
    assert change.notes == (
        "mixes all channels",
        "dilation 4 dropped",
        "sees less than the convolution's 9",
        "bias dropped",
        "padding mode reflect dropped",
        "was frozen, is trainable",
        "3 heads divide 6",
    )
    assert change.old == "Conv2d 3x3 6->6, dilation 4, groups 6"
    assert change.parameters_before == 6 * 9 + 6


def test_output_keeps_a_sane_variance():
    """About 1 in training; in evaluation it explodes neither at once nor after some training."""
    model = timm.create_model("resnet18").eval()
    replace_convs(model, where=lambda name, _: name.endswith("conv2"), lambda_args=SMALL, verbose=False)
    found = []
    for name in lambda_names(model):
        model.get_submodule(name).register_forward_hook(lambda *args: found.append(args[2].var().item()))

    def variances():
        found.clear()
        model(torch.randn(4, 3, 64, 64))
        return found

    assert all(0 < variance < 10 for variance in variances())
    model.train()
    for _ in range(3):
        assert all(0.05 < variance < 10 for variance in variances())
    model.eval()
    assert all(0 < variance < 10 for variance in variances())


def test_trains_on():
    """Train a ResNet, swap, train on: the loss falls from where the swap put it."""
    torch.manual_seed(0)
    model = tiny_resnet().train()
    x, y = torch.randn(10, 3, 32, 32), torch.arange(10) % 5

    def losses(steps):
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        found = []
        for _ in range(steps):
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        return found

    losses(8)
    replace_convs(model, stages="CCLL", lambda_args=SMALL, verbose=False)
    after = losses(12)
    assert after[-1] < 0.5 * after[0]
    assert all(p.grad is not None for p in model.parameters())


def test_wider_convolutions_in_the_stages_are_told():
    plan = plan_convs(timm.create_model("efficientnet_b0"), stages="CCCCLLL")
    assert [change.name for change in plan.changes] == ["blocks.6.0.conv_dw"]
    assert len(plan.kept) == 7
    assert all("5x5" in kept.old and "names=" in kept.reason for kept in plan.kept)
    assert "blocks.4.0.conv_dw" in str(plan)


class ReadsWeight(nn.Module):
    """Calls one convolution, and reads the weight of the other."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return nn.functional.conv2d(self.first(x), self.second.weight, padding=1)


class LooksAtNumbers(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x):
        return self.conv(x if x.sum() > 0 else -x)


def test_a_model_that_does_not_run_with_the_layers_is_put_back():
    model = nn.Sequential(ReadsWeight(), nn.ReLU())
    second = model[0].second
    with pytest.raises(ValueError, match=r"put back: .*module '0' \(ReadsWeight\).*no attribute 'weight'"):
        replace_convs(model, names="0.second")
    assert model[0].second is second


def test_a_model_that_cannot_be_traced_names_the_module():
    model = nn.Sequential(nn.Identity(), LooksAtNumbers())
    message = r"cannot trace Sequential: in module '1' \(LooksAtNumbers\): .*depends on the numbers.*or the size itself"
    with pytest.raises(ValueError, match=message):
        replace_convs(model, names="1.conv", lambda_args={"size": "auto"})


def told(plan):
    """The printed plan as one line."""
    return " ".join(str(plan).split())


def test_a_model_that_is_not_run_says_so():
    """A local layer needs no run: the change is made, and that nobody checked it is told."""
    plan = plan_convs(nn.Sequential(nn.Identity(), LooksAtNumbers()), names="1.conv")
    assert plan.not_run is not None
    assert "in module '1' (LooksAtNumbers)" in plan.not_run
    assert "guessed input of 2x3x224x224" in plan.not_run
    assert f"not run: {plan.not_run}; give example=... to check it" in told(plan)
    model = plan.apply()
    assert lambda_names(model) == ["1.conv"]
    assert model(torch.randn(2, 3, 5, 5)).shape == (2, 4, 5, 5)


def test_a_model_that_is_run_says_nothing():
    plan = plan_convs(tiny_resnet(), stages="CCLL")
    assert plan.not_run is None
    assert "not run" not in str(plan)


def test_a_video_model_for_which_no_size_can_be_guessed(capfd, caplog):
    """Its own pooling refuses the guess; PyTorch's log of that, with a traceback, is none of the user's concern."""
    choice = {"names": "features.15.branch1.1.0.0", "lambda_args": {"scope": 3}}
    plan = plan_convs(meta(torchvision.models.video.s3d), **choice)
    assert "in module 'avgpool' (AvgPool3d)" in plan.not_run
    assert not caplog.records
    assert "Traceback" not in capfd.readouterr().err
    clip = torch.empty(1, 3, 16, 224, 224, device="meta")
    assert plan_convs(plan.model, example=clip, **choice).not_run is None


def parametrised():
    return nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3, padding=1))


def hooked():
    conv = nn.Conv2d(4, 4, 3, padding=1)
    conv.register_forward_hook(lambda *_: None)
    return conv


class TwoInputs(nn.Conv2d):
    def forward(self, x, offset):
        return super().forward(x + offset)


@pytest.mark.parametrize(
    ("conv", "reason"),
    [
        (nn.Conv2d(4, 4, 3), r"padding \(0, 0\) .* \(1, 1\)"),
        (nn.Conv2d(4, 4, 4, padding=2), "an even kernel has no centre"),
        (nn.Conv2d(4, 4, 3, stride=(2, 1), padding=1), r"strides \(2, 1\) differ"),
        (nn.Conv2d(4, 4, 3, padding="valid"), "padding valid"),
        (nn.LazyConv2d(4, 3, padding=1), "not made yet"),
        (parametrised(), "parametrised; call .*remove_parametrizations"),
        (hooked(), "hooks .* would be lost"),
        (TwoInputs(4, 4, 3, padding=1), "more than one input"),
    ],
    ids=lambda case: case if isinstance(case, str) else type(case).__name__,
)
def test_what_cannot_be_replaced_says_why(conv, reason):
    with pytest.raises(ValueError, match=rf"none of the chosen convolutions can be replaced: 0 \(.*{reason}"):
        replace_convs(nn.Sequential(conv), names="0")
    # Beside one that can be, it is kept, and the table says so.
    plan = plan_convs(nn.Sequential(conv, nn.Conv2d(4, 4, 3, padding=1)), names=["0", "1"])
    assert [change.name for change in plan.changes] == ["1"]
    assert plan.kept[0].name == "0"
    assert plan.kept[0].reason in told(plan)


def resnet():
    return meta(timm.create_model, "resnet18")


def test_ctrl_c_during_the_check_puts_all_back():
    model = timm.create_model("resnet18")
    plan = plan_convs(model, stages="CCLL", lambda_args=SMALL)

    def interrupted(changed):
        raise KeyboardInterrupt

    object.__setattr__(plan, "_check", interrupted)
    with pytest.raises(KeyboardInterrupt):
        plan.apply()
    assert not any(isinstance(module, LambdaLayer) for module in model.modules())


def test_the_table_needs_no_more_than_ascii(monkeypatch):
    plan = plan_convs(timm.create_model("resnet18"), stages="CCLL", lambda_args=SMALL)
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", out)
    Console(width=160).print(plan)
    out.flush()
    assert b"->" in out.buffer.getvalue()


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (resnet, {}, "exactly one of stages, where and names .* got none"),
        (resnet, {"stages": "CCLL", "names": "*"}, r"exactly one .* got stages='CCLL', names='\*'"),
        (resnet, {"stages": "CCL"}, r"'CCL', which has 3 stages, not 4; ResNet has 4 stages: layer1 \(2 blocks\)"),
        (resnet, {"stages": "CCXL"}, "got 'CCXL'"),
        (resnet, {"stages": 5}, "stages must be one letter a stage.* got 5"),
        (resnet, {"names": []}, "names must be a glob or several of them, got none; .*are conv1"),
        (resnet, {"stages": "CCLL", "img_size": -5}, "img_size must be positive ints, got -5"),
        (resnet, {"stages": "CCLL", "img_size": (1, 2, 3)}, r"img_size must be an int or 2 of them.*got \(1, 2, 3\)"),
        (resnet, {"stages": "CCCC"}, "has no L"),
        (resnet, {"names": "layer5.*.conv2"}, "matches no module; the nearest are layer4.1.conv2"),
        (resnet, {"names": "layer4.0.bn2"}, "layer4.0.bn2 is a BatchNorm2d; the nearest are layer4.0.conv2"),
        (resnet, {"where": lambda *_: False}, "false for all 17 spatial convolutions: conv1, layer1.0.conv1"),
        (resnet, {"stages": "CCLL", "lambda_args": {"scop": 7}}, "'scop'.* did you mean 'scope'"),
        (resnet, {"stages": "CCLL", "lambda_args": {"stride": 2}}, "'stride': it is taken from each convolution"),
        (resnet, {"stages": "CCLL", "lambda_args": {"scope": 4}}, "do not fit layer3.0.conv1 .*scope must be odd"),
        (resnet, {"stages": "CCLL", "lambda_args": {"num_heads": 3}}, "num_heads=3 does not divide its 256"),
        (resnet, {"stages": "CCLL", "lambda_args": {"num_heads": 0}}, "num_heads must be a positive int, got 0"),
        (resnet, {"stages": "CCLL", "lambda_args": {"size": 7}}, r"put back: .*module 'layer3.0.conv1'.*\(28, 28\)"),
        (lambda: nn.Linear(2, 2), {"names": "*"}, "Linear has no spatial convolution"),
        (lambda: timm.create_model("test_vit"), {"stages": "CCLL"}, "needs a model with stages.*its children are"),
        (lambda: meta(timm.create_model, "lambda_resnet26t"), {"stages": "CCCL"}, "2 lambda layers already"),
        (
            lambda: meta(timm.create_model, "convnext_atto"),
            {"stages": "CCCL"},
            r"no 3x3 convolution; wider than 1x1 are .*stages.3.blocks.0.conv_dw \(Conv2d 7x7",
        ),
    ],
)
def test_bad_input(make, options, message):
    model = make()
    with pytest.raises(ValueError, match=message):
        replace_convs(model, **options)
    assert not any(isinstance(module, LambdaLayer) for module in model.modules())


def test_not_a_module_or_not_open():
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got str"):
        replace_convs("resnet50", stages="CCLL")
    with pytest.raises(TypeError, match="lambda_args must be a mapping of names to values, got 'scope'"):
        replace_convs(resnet(), stages="CCLL", lambda_args="scope")
    with pytest.raises(TypeError, match="where must be a function"):
        replace_convs(resnet(), where="layer4")


class MaskedConv2d(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(x, self.weight * 0.5, self.bias)


class LambdaShortcut(nn.Module):
    """As in ResNets for CIFAR-10, where its name is LambdaLayer."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


LambdaShortcut.__name__ = "LambdaLayer"


def test_what_a_convolution_of_another_class_adds_is_told():
    model = nn.Sequential(MaskedConv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1))
    masked, plain = plan_convs(model, names="*", example=torch.zeros(1, 8, 8, 8)).changes
    assert "what MaskedConv2d.forward adds is dropped" in masked.notes
    assert not any("forward" in note for note in plain.notes)


def test_a_shortcut_of_a_function_is_no_lambda_layer():
    assert not is_lambda(LambdaShortcut(torch.relu))
    model = nn.Sequential(LambdaShortcut(torch.relu), nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"Sequential has no spatial convolution$"):
        plan_convs(model, names="*")
