"""Stages of the families of timm and torchvision: which there are, and what replacing their convolutions leaves."""

import pytest
import timm
import torch
import torchvision
from torch import nn
from torchvision.models import detection, segmentation

from lambdanets import LambdaLayer, plan_convs, replace_convs
from lambdanets.interop.replace.stages import find_stages

SMALL = {"scope": 7}


def lambda_names(model):
    return [name for name, module in model.named_modules() if isinstance(module, LambdaLayer)]


def meta(make, *args, **options):
    with torch.device("meta"):
        return make(*args, **options)


def timms(name, **options):
    return lambda: meta(timm.create_model, name, **options)


def torchvisions(name):
    return lambda: meta(getattr(torchvision.models, name), weights=None)


def places(template, numbers):
    return [template.format(number) for number in numbers]


RESNET = "layer1:3 layer2:4 layer3:6 layer4:3"
DENSE = (2, 3, 2, 2)
DENSENET = " ".join(f"features.denseblock{i}:{n}" for i, n in enumerate(DENSE, 1))
EFFICIENTNET = [1, 2, 2, 3, 3, 4, 1]
# What a stage is in each family, by its name and number of blocks, and where the layers of one stage come to stand.
FAMILIES = {
    "resnet18": (
        timms("resnet18", down_kernel_size=3),  # 3x3 convolutions in the shortcuts, which stay
        "layer1:2 layer2:2 layer3:2 layer4:2",
        [f"layer4.{block}.conv{i}" for block in (0, 1) for i in (1, 2)],
    ),
    "resnext50": (timms("resnext50_32x4d"), RESNET, places("layer4.{}.conv2", range(3))),
    "resnetaa50": (timms("resnetaa50"), RESNET, places("layer4.{}.conv2", range(3))),  # blurs instead of strides
    "ecaresnet26t": (  # one-dimensional convolutions over channels, which stay
        timms("ecaresnet26t"),
        "layer1:2 layer2:2 layer3:2 layer4:2",
        places("layer4.{}.conv2", range(2)),
    ),
    "nf_resnet26": (  # standardised weights
        timms("nf_resnet26"),
        "stages.0:2 stages.1:2 stages.2:2 stages.3:2",
        places("stages.3.{}.conv2", range(2)),
    ),
    "regnety_002": (timms("regnety_002"), "s1:1 s2:1 s3:4 s4:7", places("s4.b{}.conv2.conv", range(1, 8))),
    "torchvision-resnext50": (torchvisions("resnext50_32x4d"), RESNET, places("layer4.{}.conv2", range(3))),
    "densenet": (
        timms("densenet121", block_config=DENSE),
        DENSENET,
        places("features.denseblock1.denselayer{}.conv2", (1, 2)),
    ),
    "torchvision-densenet": (
        lambda: meta(torchvision.models.DenseNet, block_config=DENSE),
        DENSENET,
        places("features.denseblock1.denselayer{}.conv2", (1, 2)),
    ),
    "mobilenetv2": (
        timms("mobilenetv2_050"),
        "blocks.0:1 blocks.1:2 blocks.2:3 blocks.3:4 blocks.4:3 blocks.5:3 blocks.6:1",
        ["blocks.6.0.conv_dw"],
    ),
    "mobilenetv3": (  # 5x5 convolutions in the last stage, and one of 1x1 behind it
        timms("mobilenetv3_large_100"),
        "blocks.0:1 blocks.1:2 blocks.2:3 blocks.3:4 blocks.4:2 blocks.5:3",
        places("blocks.4.{}.conv_dw", (0, 1)),
    ),
    "tf_efficientnet": (  # padding that is computed at run time, as TensorFlow does
        timms("tf_efficientnet_b0"),
        " ".join(f"blocks.{i}:{n}" for i, n in enumerate(EFFICIENTNET)),
        ["blocks.6.0.conv_dw"],
    ),
    "torchvision-regnet": (
        lambda: torchvision.models.regnet_y_400mf(weights=None).to("meta"),
        "trunk_output.block1:1 trunk_output.block2:3 trunk_output.block3:6 trunk_output.block4:6",
        places("trunk_output.block4.block4-{}.f.b.0", range(6)),
    ),
    "torchvision-mobilenet_v2": (
        torchvisions("mobilenet_v2"),
        "features.1:1 features.2 to 3:2 features.4 to 6:3 features.7 to 13:7 features.14 to 17:4",
        places("features.{}.conv.1.0", range(14, 18)),
    ),
    "torchvision-mobilenet_v3": (
        torchvisions("mobilenet_v3_large"),
        "features.1:1 features.2 to 3:2 features.4 to 6:3 features.7 to 12:6 features.13 to 15:3",
        places("features.{}.block.1.0", range(7, 13)),
    ),
    "torchvision-efficientnet": (
        torchvisions("efficientnet_b0"),
        " ".join(f"features.{i}:{n}" for i, n in enumerate(EFFICIENTNET, 1)),
        ["features.7.0.block.1.0"],
    ),
    "torchvision-vgg": (
        torchvisions("vgg11"),
        "features.3:1 features.6 to 8:2 features.11 to 13:2 features.16 to 18:2",
        ["features.16", "features.18"],
    ),
}


