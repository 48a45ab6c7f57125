"""What a traced model asks of its inputs."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lambdanets import LambdaLayer
from lambdanets.interop.export import tracing
from lambdanets.interop.export.tracing import trace


@pytest.mark.parametrize("forgets", [True, False])
def test_guards_of_strides_are_forgotten_and_bounds_stay(monkeypatch, forgets):
    if not forgets:
        monkeypatch.setattr(tracing, "_is_about_strides", lambda guard: False)
    strided = nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8))
    model = nn.Sequential(strided, LambdaLayer(8, size=6, kernel="portable")).double().eval()
    program = tracing.trace(model, torch.zeros(2, 8, 10, 9, dtype=torch.float64), fixed_size=False).module()
    one_pixel = torch.randn(1, 8, 2, 1, dtype=torch.float64)
    if forgets:
        torch.testing.assert_close(program(one_pixel), model(one_pixel))
    else:  # or else this test would be about nothing
        with pytest.raises(AssertionError, match="Guard failed"):
            program(one_pixel)
    with pytest.raises(AssertionError, match="Guard failed"):
        program(torch.randn(2, 8, 14, 10, dtype=torch.float64))


@pytest.mark.parametrize(("kernel", "least"), [(None, 3), ("banded", 5)])
def test_a_strided_layer_with_a_kernel_by_name(kernel, least):
    """PyTorch's export takes the maps that the kernel takes; switched for a file the layer takes smaller ones too."""
    layer = LambdaLayer(8, stride=2, scope=7, kernel=kernel, dtype=torch.float64).eval()
    sides = {axis: torch.export.Dim(name, min=least) for axis, name in ((2, "height"), (3, "width"))}
    example = torch.zeros(2, 8, 14, 12, dtype=torch.float64)
    program = torch.export.export(layer, (example,), dynamic_shapes=(sides,)).module()
    for size in ((least, least), (9, 10), (20, 31)):
        images = torch.randn(2, 8, *size, dtype=torch.float64)
        torch.testing.assert_close(program(images), layer(images))
    with tracing.switch_kernels(layer) as switched:
        everywhere = tracing.trace(layer, example, fixed_size=False).module()
    assert switched == {"": kernel}
    layer.kernel = None
    for size in ((2, 1), (4, 4), (9, 10)):
        images = torch.randn(1, 8, *size, dtype=torch.float64)
        torch.testing.assert_close(everywhere(images), layer(images))


def test_a_release_of_pytorch_that_keeps_them_elsewhere():
    program = SimpleNamespace()
    tracing._forget_strides(program)
    assert vars(program) == {}


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_the_layer_that_cannot_be_exported_is_named_behind_maps_of_one_position():
    """A size of 1 inside of a model, which torch.export takes for a constant, is no fault of the layers that see it."""
    head = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(8, 4))
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), head, Branching()).eval()
    with pytest.raises(ValueError, match=r"the layer '3' \(Branching\) cannot be exported"):
        trace(model, torch.zeros(2, 3, 16, 16), False)
