"""The layer that TorchScript takes, beside the plain one."""

import pytest
import torch

from lambdanets import LambdaLayer
from lambdanets.layers.scriptable import ScriptableLambdaLayer

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit")


@pytest.mark.parametrize(
    ("context", "sizes"),
    [({"size": (5, 4)}, [(5, 4), (2, 3), (1, 1)]), ({"scope": 5}, [(7, 6), (1, 2)])],
    ids=["global", "local"],
)
@pytest.mark.parametrize("more", [{}, {"intra_depth": 2, "position_bias": True, "stride": 2}], ids=["", "deep"])
def test_a_script_computes_what_the_layer_does(context, sizes, more):
    plain = LambdaLayer(8, dim_key=4, dtype=torch.float64, **context, **more).eval()
    layer = ScriptableLambdaLayer(8, dim_key=4, dtype=torch.float64, **context, **more).eval()
    layer.load_state_dict(plain.state_dict())
    scripted = torch.jit.script(layer)
    for size in sizes:
        x = torch.randn(2, 8, *size, dtype=torch.float64)
        torch.testing.assert_close(scripted(x), plain(x))
        torch.testing.assert_close(layer(x), plain(x))


@pytest.mark.parametrize("size", [(6, 4), (5, 5)])
def test_a_script_refuses_a_map_larger_than_a_global_layer(size):
    scripted = torch.jit.script(ScriptableLambdaLayer(8, size=(5, 4)))
    with pytest.raises(torch.jit.Error, match=f"x must have at most 5x4 positions.*got {size[0]}x{size[1]}"):
        scripted(torch.randn(1, 8, *size))


def test_what_a_script_cannot_do_is_refused():
    with pytest.raises(ValueError, match=r"must be for images and not causal, got ndim=1 and causal=False"):
        ScriptableLambdaLayer(8, size=5, ndim=1)