def outline(stages):
    return " ".join(f"{stage.name}:{len(stage.blocks)}" for stage in stages)


def letters(stages, layers):
    """An L for each stage that is to have one of the layers, a C for the others."""
    starts = [tuple(f"{block}." for block, _ in stage.blocks) for stage in stages]
    return "".join("L" if any(f"{layer}.".startswith(start) for layer in layers) else "C" for start in starts)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_of_timm_and_torchvision(family):
    make, stages, layers = FAMILIES[family]
    model = make()
    found = find_stages(model)
    assert outline(found) == stages
    weights = dict(model.named_parameters()) | dict(model.named_buffers())
    replace_convs(model, stages=letters(found, layers), lambda_args=SMALL, verbose=False)
    assert lambda_names(model) == layers
    after = dict(model.named_parameters()) | dict(model.named_buffers())
    gone = {name for name in weights if name.rpartition(".")[0] in layers}
    assert all(after[name] is weights[name] for name in set(weights) - gone)
    device = next(model.parameters()).device
    assert model(torch.empty(2, 3, 64, 96, device=device)).shape == (2, 1000)


@pytest.mark.parametrize(
    ("make", "names", "count"),
    [
        (timms("mobilenetv3_large_100"), "blocks.5.*.conv_dw", 3),
        (torchvisions("mobilenet_v3_large"), "features.1[3-5].block.1.0", 3),
    ],
    ids=["timm", "torchvision"],
)
def test_kernels_of_5x5_are_chosen_by_name(make, names, count):
    model = replace_convs(make(), names=names, lambda_args=SMALL, verbose=False)
    assert len(lambda_names(model)) == count
    assert model(torch.empty(2, 3, 64, 96, device="meta")).shape == (2, 1000)


