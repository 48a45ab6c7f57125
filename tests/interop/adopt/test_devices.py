"""Adoption where the model is: on a GPU, in half precision, on the meta device."""

import copy

import pytest
import timm
import torch
from lambda_networks import LambdaLayer as LucidrainsLayer
from timm.layers.lambda_layer import LambdaLayer as TimmLayer

import lambdanets
from interop.peers import DLi14Layer, LambdaConv, calibrate, randomise

pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid")

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
GRID = (6, 6)
LAYERS = {
    "timm": lambda: TimmLayer(16, dim_head=4, r=3, stride=2),
    "timm-global": lambda: TimmLayer(16, dim_head=4, r=None, feat_size=GRID),
    "lucidrains": lambda: LucidrainsLayer(16, dim_k=4, r=3, dim_u=3, dim_out=8),
    "d-li14": lambda: DLi14Layer(16, dk=4, r=3, du=2),
    "leaderj1001": lambda: LambdaConv(16, 24, k=4, m=5),
}


def tensors_of(model):
    return [*model.parameters(), *model.buffers()]


def test_pytorchs_defaults_change_nothing():
    theirs = randomise(LAYERS["timm"]()).eval()
    torch.set_default_device("meta")
    try:
        adoption = lambdanets.adopt(theirs)
    finally:
        torch.set_default_device(None)
    assert adoption.adopted[0].difference < 1e-4


@on_gpu
@pytest.mark.parametrize("name", LAYERS)
def test_layers_on_a_gpu(name):
    """In float64, where no TF32 hides anything."""
    theirs = randomise(LAYERS[name]()).double().cuda().eval()
    adoption = lambdanets.adopt(copy.deepcopy(theirs))
    assert {tensor.device for tensor in tensors_of(adoption.model)} == {torch.device("cuda", 0)}
    assert adoption.adopted[0].difference < 1e-10
    x = torch.randn(3, 16, *GRID, dtype=torch.float64, device="cuda")
    torch.testing.assert_close(adoption.model(x), theirs(x), atol=1e-10, rtol=1e-10)


@on_gpu
def test_a_model_of_timm_on_a_gpu():
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64, device="cuda")
    theirs = randomise(timm.create_model("lambda_resnet26t", num_classes=5, width_factor=0.125)).double().cuda()
    calibrate(theirs, images).eval()
    adoption = lambdanets.adopt(copy.deepcopy(theirs))
    assert all(tensor.is_cuda for tensor in tensors_of(adoption.model))
    with torch.no_grad():
        expected = theirs(images)
        torch.testing.assert_close(adoption.model(images), expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("name", LAYERS)
def test_half_precision(name, dtype):
    """The dtype stays, and outputs are those of exact arithmetic but for a rounding or two."""
    theirs = randomise(LAYERS[name]()).to(dtype).eval()
    exact = copy.deepcopy(theirs).double()
    adoption = lambdanets.adopt(theirs)
    floats = [tensor for tensor in tensors_of(adoption.model) if tensor.is_floating_point()]
    assert {tensor.dtype for tensor in floats} == {dtype}
    assert adoption.adopted[0].difference is not None
    x = torch.randn(3, 16, *GRID, dtype=dtype)
    with torch.no_grad():
        expected = exact(x.double())
        error = (adoption.model(x).double() - expected).abs().max()
    assert error < 2 * torch.finfo(dtype).eps * expected.abs().max()


@pytest.mark.parametrize("name", LAYERS)
def test_meta_device(name):
    """A model without numbers is adopted by its shapes; nothing is allocated and nothing compared."""
    with torch.device("meta"):
        model = torch.nn.Sequential(LAYERS[name]())
        x = torch.empty(2, 16, *GRID)
    expected = model(x).shape
    adoption = lambdanets.adopt(model)
    assert all(tensor.is_meta for tensor in tensors_of(model))
    assert adoption.adopted[0].difference is None
    assert "not compared: its weights are on the meta device" in str(adoption)
    assert model(x).shape == expected
