"""Every registered model offers what timm's models offer, as timm's own tests over its registry have it."""

import pytest
import timm
import torch
from timm.models import get_pretrained_cfg, group_parameters
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from helpers import assert_same_weights
from lambdanets import LambdaLayer

SIZE = 64


def images(batch=2, channels=3, size=(SIZE, SIZE)):
    return torch.randn(batch, channels, *size)


def lambda_layers(model):
    return [module for module in model.modules() if isinstance(module, LambdaLayer)]


def test_configuration_and_full_depth(name):
    """At its own depth, widths and resolution, on the meta device: shapes only."""
    with torch.device("meta"):
        model = timm.create_model(name).eval()
        out = model(torch.empty(1, *model.default_cfg["input_size"]))
    cfg = model.default_cfg
    assert out.shape == (1, cfg["num_classes"])
    assert lambda_layers(model)
    parameters = dict(model.named_parameters())
    assert cfg["architecture"] == name
    assert f"{cfg['first_conv']}.weight" in parameters
    assert parameters[f"{cfg['classifier']}.weight"].shape[0] == cfg["num_classes"] == model.num_classes
    assert cfg["pool_size"] == tuple(side // model.feature_info[-1]["reduction"] for side in cfg["input_size"][1:])
    assert bool(get_pretrained_cfg(name).has_weights) == (name == "lambda_resnet_tiny")
    assert name in timm.list_models("lambda_*")
    assert name not in timm.list_models("lambda_*", pretrained=True)


def test_every_parameter_gets_a_gradient(build):
    model = build(num_classes=7).train()
    out = model(images(3))
    assert out.shape == (3, 7)
    out.square().mean().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not without, f"no gradient for {without}"
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_output_at_initialisation(build_fresh):
    """Neither the logits nor the last map explode or vanish, with the branches open too."""
    model = build_fresh(zero_init_last=False).train()
    x = images(8)
    assert 0.05 < model(x).std() < 5
    assert 0.3 < model.forward_features(x).std() < 30


def test_lambda_layers_at_initialisation(build_fresh):
    model = build_fresh().train()
    variances = []
    for layer in lambda_layers(model):
        layer.register_forward_hook(lambda module, args, out: variances.append(out.var().item()))
    model(images(8))
    assert len(variances) == len(lambda_layers(model))
    assert all(0.01 < variance < 20 for variance in variances), variances


@pytest.mark.parametrize("size", [(64, 96), (33, 50), (71, 40)])
def test_any_image_size(build, size):
    assert build().eval()(images(2, size=size)).shape[0] == 2


def test_classifier_and_pooling(build):
    model = build(num_classes=0).eval()
    x = images()
    assert model(x).shape == (2, model.num_features)
    model.reset_classifier(5)
    assert model(x).shape == (2, 5)
    assert model.num_classes == 5
    assert model.get_classifier() is model.fc
    model.reset_classifier(6, "catavgmax")
    assert model(x).shape == (2, 6)
    assert model.forward_head(model.forward_features(x), pre_logits=True).shape == (2, 2 * model.num_features)
    model.reset_classifier(0, "")
    assert torch.equal(model(x), model.forward_features(x))
    pooled = build(global_pool="max").eval()
    assert torch.equal(
        pooled.forward_head(pooled.forward_features(x), pre_logits=True), pooled.forward_features(x).amax((2, 3))
    )


def test_forward_is_features_then_head(build):
    model = build().eval()
    x = images()
    torch.testing.assert_close(model(x), model.forward_head(model.forward_features(x)), rtol=0, atol=0)


@pytest.mark.parametrize("feature_cls", ["list", "dict", "hook", "fx", "getter"])
def test_features(build, feature_cls):
    model = build(features_only=True, feature_cls=feature_cls, out_indices=(1, 2, 3, 4)).eval()
    maps = model(images())
    maps = list(maps.values()) if isinstance(maps, dict) else maps
    info = model.feature_info
    assert len(maps) == 4
    for feature, width, stride in zip(maps, info.channels(), info.reduction(), strict=True):
        assert feature.shape == (2, width, SIZE // stride, SIZE // stride)


def test_features_are_the_intermediates(build):
    model = build().eval().double()
    features = build(features_only=True).eval().double()
    features.load_state_dict(model.state_dict(), strict=False)
    x = images().double()
    last, intermediates = model.forward_intermediates(x)
    assert torch.equal(last, model.forward_features(x))
    for ours, theirs in zip(features(x), intermediates, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert model.prune_intermediate_layers([2]) == [2]


def test_drop_rates(build):
    model = build(drop_rate=0.5, drop_path_rate=0.5, drop_block_rate=0.2)
    x = images(2)
    model.train()
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize("channels", [1, 5])
def test_input_channels(build, channels):
    assert build(in_chans=channels).eval()(images(channels=channels)).shape[0] == 2


@pytest.mark.parametrize("output_stride", [8, 16])
def test_output_stride(name, build, output_stride):
    model = build(output_stride=output_stride, num_classes=0, global_pool="").eval()
    last = model.feature_info[-1]
    # timm's stem reduces 4 times, that of the tiny model not at all.
    assert last["reduction"] == output_stride // (4 if name == "lambda_resnet_tiny" else 1)
    assert model(images()).shape[2:] == (SIZE // last["reduction"],) * 2
    assert [layer.stride for layer in lambda_layers(model.layer4)] == [1]


def test_gradient_checkpointing(build):
    model = build().train().double()
    x = images().double()
    model(x).square().mean().backward()
    plain = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    model.set_grad_checkpointing()
    model(x).square().mean().backward()
    for n, p in model.named_parameters():
        torch.testing.assert_close(p.grad, plain[n], msg=n)


def test_layer_decay(build):
    model = build()
    groups = group_parameters(model, model.group_matcher(), reverse=True)
    assert set(groups) == set(dict(model.named_parameters()))
    assert groups["layer3.0.conv2.positions"] == groups["layer3.0.conv2.qkv.weight"] == groups["layer3.0.conv1.weight"]
    assert groups["layer3.0.conv2.positions"] < groups["layer4.0.conv2.positions"] < groups["fc.weight"]
    assert len(param_groups_layer_decay(model, weight_decay=0.1, layer_decay=0.5)) > 6


def test_positions_decay_unless_exempted(build):
    """A local table is a filter bank and decays as one; norms and biases do not."""
    model = build()
    tables = {id(layer.positions) for layer in lambda_layers(model)}
    norms = {id(p) for p in model.parameters() if p.ndim == 1}
    exempt, decaying = ({id(p) for p in group["params"]} for group in param_groups_weight_decay(model, 0.1))
    assert tables <= decaying
    assert norms <= exempt
    exempt, _ = param_groups_weight_decay(model, 0.1, no_weight_decay_list=["*.positions"])
    assert tables <= {id(p) for p in exempt["params"]}


def test_channels_last(build):
    model = build().eval().double()
    x = images().double()
    expected = model(x)
    model = model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(x.to(memory_format=torch.channels_last)), expected)


def test_bfloat16_autocast(build):
    model = build().train()
    x = images(4)
    expected = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(x)
    assert out.dtype == torch.bfloat16
    out.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert nn.functional.cosine_similarity(out.float(), expected).min() > 0.9


def test_from_the_meta_device(build_fresh):
    with torch.device("meta"):
        model = build_fresh(zero_init_last=False)
    model.to_empty(device="cpu")
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data.fill_(torch.nan if tensor.is_floating_point() else -1)
    model.init_weights(zero_init_last=False)
    assert all(t.isfinite().all() for t in [*model.parameters(), *model.buffers()])
    assert int(model.bn1.num_batches_tracked) == 0
    table = lambda_layers(model)[0]
    expected = (table.dim_key * table.intra_depth * table.num_context) ** -0.5
    assert table.positions.std().item() == pytest.approx(expected, rel=0.1)
    assert 0.05 < model(images(8)).std() < 5


def test_local_folder(build, build_fresh, tmp_path):
    """What timm's push_to_hf_hub uploads, read back by its name for folders."""
    from timm.models._hub import save_for_hf

    model = build(num_classes=3, in_chans=1).eval()
    save_for_hf(model, str(tmp_path / "hub"), safe_serialization=True)
    assert (tmp_path / "hub" / "model.safetensors").exists()
    back = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True).eval()
    again = build_fresh(num_classes=3, in_chans=1, checkpoint_path=str(tmp_path / "hub" / "model.safetensors")).eval()
    x = images(channels=1)
    for loaded in (back, again):
        assert_same_weights(loaded, model)
        assert torch.equal(loaded(x), model(x))


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_scripted(build, tmp_path):
    """timm's scriptable=True; the file needs nothing of this package, and the weights have the same names."""
    model = build(scriptable=True).eval().double()
    torch.jit.save(torch.jit.script(model), tmp_path / "script.pt")
    script = torch.jit.load(tmp_path / "script.pt")
    assert {name.split("::")[0] for name in torch.jit.export_opnames(script)} == {"aten"}
    for size in ((SIZE, SIZE), (48, 33)):
        x = images(size=size).double()
        torch.testing.assert_close(script(x), model(x))
    plain = build().eval().double()
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(plain(x), model(x))


@pytest.mark.parametrize("name", ["lambda_resnet50", "lambda_resnet50_llll_u4", "lambda_resnet_tiny"])
def test_exported(name, build):
    """One of each kind: the deep ones differ from the first in the number of blocks."""
    model = build().eval().double()
    x = images().double()
    graph = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(graph(x), model(x))
