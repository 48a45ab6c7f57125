"""The layer against the implementations that others wrote, with their weights in ours, in float64."""

import pytest
import torch
from lambda_networks import LambdaLayer as LucidrainsLayer
from timm.layers.lambda_layer import LambdaLayer as TimmLayer

from lambdanets import LambdaLayer

pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid")


def copy_norms(ours, theirs):
    ours.norm_query.load_state_dict(theirs.norm_q.state_dict())
    ours.norm_value.load_state_dict(theirs.norm_v.state_dict())


def assert_same_layer(ours, theirs, x, training):
    ours.train(training)
    theirs.train(training)
    x = x.double().requires_grad_()
    actual, expected = ours(x), theirs(x)
    torch.testing.assert_close(actual, expected, atol=1e-10, rtol=1e-10)
    grad = torch.randn_like(expected)
    (a,), (e,) = torch.autograd.grad(actual, x, grad), torch.autograd.grad(expected, x, grad)
    torch.testing.assert_close(a, e, atol=1e-10, rtol=1e-10)


@pytest.mark.smoke
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("u", [1, 2])
@pytest.mark.parametrize(("r", "n"), [(5, None), (None, 7)])
def test_lucidrains(r, n, u, training):
    theirs = LucidrainsLayer(16, dim_k=4, r=r, n=n, heads=4, dim_u=u).double()
    ours = LambdaLayer(16, dim_key=4, scope=r, size=n, intra_depth=u, dtype=torch.float64)
    with torch.no_grad():
        ours.qkv.weight.copy_(torch.cat([theirs.to_q.weight, theirs.to_k.weight, theirs.to_v.weight]))
        if r is not None:
            theirs.pos_conv.bias.zero_()  # not in the paper
            ours.positions.copy_(theirs.pos_conv.weight[:, :, 0].transpose(0, 1))
        else:
            ours.positions.copy_(theirs.rel_pos_emb.permute(3, 2, 0, 1))
    copy_norms(ours, theirs)
    assert_same_layer(ours, theirs, torch.randn(3, 16, 7, 7), training)


@pytest.mark.smoke
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("r", "size"), [(5, None), (None, (6, 8))])
def test_timm(r, size, training):
    theirs = TimmLayer(16, r=r, feat_size=size, dim_head=4).double()
    ours = LambdaLayer(16, dim_key=4, scope=r, size=size, dtype=torch.float64)
    with torch.no_grad():
        ours.qkv.weight.copy_(theirs.qkv.weight)
        if r is not None:
            theirs.conv_lambda.bias.zero_()  # not in the paper
            ours.positions.copy_(theirs.conv_lambda.weight[:, :, :, :, 0].transpose(0, 1))
        else:
            ours.positions.copy_(theirs.pos_emb.permute(2, 0, 1)[None])
    copy_norms(ours, theirs)
    assert_same_layer(ours, theirs, torch.randn(3, 16, 6, 8), training)