# Networks for segmentation and detection around a MobileNet: the class, and what stands for "features." in its stages.
BACKBONES = {
    "lraspp": (segmentation.lraspp_mobilenet_v3_large, "backbone."),  # dilated where the MobileNet strides
    "fasterrcnn": (detection.fasterrcnn_mobilenet_v3_large_fpn, "backbone.body."),
    "ssdlite": (detection.ssdlite320_mobilenet_v3_large, "backbone.features.0."),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_backbones_have_the_stages_of_the_mobilenet(name):
    make, prefix = BACKBONES[name]
    found = find_stages(meta(make, weights=None, weights_backbone=None))
    expected = FAMILIES["torchvision-mobilenet_v3"][1].replace("features.", prefix)
    if name == "ssdlite":  # cut in two within a block, to take the map between its convolutions
        expected = expected.replace("0.13 to 15", "1.0 to 2")
    assert outline(found) == expected


def test_a_segmentation_network_around_a_mobilenet():
    model = meta(segmentation.lraspp_mobilenet_v3_large, weights=None, weights_backbone=None)
    replace_convs(model, stages="CCCLC", lambda_args=SMALL, verbose=False)
    assert lambda_names(model) == places("backbone.{}.block.1.0", range(7, 13))
    assert model(torch.empty(2, 3, 64, 64, device="meta"))["out"].shape == (2, 21, 64, 64)


@pytest.mark.parametrize("name", ["fasterrcnn", "ssdlite"])
def test_detectors_around_a_mobilenet(name, capsys):
    """A detector takes a list of images: it is not run by replace_convs, and finds boxes afterwards."""
    make, prefix = BACKBONES[name]
    model = make(weights=None, weights_backbone=None, num_classes=2).eval()
    model.transform.min_size, model.transform.max_size, model.transform.fixed_size = (64,), 64, (64, 64)
    replace_convs(model, stages="CCCLC", lambda_args=SMALL)
    assert "not run: " in capsys.readouterr().out
    assert lambda_names(model) == places(f"{prefix}{{}}.block.1.0", range(7, 13))
    assert model([torch.rand(3, 64, 64)])[0]["boxes"].shape[1] == 4


@pytest.mark.parametrize("name", ["resnext26ts", "mobilenetv2_050"])
def test_grouped_and_depthwise_convolutions_train(name):
    model = timm.create_model(name, num_classes=3)
    count = len(find_stages(model))
    replace_convs(model, stages="C" * (count - 1) + "L", lambda_args=SMALL, verbose=False)
    model(torch.randn(2, 3, 64, 64)).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_features_only_and_nested_models():
    features = timm.create_model("resnet18", features_only=True)
    model = nn.Sequential(nn.ModuleDict({"encoder": features}), nn.Identity())
    replace_convs(model, stages=("C", "C", "C", "CL"), verbose=False)
    assert lambda_names(model) == ["0.encoder.layer4.1.conv1", "0.encoder.layer4.1.conv2"]
    assert [f.shape[1] for f in features(torch.randn(1, 3, 64, 64))] == [64, 64, 128, 256, 512]


def test_a_segmentation_model_with_dilation():
    model = meta(torchvision.models.segmentation.deeplabv3_resnet50, weights=None, weights_backbone=None)
    plan = plan_convs(model, stages="CCCL")
    assert [change.old for change in plan.changes][1:] == ["Conv2d 3x3 512->512, dilation 4"] * 2
    assert [change.notes for change in plan.changes][1:] == [("dilation 4 dropped",)] * 2
    plan.apply()
    assert model(torch.empty(2, 3, 64, 64, device="meta"))["out"].shape == (2, 21, 64, 64)


@pytest.mark.parametrize("name", ["repvgg_a0", "mobileone_s0"])
def test_blocks_that_merge_their_branches(name):
    """They run with lambda layers among the branches; what merges convolutions afterwards cannot, and is noted."""
    model = timm.create_model(name).eval()
    merged = timm.utils.reparameterize_model(model)
    plan = plan_convs(model, stages="CCCL", lambda_args=SMALL)
    block = type(model.stages[3][0]).__name__
    assert all(f"{block}.reparameterize() may no longer run" in change.notes for change in plan.changes)
    images = torch.randn(2, 3, 64, 64)
    assert plan.apply()(images).shape == (2, 1000)
    with pytest.raises(AttributeError, match="LambdaLayer"):
        timm.utils.reparameterize_model(model)
    # The other way round there is one convolution, which can be replaced.
    replace_convs(merged, stages="CCCL", lambda_args=SMALL, verbose=False)
    assert lambda_names(merged)[-1].endswith(".reparam_conv")
    assert merged(images).shape == (2, 1000)


@pytest.mark.parametrize(
    ("wrap", "prefix"),
    [
        (torch.fx.symbolic_trace, ""),
        (nn.DataParallel, "module."),
    ],
    ids=["fx", "parallel"],
)
def test_wrapped_models(wrap, prefix):
    model = wrap(torchvision.models.resnet18())
    replace_convs(model, stages=("C", "C", "C", "CL"), lambda_args=SMALL, verbose=False)
    assert lambda_names(model) == [f"{prefix}layer4.1.conv1", f"{prefix}layer4.1.conv2"]
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 1000)
